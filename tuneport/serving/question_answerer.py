"""Answers to questions: spans of their contexts."""

from __future__ import annotations

import typing as t

from tuneport.serving.device_loader import DeviceLoader
from tuneport.serving.token_batches import TokenBatches


class QuestionWindows:
    """Cuts contexts into windows of ``max_seq_length`` tokens behind their question; neighbours share ``doc_stride``.

    A question longer than half of what the special tokens leave is cut to that, or to less where its windows would
    share all they hold; ``longest_question`` says to how many tokens, of ``room`` for it and the context.
    Self-contained: the same code encodes the rows to train on and, exported with the model, the requests.
    """

    def __init__(self, tokenizer: t.Any, max_seq_length: int, doc_stride: int) -> None:
        self.tokenizer = type(tokenizer).from_str(tokenizer.to_str())
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.doc_stride = doc_stride
        pair = self.tokenizer.encode("a", "a")  # shows which special tokens stand around two texts
        parts, kinds = pair.sequence_ids, list(zip(pair.ids, pair.type_ids, strict=True))
        question, context = parts.index(0), parts.index(1)
        self.before, self.after = kinds[:question], kinds[len(parts) - parts[::-1].index(1) :]
        self.between = kinds[len(parts) - parts[::-1].index(0) : context]
        self.question_type, self.context_type = kinds[question][1], kinds[context][1]
        self.room = max_seq_length - len(self.before) - len(self.between) - len(self.after)
        self.longest_question = min(self.room // 2, self.room - doc_stride - 1)

    def __call__(
        self, questions: t.Sequence[str], contexts: t.Sequence[str]
    ) -> list[tuple[bool, list[tuple[list[int], list[int], int, list[tuple[int, int]]]]]]:
        """For each row: whether the question is cut, and its windows.

        A window is (token ids, type ids, place of its first context token, characters (from, to) of each of those).
        """
        encoded = [
            self.tokenizer.encode_batch(list(texts), add_special_tokens=False) for texts in (questions, contexts)
        ]
        found = []
        for question, context in zip(*encoded, strict=True):
            head = [(i, self.question_type) for i in question.ids[: self.longest_question]]
            head = [*self.before, *head, *self.between]
            room = self.room + len(self.before) + len(self.between) - len(head)
            windows, start = [], 0
            while True:
                tail = [(i, self.context_type) for i in context.ids[start : start + room]]
                tokens = [*head, *tail, *self.after]
                ids, types = [token for token, _ in tokens], [kind for _, kind in tokens]
                windows.append((ids, types, len(head), context.offsets[start : start + room]))
                if start + room >= len(context.ids):
                    break
                start += room - self.doc_stride
            found.append((len(question.ids) > self.longest_question, windows))
        return found


class QuestionAnswerer:
    """Answers rows with a span of their context: its text, its characters (end exclusive) and a score.

    Where training rows had no answer, an answer may be "", from -1 to -1. ``n_best`` holds the three best ones.
    """

    def __init__(self, folder: str, settings: t.Any = None, model: t.Any = None, batch_size: int | None = None) -> None:
        import inspect
        from pathlib import Path

        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(Path(folder, "tokenizer.json")))
        self.windows = QuestionWindows(tokenizer, settings["max_seq_length"], settings["doc_stride"])
        self.unanswerable = settings["unanswerable"]
        self.params = settings["params"]
        self.model = (model or DeviceLoader("AutoModelForQuestionAnswering")(folder)).eval()
        self.typed = "token_type_ids" in inspect.signature(self.model.forward).parameters
        self.batch_size = batch_size

    def __call__(
        self,
        rows: t.Sequence[dict[str, t.Any]],
        batch_size: int | None = None,
        n_best_size: int | None = None,
        max_answer_length_in_tokens: int | None = None,
    ) -> list[dict[str, t.Any]]:
        given = {"n_best_size": n_best_size, "max_answer_length_in_tokens": max_answer_length_in_tokens}
        chosen = {name: self.params[name] if value is None else value for name, value in given.items()}
        for name, value in chosen.items():
            if value < 1:
                raise ValueError(f"params: {name}={value} is not valid; expected a number > 0")
        read = self.windows([row["question"] for row in rows], [row["context"] for row in rows])
        windows = [(i, *window) for i, (_, found) in enumerate(read) for window in found]
        spans: list[dict[tuple[int, int], float]] = [{} for _ in rows]  # by row: characters of a span -> its score
        none = [float("inf")] * len(rows)  # the score of no answer: that of the window that says so the least
        batches = TokenBatches.of_forward(self.model, batch_size or self.batch_size)
        scored = batches(
            [len(window[1]) for window in windows],
            lambda picked: self._scored([windows[i] for i in picked], chosen),
        )
        for (i, *_, characters), (of_none, best) in zip(windows, scored, strict=True):
            none[i] = min(none[i], of_none)
            for score, a, b in best:
                span = self._strip(rows[i]["context"], characters[a][0], characters[b][1])
                spans[i][span] = max(score, spans[i].get(span, score))
        return [
            self._answer(row["context"], found, score, chosen["n_best_size"])
            for row, found, score in zip(rows, spans, none, strict=True)
        ]

    def _scored(self, batch: list[t.Any], chosen: dict[str, int]) -> list[tuple[float, list[tuple[float, int, int]]]]:
        """Of each window: the score of no answer, and its best spans."""
        found = []
        for (*_, place, characters), start, end in zip(batch, *self._logits(batch), strict=True):
            context = slice(place, place + len(characters))
            found.append((float(start[0] + end[0]), self._best(start[context], end[context], **chosen)))
        return found

    def _logits(self, batch: list[t.Any]) -> tuple[t.Any, t.Any]:
        """Two tensors (windows, tokens) on the CPU."""
        import torch

        width, device = max(1, *(len(ids) for _, ids, *_ in batch)), TokenBatches.device_of(self.model)

        def pad(rows: list[list[int]], fill: int) -> t.Any:
            return torch.tensor([row + [fill] * (width - len(row)) for row in rows], device=device)

        inputs = {
            "input_ids": pad([ids for _, ids, *_ in batch], self.model.config.pad_token_id or 0),
            "attention_mask": pad([[1] * len(ids) for _, ids, *_ in batch], 0),
        }
        if self.typed:
            inputs["token_type_ids"] = pad([types for _, _, types, *_ in batch], 0)
        with torch.inference_mode():
            found = self.model(**inputs)
        return found.start_logits.float().cpu(), found.end_logits.float().cpu()

    def _best(
        self, start: t.Any, end: t.Any, n_best_size: int, max_answer_length_in_tokens: int
    ) -> list[tuple[float, int, int]]:
        """(score, first token, last token) of the best spans, from the logits of a context's tokens."""
        import torch

        if not len(start):
            return []
        longest = min(max_answer_length_in_tokens, len(start))
        beyond = torch.full((longest - 1,), -torch.inf)
        scores = start[:, None] + torch.cat([end, beyond]).unfold(0, longest, 1)  # (first token, further tokens)
        best = scores.flatten().topk(min(n_best_size, scores.numel()))
        return [
            (score, i // longest, i // longest + i % longest)
            for score, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            if score - score == 0  # finite
        ]

    def _strip(self, context: str, start: int, end: int) -> tuple[int, int]:
        text = context[start:end]
        start += len(text) - len(text.lstrip())
        return start, start + len(text.strip())

    def _answer(
        self, context: str, spans: dict[tuple[int, int], float], none: float, n_best_size: int
    ) -> dict[str, t.Any]:
        import math

        found = sorted(((score, span) for span, score in spans.items() if span[0] < span[1]), key=lambda s: -s[0])
        found = found[:n_best_size]
        if self.unanswerable and math.isfinite(none):
            found = sorted([*found, (none, (-1, -1))], key=lambda s: -s[0])
        if not found:
            return {"answer": "", "start": -1, "end": -1, "score": 0.0, "n_best": []}
        weights = [math.exp(score - found[0][0]) for score, _ in found]
        n_best = [
            {
                "answer": context[start:end] if end > 0 else "",
                "start": start,
                "end": end,
                "score": weight / sum(weights),
            }
            for (_, (start, end)), weight in zip(found[:3], weights, strict=False)
        ]
        return {**n_best[0], "n_best": n_best}
