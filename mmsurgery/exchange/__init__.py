"""Artifacts in the formats of others, in and out, and on the hub."""
