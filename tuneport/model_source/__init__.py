"""Where a base model comes from: a folder, an MLflow model, a GGUF file or a model hub, made one canonical folder."""
