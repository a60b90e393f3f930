"""Labels of texts and of pairs of texts."""

from __future__ import annotations

import typing as t

from tuneport.serving.model_loader import ModelLoader


class TextClassifier:
    """Answers rows with label, score and the probability of every label."""

    def __init__(self, folder: str, settings: t.Any = None, model: t.Any = None, batch_size: int = 32) -> None:
        import inspect
        import json
        from pathlib import Path

        from tokenizers import Tokenizer

        config = json.loads(Path(folder, "tokenizer_config.json").read_text("utf-8"))
        max_seq_length = int(min(config.get("model_max_length") or 512, 1_000_000))
        self.tokenizer = Tokenizer.from_file(str(Path(folder, "tokenizer.json")))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(max_seq_length, direction=config.get("truncation_side") or "right")
        self.model = (model or ModelLoader("AutoModelForSequenceClassification")(folder)).eval()
        self.typed = "token_type_ids" in inspect.signature(self.model.forward).parameters
        self.labels = [self.model.config.id2label[i] for i in range(self.model.config.num_labels)]
        self.multi_label = self.model.config.problem_type == "multi_label_classification"
        self.batch_size = batch_size

    def __call__(self, rows: t.Sequence[dict[str, t.Any]], batch_size: int | None = None) -> list[dict[str, t.Any]]:
        import torch

        answers: list[dict[str, t.Any]] = [{}] * len(rows)
        texts = [self._texts(row) for row in rows]
        by_length = sorted(range(len(rows)), key=lambda i: sum(map(len, texts[i])))
        size = batch_size or self.batch_size
        for start in range(0, len(rows), size):
            picked = by_length[start : start + size]
            batch = self._batch([texts[i] for i in picked])
            with torch.inference_mode():
                logits = self.model(**batch).logits.float()
            scores = logits.sigmoid() if self.multi_label else logits.softmax(-1)
            for i, row_scores in zip(picked, scores.tolist(), strict=True):
                answers[i] = self._answer(row_scores)
        return answers

    def _texts(self, row: dict[str, t.Any]) -> list[str]:
        return [row[key] for key in ("sentence1", "sentence2") if row.get(key) is not None]

    def _batch(self, texts: list[list[str]]) -> dict[str, t.Any]:
        """Tensors of (rows, tokens), encoded as the rows to train on."""
        import torch

        pair = len(texts[0]) == 2
        fill = self.model.config.pad_token_id or 0
        encoded = self.tokenizer.encode_batch_fast([tuple(row) if pair else row[0] for row in texts])
        ids = [row.ids or [fill] for row in encoded]  # of an empty text without special tokens nothing is left
        width = max(map(len, ids))

        def pad(rows: list[list[int]], fill: int) -> t.Any:
            return torch.tensor([row + [fill] * (width - len(row)) for row in rows], device=self.model.device)

        batch = {
            "input_ids": pad(ids, fill),
            "attention_mask": pad([[1] * len(row) for row in ids], 0),
        }
        return batch | ({"token_type_ids": pad([row.type_ids for row in encoded], 0)} if pair and self.typed else {})

    def _answer(self, scores: list[float]) -> dict[str, t.Any]:
        by_label = dict(zip(self.labels, scores, strict=True))
        if self.multi_label:
            chosen = [label for label, score in by_label.items() if score >= 0.5]
            return {"label": chosen, "score": [by_label[label] for label in chosen], "scores": by_label}
        best = max(by_label, key=lambda label: by_label[label])
        return {"label": best, "score": by_label[best], "scores": by_label}
