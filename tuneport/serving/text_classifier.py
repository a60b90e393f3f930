"""Labels of texts and of pairs of texts."""

from __future__ import annotations

import typing as t

from tuneport.serving.device_loader import DeviceLoader
from tuneport.serving.token_batches import TokenBatches


class TextClassifier:
    """Answers rows with label, score and the probability of every label."""

    def __init__(self, folder: str, settings: t.Any = None, model: t.Any = None, batch_size: int | None = None) -> None:
        import inspect
        import json
        from pathlib import Path

        from tokenizers import Tokenizer

        config = json.loads(Path(folder, "tokenizer_config.json").read_text("utf-8"))
        max_seq_length = int(min(config.get("model_max_length") or 512, 1_000_000))
        self.tokenizer = Tokenizer.from_file(str(Path(folder, "tokenizer.json")))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(max_seq_length, direction=config.get("truncation_side") or "right")
        self.model = (model or DeviceLoader("AutoModelForSequenceClassification")(folder)).eval()
        self.typed = "token_type_ids" in inspect.signature(self.model.forward).parameters
        self.labels = [self.model.config.id2label[i] for i in range(self.model.config.num_labels)]
        self.multi_label = self.model.config.problem_type == "multi_label_classification"
        self.batch_size = batch_size

    def __call__(self, rows: t.Sequence[dict[str, t.Any]], batch_size: int | None = None) -> list[dict[str, t.Any]]:
        import torch

        encoded = self._encode([self._texts(row) for row in rows])
        batches = TokenBatches.of_forward(self.model, batch_size or self.batch_size)

        def scores(picked: list[int]) -> t.Any:
            with torch.inference_mode():
                logits = self.model(**self._batch([encoded[i] for i in picked])).logits.float()
            return (logits.sigmoid() if self.multi_label else logits.softmax(-1)).tolist()

        found = batches([len(ids) for ids, _ in encoded], scores)
        return [self._answer(row_scores) for row_scores in found]

    def _texts(self, row: dict[str, t.Any]) -> list[str]:
        return [row[key] for key in ("sentence1", "sentence2") if row.get(key) is not None]

    def _encode(self, texts: list[list[str]]) -> list[tuple[list[int], list[int] | None]]:
        """(token ids, type ids where the model reads them) of each text or pair, as of the rows to train on."""
        if not texts:
            return []
        pair = len(texts[0]) == 2
        fill = self.model.config.pad_token_id or 0
        encoded = self.tokenizer.encode_batch_fast([tuple(row) if pair else row[0] for row in texts])
        # Of an empty text without special tokens nothing is left.
        return [(row.ids or [fill], row.type_ids if pair and self.typed else None) for row in encoded]

    def _batch(self, rows: list[tuple[list[int], list[int] | None]]) -> dict[str, t.Any]:
        """Tensors of (rows, tokens)."""
        import torch

        ids = [row for row, _ in rows]
        width = max(map(len, ids))

        def pad(rows: list[list[int]], fill: int) -> t.Any:
            return torch.tensor(
                [row + [fill] * (width - len(row)) for row in rows], device=TokenBatches.device_of(self.model)
            )

        batch = {
            "input_ids": pad(ids, self.model.config.pad_token_id or 0),
            "attention_mask": pad([[1] * len(row) for row in ids], 0),
        }
        types = [kinds for _, kinds in rows if kinds is not None]
        return batch | ({"token_type_ids": pad(types, 0)} if types else {})

    def _answer(self, scores: list[float]) -> dict[str, t.Any]:
        by_label = dict(zip(self.labels, scores, strict=True))
        if self.multi_label:
            chosen = [label for label, score in by_label.items() if score >= 0.5]
            return {"label": chosen, "score": [by_label[label] for label in chosen], "scores": by_label}
        best = max(by_label, key=lambda label: by_label[label])
        return {"label": best, "score": by_label[best], "scores": by_label}
