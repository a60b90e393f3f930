"""Conversations as a chat template renders them."""

from __future__ import annotations

import typing as t


class Turns:
    """Checks the turns of a conversation and brings them into one form. Self-contained: exported with chat models.

    A turn is ``{"role": "system" | "user" | "assistant" | "tool", "content": text}``, as OpenAI's API has it: content
    may also be a list of text parts, or null beside ``tool_calls``, whose arguments may be JSON.
    """

    roles = ("system", "user", "assistant", "tool")

    def __call__(self, value: t.Any) -> list[dict[str, t.Any]]:
        """Return the turns of a list or of JSON. Raises ValueError (problem, what was found)."""
        found = self.parsed(value, "a list of turns")
        if not isinstance(found, list):
            raise ValueError('no list of turns; expected [{"role": "user", "content": "..."}, ...]', repr(value)[:60])
        turns = [self._turn(turn, number) for number, turn in enumerate(found, 1)]
        spoken = [turn["role"] for turn in turns if turn["role"] != "system"]
        if not spoken:
            raise ValueError("a conversation without turns; expected a user's at least", f"{len(turns)} turns")
        if spoken[0] == "assistant":
            raise ValueError("a conversation that the assistant begins; expected a user's turn first", "")
        return turns

    def parsed(self, value: t.Any, wanted: str) -> t.Any:
        """A value that may be written as JSON, of plain lists and dicts, without the keys that hold null."""
        import json

        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                raise ValueError(f"text that is not JSON; expected {wanted}", repr(value)[:60]) from None
        return self._plain(value)

    def _plain(self, value: t.Any) -> t.Any:
        value = value.tolist() if hasattr(value, "tolist") else value
        if isinstance(value, dict):
            return {k: self._plain(v) for k, v in value.items() if v is not None}
        return [self._plain(v) for v in value] if isinstance(value, (list, tuple)) else value

    def _turn(self, turn: t.Any, number: int) -> dict[str, t.Any]:
        if not isinstance(turn, dict) or "role" not in turn:
            raise ValueError(
                'a turn without a role; expected {"role": ..., "content": ...}', f"turn {number}: {turn!r:.60}"
            )
        if turn["role"] not in self.roles:
            raise ValueError(
                f"an unknown role; expected one of {', '.join(self.roles)}", f"turn {number}: {turn['role']!r:.60}"
            )
        if turn.get("weight", 1) not in (0, 1):
            raise ValueError("a weight that is neither 0 nor 1", f"turn {number}: {turn['weight']!r:.60}")
        calls = {"tool_calls": [self._call(c) for c in turn["tool_calls"]]} if turn.get("tool_calls") else {}
        rest = {k: v for k, v in turn.items() if k != "tool_calls"}
        return {**rest, "content": self._content(turn, number, bool(calls)), **calls}

    def _content(self, turn: dict[str, t.Any], number: int, calls: bool) -> str:
        content = turn.get("content", "" if calls else None)
        if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
            content = "".join(str(part.get("text", "")) for part in content)
        if not isinstance(content, str):
            raise ValueError("a turn whose content is not text", f"turn {number}: {content!r:.60}")
        return content

    def _call(self, call: t.Any) -> t.Any:
        """A tool call with its arguments as an object, which is what templates write as JSON."""
        import json

        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
            return call
        try:
            return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}
        except ValueError:
            return call


class ChatTemplate:
    """Renders turns with a Jinja template, as transformers does. Self-contained: exported with chat models.

    ``tokens`` are the special tokens by the names that templates know: bos_token, eos_token, ...
    """

    def __init__(self, template: str, tokens: dict[str, str]) -> None:
        import datetime as dt
        import json

        from jinja2 import TemplateError
        from jinja2.ext import Extension, loopcontrols
        from jinja2.nodes import CallBlock
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Generation(Extension):
            """{% generation %} … {% endgeneration %}: what the assistant writes; marked where marks are asked for."""

            tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

            def parse(self, parser: t.Any) -> t.Any:
                line = next(parser.stream).lineno
                owner.marks_answers = True
                body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
                return CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

            def _marked(self, caller: t.Any) -> str:
                begin, end = owner.marks
                return f"{begin}{caller()}{end}"

        def raise_exception(message: str) -> t.NoReturn:
            raise TemplateError(message)

        def tojson(
            value: t.Any,
            ensure_ascii: bool = False,
            indent: t.Any = None,
            separators: t.Any = None,
            sort_keys: bool = False,
        ) -> str:
            return json.dumps(
                value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
            )

        owner = self
        self.marks_answers = False  # whether the template says itself what the assistant writes
        self.marks = ("", "")
        self.tokens = tokens
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
        )
        environment.filters["tojson"] = tojson
        environment.globals["raise_exception"] = raise_exception
        environment.globals["strftime_now"] = lambda form: dt.datetime.now().strftime(form)
        try:
            self.template = environment.from_string(template)
        except TemplateError as e:
            raise ValueError("a chat template that is no Jinja template", str(e)) from None

    def __call__(self, turns: t.Any, tools: t.Any = None, add_generation_prompt: bool = False) -> str:
        """Return the text of turns. Raises ValueError (problem, reason) where the template takes them not."""
        shown = [{k: v for k, v in turn.items() if k != "weight"} for turn in turns]
        try:
            return self.template.render(
                messages=shown,
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.tokens,
            )
        except Exception as e:  # a template is a program: it may fail in any way
            raise ValueError("turns that the chat template does not take", f"{type(e).__name__}: {e}"[:200]) from None

    def answers(self, turns: t.Any, tools: t.Any = None) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of turns and, by the template's own marks, where in it the assistant's parts stand."""
        text = self(turns, tools)
        unused = (chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in text)
        begin, end = self.marks = (next(unused), next(unused))
        try:
            marked = self(turns, tools)
        finally:
            self.marks = ("", "")
        found, place, start = [], 0, 0
        for character in marked:
            if character == begin:
                start = place
            elif character == end:
                found.append((start, place))
            else:
                place += 1
        return text, found
