"""The model card of a tuned model: README.md in the form that Hugging Face's hub reads."""

from __future__ import annotations

import json
import typing as t
from collections.abc import Mapping
from pathlib import Path

from tuneport.tasks.task import Task

TEMPLATE = """\
---
{{ card_data }}
---

# {{ title }}

{{ base }}, fine-tuned for {{ task }} with tuneport {{ version }}.

## Validation scores

Of the checkpoint at step {{ step }} of {{ steps }}, the best by {{ metric }}, on the rows that it was chosen by.
The evaluation's report has the scores of the test rows, beside the base model and trivial methods.

| metric | value |
|---|---|
{% for name, value in scores.items() -%}
| {{ name }} | {{ "%.4f"|format(value) }} |
{% endfor %}
## Data

{{ data }}: {{ rows }}.
{% if labels %}
Labels: {{ labels }}.
{% endif %}
## Training

| parameter | value |
|---|---|
{% for name, value in parameters.items() -%}
| `{{ name }}` | `{{ value|string|replace("\\n", " ")|replace("|", "¦") }}` |
{% endfor %}
What is not listed had its default.
"""
TAGS = {"chat_completion": "text-generation"}  # the hub's names of tasks that differ by more than a dash
LABELS = 40  # that are listed


def write_model_card(
    folder: Path,
    task: Task,
    *,
    base: str,
    on_hub: bool,
    data: str,
    splits: Mapping[str, int],
    meta: Mapping[str, t.Any],
    parameters: Mapping[str, t.Any],
    version: str,
) -> None:
    """Write ``README.md`` beside a tuned model, from its training log.

    ``base``: the base model's name, an id of the hub's with ``on_hub``; ``parameters``: those that differ from their
    defaults.
    """
    from huggingface_hub import ModelCard, ModelCardData

    summary = json.loads((folder / "training.json").read_text("utf-8"))
    tag = TAGS.get(task.name, task.name.replace("_", "-"))
    card = ModelCardData(
        base_model=base if on_hub else None,
        library_name="peft" if (folder / "adapter_config.json").is_file() else "transformers",
        pipeline_tag=tag,
        tags=["tuneport", tag],
    )
    labels = list(meta.get("labels") or ())
    content = ModelCard.from_template(
        card,
        template_str=TEMPLATE,
        title=f"{base.rpartition('/')[2]}, tuned on {data}",
        base=base,
        task=task.name.replace("_", " "),
        version=version,
        step=summary["best_step"],
        steps=summary["steps"],
        metric=summary["metric_for_best_model"],
        scores=_scores(folder, task, summary["best_step"]),
        data=data,
        rows=", ".join(f"{count:,} {split} rows" for split, count in splits.items() if count),
        labels=", ".join(labels[:LABELS]) + (f" and {len(labels) - LABELS} more" if len(labels) > LABELS else ""),
        parameters=dict(parameters),
    )
    (folder / "README.md").write_text(str(content), "utf-8")


def _scores(folder: Path, task: Task, step: int) -> dict[str, float]:
    """The validation scores at a step, by the titles of the task's metrics."""
    history = json.loads((folder / "trainer_state.json").read_text("utf-8"))["log_history"]
    titles = {f"eval_{metric.name}": metric.title for metric in task.scored_by}
    entry: dict[str, float] = next((e for e in history if e.get("step") == step and "eval_loss" in e), {})
    return {title: entry[name] for name, title in {"eval_loss": "loss", **titles}.items() if name in entry}
