"""The assistant's next turn in a conversation."""

from __future__ import annotations

import typing as t

from tuneport.serving.chat_template import ChatTemplate, Turns
from tuneport.serving.generator import Generator


class ChatCompleter:
    """Answers conversations with the assistant's next turn; of those too long for the model, the oldest turns go."""

    def __init__(self, folder: str, settings: t.Any = None, model: t.Any = None, batch_size: int | None = None) -> None:
        self.generator = Generator(folder, settings, model)
        self.template = ChatTemplate(settings["chat_template"], settings["tokens"], settings["tool_calls"])
        self.turns = Turns()
        self.settings = settings
        self.batch_size = batch_size

    def __call__(
        self, rows: t.Sequence[dict[str, t.Any]], batch_size: int | None = None, **params: t.Any
    ) -> list[dict[str, t.Any]]:
        answers = self.completions(rows, batch_size, **params)
        return [{"role": "assistant", "content": answer["content"]} for answer in answers]

    def completions(
        self, rows: t.Sequence[dict[str, t.Any]], batch_size: int | None = None, **params: t.Any
    ) -> list[dict[str, t.Any]]:
        """Each answer's content, prompt_tokens (those that were read), completion_tokens (those that were written,
        the one that ends the turn among them) and finish_reason: stop, or length where max_new_tokens ended it.

        Raises ValueError for a conversation that cannot be answered, and for parameters that are not valid.
        """
        params = {**self.settings["params"], **params}
        max_positions, new = self.settings["max_positions"], params["max_new_tokens"]
        if max_positions is not None and new >= max_positions:
            raise ValueError(
                f"params: max_new_tokens={new} leaves no room for a prompt; expected a number < {max_positions}"
            )
        room = 10**9 if max_positions is None else max_positions - new
        prompts = []
        for number, row in enumerate(rows, 1):
            try:
                prompts.append(self._prompt(row, room))
            except ValueError as e:
                raise ValueError(f"row {number}: " + ": ".join(str(part) for part in e.args if part)) from None
        written = self.generator.write(prompts, batch_size or self.batch_size, params)
        return [
            {
                "content": text,
                "prompt_tokens": len(prompt),
                "completion_tokens": tokens,
                "finish_reason": "stop" if ended else "length",
            }
            for prompt, (text, tokens, ended) in zip(prompts, written, strict=True)
        ]

    def _prompt(self, row: dict[str, t.Any], room: int) -> list[int]:
        turns = self.turns(row["messages"])
        if turns[-1]["role"] == "assistant":
            raise ValueError("a conversation that ends with the assistant's turn; expected another one's last")
        tools = self.turns.tools(row.get("tools"))
        while True:
            text = self.template(turns, tools, add_generation_prompt=True)
            ids: list[int] = self.generator.tokenizer.encode(text, add_special_tokens=False).ids
            asked = [i for i, turn in enumerate(turns) if turn["role"] == "user"]
            if len(ids) <= room or len(asked) < 2:
                return ids[-room:]
            turns = [turn for turn in turns[: asked[1]] if turn["role"] == "system"] + turns[asked[1] :]
