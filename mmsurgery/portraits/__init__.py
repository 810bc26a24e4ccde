"""The embedded benchmark: a small world of drawn faces with facts, and micro models trained on it."""
