"""Portable fine-tuning pipelines: the library that `steps` and `pipelines` are built on."""

__version__ = "0.1.0"
