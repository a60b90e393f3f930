"""A model that reads texts as ONNX, beside its tokenizer, held against the model that is served."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import typing as t
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tuneport.errors import UserError, excerpt
from tuneport.json_yaml import read_json
from tuneport.step import Params, param

if t.TYPE_CHECKING:
    import torch

FOLDER, FILE = "onnx", "model.onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
BESIDE = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json")
TOLERANCE = 1e-4  # of a logit, and of its share
TRACED = (2, 8)  # rows and tokens of the batch that the graph is made with; both are free in the graph
MEANINGS = {
    "input_ids": "token ids, as tokenizer.json gives them",
    "attention_mask": "1 for a token, 0 for what fills a row up to the longest one",
    "token_type_ids": "type ids, as tokenizer.json gives them: which of two texts a token is of",
    "logits": "a score of each label, in the order of id2label in config.json",
    "start_logits": "a score of each token as the first one of the answer",
    "end_logits": "a score of each token as the last one of the answer",
}
SHARES = {
    "text_classification": "A softmax over the labels makes probabilities of the logits; where config.json says "
    "multi_label_classification, a sigmoid of each.",
    "token_classification": "A softmax over the labels makes probabilities of the logits; the label of a word is that "
    "of its first token.",
    "question_answering": "The answer is the span whose start and end logits have the greatest sum.",
}
README = """\
# {kind} as ONNX

`{file}` (opset {opset}), for onnxruntime and whatever else runs ONNX; rows and tokens of a batch are free.

| input (int64) | shape | |
|---|---|---|
{inputs}

| output (float32) | shape | |
|---|---|---|
{outputs}

{shares} Texts are cut to {longest} tokens.

```python
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
tokenizer.enable_truncation({longest})
encoded = tokenizer.encode({example})
named = {{"input_ids": encoded.ids, "attention_mask": encoded.attention_mask, "token_type_ids": encoded.type_ids}}
session = onnxruntime.InferenceSession("{file}")
found = session.run(None, {{port.name: np.array([named[port.name]]) for port in session.get_inputs()}})
```
"""


class ExportFormatsParams(Params):
    """Export formats."""

    export_formats: str = param(
        "Formats of the exported model beside MLflow's: onnx, in the folder onnx, for which 'tuneport[onnx]' has to be "
        "installed. Empty: none.",
        default="",
        json=True,
    )


def check_formats(names: Sequence[str]) -> None:
    """Raise `UserError` for a format that there is not."""
    for name in names:
        if name != "onnx":
            raise UserError(f"export_formats={excerpt(name)}: not valid; expected onnx.")


def check_installed() -> None:
    """Raise `UserError` where a package is missing."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"export_formats=onnx: {', '.join(missing)}: not installed. Run: pip install 'tuneport[onnx]'")


def write_onnx_model(
    model: t.Any,
    predictor: Callable[[Sequence[dict[str, t.Any]]], t.Any],
    rows: Sequence[dict[str, t.Any]],
    *,
    task: str,
    tokenizer: Path,
    destination: Path,
) -> None:
    """Write ``model``, in 32 bits on the CPU, as ONNX, with the inputs that ``predictor`` gives it for ``rows``.

    ``tokenizer``: the folder whose tokenizer and configuration are put beside it. Raises `UserError` where it cannot be
    exported, and where the ONNX model gives other logits than the model.
    """
    model.set_attn_implementation("eager")  # one way through the layers, whatever the rows hold
    model.config.use_cache = False
    batches = _inputs(model, lambda: predictor(rows))
    names = list(batches[0])
    outputs = ["start_logits", "end_logits"] if task == "question_answering" else ["logits"]
    destination.mkdir()
    file = destination / FILE
    with _quiet():
        try:
            opset = _export(model, batches[0], names, outputs, file)
        except Exception as e:  # whatever the exporter meets in a model's code
            reason = excerpt(" ".join(f"{type(e).__name__}: {e}".split()), 400)
            raise UserError(
                f"export_formats=onnx: a {type(model).__name__} cannot be exported ({reason}). Leave "
                "export_formats out."
            ) from e
    _compare(model, batches, outputs, file)
    for name in BESIDE:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, destination / name)
    longest = int(min(read_json(tokenizer / "tokenizer_config.json").get("model_max_length") or 512, 1_000_000))
    said = README.format(
        kind=type(model).__name__, file=FILE, opset=opset, longest=longest, **_words(task, names, outputs)
    )
    (destination / "README.md").write_text(said, "utf-8")


def _inputs(model: t.Any, answer: Callable[[], object]) -> list[dict[str, torch.Tensor]]:
    """What a model is called with."""
    seen: list[dict[str, torch.Tensor]] = []
    hook = model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(dict(kwargs)), with_kwargs=True)
    try:
        answer()
    finally:
        hook.remove()
    return seen


def _export(model: t.Any, like: Mapping[str, torch.Tensor], names: list[str], outputs: list[str], file: Path) -> int:
    """Write the graph; returns its opset."""
    import torch

    traced = {name: value.flatten()[:1].expand(TRACED).clone() for name, value in like.items()}
    program = torch.onnx.export(
        model,
        (),
        str(file),
        kwargs=traced,
        input_names=names,
        output_names=outputs,
        dynamic_shapes={name: {0: "batch", 1: "sequence"} for name in names},
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    return int(program.model.opset_imports[""])


def _compare(model: t.Any, batches: Sequence[Mapping[str, torch.Tensor]], outputs: list[str], file: Path) -> None:
    """Raise `UserError` where the ONNX model gives other logits than the model it is made of."""
    import numpy as np
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for batch in batches:
        found = session.run(outputs, {name: value.numpy() for name, value in batch.items()})
        with torch.no_grad():
            answer = model(**batch)
        for name, got in zip(outputs, found, strict=True):
            expected = answer[name].float().numpy()
            if not np.allclose(got, expected, atol=TOLERANCE, rtol=TOLERANCE):
                raise UserError(
                    f"export_formats=onnx: the ONNX model of a {type(model).__name__} gives other {name} than the "
                    f"model, by up to {float(np.abs(got - expected).max()):.2g}. Leave export_formats out."
                )


def _words(task: str, names: list[str], outputs: list[str]) -> dict[str, str]:
    """The parts of the README that differ by task."""
    shape = {"logits": "(batch, labels)" if task == "text_classification" else "(batch, sequence, labels)"}
    return {
        "inputs": "\n".join(f"| `{name}` | (batch, sequence) | {MEANINGS[name]} |" for name in names),
        "outputs": "\n".join(
            f"| `{name}` | {shape.get(name, '(batch, sequence)')} | {MEANINGS[name]} |" for name in outputs
        ),
        "shares": SHARES[task],
        "example": '"a question", "its context"' if task == "question_answering" else '"a text"',
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of its own steps."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
