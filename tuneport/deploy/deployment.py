"""What is served, found in a run's folder; and what serving it takes: files, and the commands that bring them there."""

from __future__ import annotations

import dataclasses as dc
import re
import typing as t
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from tuneport.errors import UserError
from tuneport.json_yaml import read_json, read_yaml
from tuneport.serving.adapter_sum import LoraAdapter

CHAT, DECODERS = "chat_completion", ("chat_completion", "text_generation")
WRITERS = (*DECODERS, "summarization", "translation")
ADAPTER, RANK = "adapter_config.json", "r"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has room for
EXPORT, FOLDER = "model_export", "mlflow_model_folder"  # where a run has its exported model
PLAIN = "artifacts/model"  # the Hugging Face folder in an exported model


def document(spec: Mapping[str, t.Any]) -> str:
    """A document as YAML."""
    return yaml.safe_dump(dict(spec), sort_keys=False, width=110, allow_unicode=True)


@dc.dataclass(frozen=True, kw_only=True)
class Served:
    """A model to serve; ``adapter`` is a LoRA adapter that was not merged, ``base`` the model that it is added to."""

    folder: Path  # the MLflow model
    task: str
    name: str
    run: Path | None = None  # whose model it is, where that can be told
    adapter: Path | None = None
    base: Path | None = None

    @property
    def plain(self) -> Path:
        """The Hugging Face folder."""
        return self.folder / PLAIN

    @property
    def holds_adapter(self) -> bool:
        """Whether that folder holds an adapter and its base model instead of merged weights."""
        return LoraAdapter(str(self.plain)).has_base()

    @property
    def max_lora_rank(self) -> int:
        """The least that vLLM takes the adapter with. Raises `UserError` where its rank is too high."""
        rank = int(read_json(t.cast(Path, self.adapter) / ADAPTER)[RANK])
        least = next((most for most in RANKS if most >= rank), None)
        if least is None:
            raise UserError(
                f"{self.adapter}: is a LoRA adapter of rank {rank}; vLLM serves ranks <= {RANKS[-1]}. Merge "
                "it (merge_lora_weights=true), or take --to docker."
            )
        return least

    @property
    def is_encoder_decoder(self) -> bool:
        return bool(read_json(self.plain / "config.json").get("is_encoder_decoder"))


@dc.dataclass(frozen=True, kw_only=True)
class Deployment:
    """Files by name, folders to be put beside them, and commands to run in their folder."""

    files: Mapping[str, str]
    commands: Sequence[Sequence[str]]
    folders: Mapping[str, Path] = dc.field(default_factory=dict)
    hint: str = ""


def found(run: Path) -> Served:
    """The model of a run's folder, or of an exported model's.

    Raises `UserError` where there is none.
    """
    run = run.resolve()  # a link to the newest run is another's tomorrow
    candidates = [run, run / FOLDER, run / EXPORT / FOLDER]
    folder = next((path for path in candidates if (path / "MLmodel").is_file()), None)
    if folder is None:
        raise UserError(f"{run}: holds no exported model; expected the folder of a run whose model_export is done.")
    try:
        task = str(read_yaml(folder / "MLmodel")["metadata"]["task"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder}: is not a model that model_export wrote; its MLmodel names no task.") from None
    owner = folder.parent if folder.name == FOLDER else None
    owner = owner.parent if owner and owner.name == EXPORT else owner
    tuned, base = run / "finetune" / "pytorch_model_folder", run / "model_import" / "model_selector_output"
    adapted = (tuned / ADAPTER).is_file() and base.is_dir()
    together = LoraAdapter(str(folder / PLAIN))
    if not adapted and together.has_base():
        tuned, base, adapted = Path(together.folder), Path(together.base), True
    return Served(
        folder=folder,
        task=task,
        name=dns_name((owner or folder).name),
        run=owner,
        adapter=tuned if adapted else None,
        base=base if adapted else None,
    )


def dns_name(text: str) -> str:
    """A name that Kubernetes and Azure take, made of another one."""
    kept = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:32].strip("-")
    return kept if re.match("[a-z]", kept) and len(kept) >= 3 else f"model-{kept}".strip("-")
