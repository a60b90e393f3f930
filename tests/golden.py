"""What golden files hold of a document: everything but most plain parameters, and of most tasks only what differs.

A plain parameter is one that several tasks have, that needs no value and asks nothing of a machine. Of these a golden
file keeps one of each kind; `test_ports.py` of each target follows every one of them through the document. So a new one
changes no golden file. `make golden` writes the files again: look at what git says has changed.
"""

from collections import Counter
from functools import cache
from typing import Any

import pipelines

FIRST = "text_classification"  # the task whose documents are kept whole
ABSENT = "(absent)"
KEPT = {
    "deduplicate": "choices of a stage without torch",
    "group_key": "text that may be unset, its help not in ASCII",
    "huggingface_id": "one of several sources",
    "huggingface_revision": "text that settles whether a result is cached",
    "max_seq_length": "a default below 0",
    "max_new_tokens": "shared by some tasks",
    "prompt_template": "text that differs from task to task",
    "learning_rate": "a number with bounds",
    "lora_target_modules": "text with a default",
    "metric_for_best_model": "choices that differ from task to task",
    "num_train_epochs": "a whole number",
    "optim": "choices, the empty one among them",
    "precision": "choices that read as numbers",
    "registered_model_name": "what decides whether a stage runs",
    "resume_from_checkpoint": "text that reads as true or false",
    "apply_lora": "true or false, and not by default",
    "padding_free": "true or false, by default, its help not in ASCII",
    "seed": "shared by two stages; the largest bound",
}


@cache
def plain() -> frozenset[str]:
    """The names of the parameters that golden files leave out."""
    found = Counter(
        name
        for task in pipelines.names()
        for name, port in pipelines.load(task).params.items()
        if port.kind == "param" and not port.required and port.resource is None
    )
    return frozenset(name for name, tasks in found.items() if tasks > 1) - set(KEPT)


def without(names: frozenset[str], entries: dict[str, Any]) -> dict[str, Any]:
    """The entries of a mapping but those with these names."""
    return {name: entry for name, entry in entries.items() if name not in names}


def difference(first: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The entries of another document that are not the same in the first, `ABSENT` for those that it has not."""
    found: dict[str, Any] = {}
    for key in sorted(first.keys() | other.keys(), key=str):
        one, two = first.get(key, ABSENT), other.get(key, ABSENT)
        if isinstance(one, dict) and isinstance(two, dict):
            if inner := difference(one, two):
                found[key] = inner
        elif one != two:
            found[key] = two
    return found


def dumped(*documents: Any) -> str:
    """Documents as golden files hold them: keys sorted, texts of any language as they are."""
    import yaml

    text: str = yaml.dump_all(
        documents, Dumper=yaml.CSafeDumper, sort_keys=True, width=120, allow_unicode=True, default_flow_style=None
    )
    return text
