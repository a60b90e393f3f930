"""The files of a base model's tokenizer, copied as they are beside the weights that are trained from it."""

from __future__ import annotations

import json
import shutil
import typing as t
from pathlib import Path

from tuneport.json_yaml import to_json
from tuneport.model_source.model_files import TOKENIZER_FILES


class TokenizerFiles:
    """Stands where transformers' Trainer expects a tokenizer to save.

    Loaded and saved by transformers, a tokenizer may come out as another one: classes of its kind build again what they
    take for its pipeline, and some need packages or files that tokenizer.json makes superfluous. The rows were encoded
    by tokenizer.json, and so are the requests. Only what training settles is written again: the length that the model
    was trained with and, where one is given, the chat template.
    """

    model_input_names: t.ClassVar = ["input_ids"]

    def __init__(self, base: Path, max_seq_length: int, chat_template: str | None) -> None:
        self.base, self.chat_template = base, chat_template
        config = json.loads((base / "tokenizer_config.json").read_text("utf-8"))
        self.config = {**config, "model_max_length": max_seq_length}
        if chat_template is not None:
            self.config.pop("chat_template", None)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the files to a folder."""
        for file in {file for pattern in TOKENIZER_FILES for file in self.base.glob(pattern) if file.is_file()}:
            shutil.copyfile(file, Path(folder, file.name))
        text = to_json(self.config, indent=2)
        Path(folder, "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
        if self.chat_template is not None:
            Path(folder, "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")
