"""What the engine needs to know about a model family, and where families are found."""
