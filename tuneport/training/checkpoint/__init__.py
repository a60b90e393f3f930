"""Checkpoints: written whole or not at all, resumed bit for bit, and written once more when a signal comes."""
