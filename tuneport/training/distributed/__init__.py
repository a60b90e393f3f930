"""Training that is spread over processes."""
