"""Write a fine-tuned model as an MLflow model that loads and serves where tuneport is not installed."""

from tuneport.export.mlflow_model import write_mlflow_model

__all__ = ["write_mlflow_model"]
