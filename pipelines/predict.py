"""Answers of an exported model."""

from collections.abc import Mapping

from steps.predict import Predict
from tuneport.artifacts import Artifact


def predict() -> Mapping[str, Artifact]:
    """Answer the rows of a source with an exported model."""
    return {"predictions": Predict().predictions}
