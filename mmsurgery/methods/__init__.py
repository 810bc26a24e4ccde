"""Unlearning methods: each a file a screen long, found by entry points or named as `path.py:Name`."""
