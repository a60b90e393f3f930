"""Exported models side by side."""

from collections.abc import Mapping

from steps.model_comparison import ModelComparison
from tuneport.artifacts import Artifact


def evaluate() -> Mapping[str, Artifact]:
    """Score exported models by the same test rows, without training."""
    return {"comparison_result": ModelComparison().comparison_result}
