"""Training without padding: which way a model takes, and how each is computed."""
