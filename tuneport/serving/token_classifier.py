"""Tags of words."""

from __future__ import annotations

import typing as t

from tuneport.serving.device_loader import DeviceLoader
from tuneport.serving.token_batches import TokenBatches


class TokenClassifier:
    """Answers rows with a tag and a score for every word, and with the entities that IOB2 tags spell.

    ``tokens`` is a list of words, or a sentence that is split at white space. What is longer than the model takes is
    read in overlapping windows.
    """

    def __init__(self, folder: str, settings: t.Any = None, model: t.Any = None, batch_size: int | None = None) -> None:
        import json
        from pathlib import Path

        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(Path(folder, "tokenizer.json")))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        # Byte-level tokenizers take a word for the middle of another one unless a space stands before it.
        self.prefix = " " if '"ByteLevel"' in json.dumps(json.loads(self.tokenizer.to_str())["pre_tokenizer"]) else ""
        config = json.loads(Path(folder, "tokenizer_config.json").read_text("utf-8"))
        self.max_seq_length = int(min(config.get("model_max_length") or 512, 1_000_000))
        self.model = (model or DeviceLoader("AutoModelForTokenClassification")(folder)).eval()
        self.labels = [self.model.config.id2label[i] for i in range(self.model.config.num_labels)]
        self.batch_size = batch_size

    def __call__(self, rows: t.Sequence[dict[str, t.Any]], batch_size: int | None = None) -> list[dict[str, t.Any]]:
        words = [row["tokens"].split() if isinstance(row["tokens"], str) else list(row["tokens"]) for row in rows]
        windows = [(i, *window) for i, row in enumerate(words) for window in self._windows(row)]
        # By row and word: (how far from a window's edge the word stands, tag, score); the farthest one counts.
        best: list[list[tuple[int, str, float]]] = [[(-1, self.labels[0], 0.0)] * len(row) for row in words]
        batches = TokenBatches.of_forward(self.model, batch_size or self.batch_size)
        read = batches(
            [len(window[2]) for window in windows], lambda picked: self._likeliest([windows[i] for i in picked])
        )
        for (i, start, ids, places, last), words_read in zip(windows, read, strict=True):
            for word, (label, score) in zip(places, words_read, strict=True):
                edge = min(word if start else len(ids), len(places) - 1 - word if not last else len(ids))
                if edge > best[i][start + word][0]:
                    best[i][start + word] = (edge, self.labels[label], score)
        return [self._answer(row, found) for row, found in zip(words, best, strict=True)]

    def _windows(self, words: list[str]) -> t.Iterator[tuple[int, list[int], dict[int, int], bool]]:
        """(first word, token ids, token of each of its words, whether it reaches the last word) of every window."""
        blank = getattr(self.tokenizer.model, "unk_token", None) or "."
        texts = [self.prefix + word for word in words]
        if not texts:
            return
        sizes = [0] * len(texts)
        for word in self.tokenizer.encode(texts, is_pretokenized=True, add_special_tokens=False).word_ids:
            if word is not None:
                sizes[word] += 1
        # A word of which the tokenizer leaves nothing is read as an unknown one, so that it has a tag, too.
        texts = [text if size else blank for text, size in zip(texts, sizes, strict=True)]
        sizes = [size or 1 for size in sizes]
        room = max(1, self.max_seq_length - self.tokenizer.num_special_tokens_to_add(False))
        start = end = 0
        while end < len(texts):
            end, used = start, 0
            while end < len(texts) and (end == start or used + sizes[end] <= room):
                used += sizes[end]
                end += 1
            yield (start, *self._encode(texts[start:end], room), end == len(texts))
            overlap, begin = 0, end
            while begin > start + 1 and overlap + sizes[begin - 1] <= room // 3:
                begin -= 1
                overlap += sizes[begin]
            start = begin

    def _encode(self, texts: list[str], room: int) -> tuple[list[int], dict[int, int]]:
        encoding = self.tokenizer.encode(texts, is_pretokenized=True)
        extra = len(encoding.ids) - room - self.tokenizer.num_special_tokens_to_add(False)
        if extra > 0:  # one word alone is longer than the model takes
            self.tokenizer.enable_truncation(self.max_seq_length)
            encoding = self.tokenizer.encode(texts, is_pretokenized=True)
            self.tokenizer.no_truncation()
        places: dict[int, int] = {}
        for place, word in enumerate(encoding.word_ids):
            if word is not None:
                places.setdefault(word, place)
        return encoding.ids, places

    def _likeliest(self, windows: list[t.Any]) -> list[list[tuple[int, float]]]:
        """(label, its probability) of each word of each window."""
        import torch

        ids = [window[2] for window in windows]
        width = max(map(len, ids))
        pad = self.model.config.pad_token_id or 0
        tokens = torch.tensor(
            [row + [pad] * (width - len(row)) for row in ids], device=TokenBatches.device_of(self.model)
        )
        mask = torch.tensor(
            [[1] * len(row) + [0] * (width - len(row)) for row in ids], device=TokenBatches.device_of(self.model)
        )
        with torch.inference_mode():
            scores, labels = self.model(input_ids=tokens, attention_mask=mask).logits.float().softmax(-1).max(-1)
        read = zip(labels.tolist(), scores.tolist(), windows, strict=True)
        return [[(label[place], score[place]) for place in window[3].values()] for label, score, window in read]

    def _answer(self, words: list[str], found: list[tuple[int, str, float]]) -> dict[str, t.Any]:
        tags, scores = [tag for _, tag, _ in found], [score for _, _, score in found]
        return {"tags": tags, "scores": scores, "entities": self._entities(words, tags, scores)}

    def _entities(self, words: list[str], tags: list[str], scores: list[float]) -> list[dict[str, t.Any]]:
        """Spans of words, end exclusive: an I- that continues nothing begins an entity; plain tags spell none."""
        if any(label != "O" and label[:2] not in ("B-", "I-") for label in self.labels):
            return []
        spans: list[tuple[str, int, int]] = []
        for i, tag in enumerate(tags):
            kind = tag[2:]
            if tag[:2] == "I-" and spans and spans[-1][0] == kind and spans[-1][2] == i:
                spans[-1] = (kind, spans[-1][1], i + 1)
            elif tag != "O":
                spans.append((kind, i, i + 1))
        return [
            {
                "text": " ".join(words[start:end]),
                "label": kind,
                "start": start,
                "end": end,
                "score": sum(scores[start:end]) / (end - start),
            }
            for kind, start, end in spans
        ]
