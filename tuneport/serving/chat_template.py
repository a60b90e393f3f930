"""Conversations as a chat template renders them."""

from __future__ import annotations

import typing as t

from tuneport.serving.template_sandbox import TemplateLimit, TemplateSandbox


class Turns:
    """Checks the turns of a conversation. Self-contained: exported with chat models.

    A turn is ``{"role": "system" | "user" | "assistant" | "tool", "content": text}``, as OpenAI's API has it: content
    may also be a list of text parts, or null beside ``tool_calls``. A turn of the assistant with ``weight`` 0, or with
    ``train`` (axolotl) false, is not learnt. All else stays as it came, but for keys of a turn that hold null.
    """

    roles = ("system", "user", "assistant", "tool")
    deepest = 100  # lists and objects in each other
    weights = frozenset(["weight", "train", "training"])

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

    def tools(self, value: t.Any) -> list[t.Any] | None:
        """Return a list of tools, or JSON of one; None where there are none. Raises ValueError (problem, found)."""
        if value is None or value == "" or isinstance(value, float):  # pandas' NaN: none
            return None
        found = self.parsed(value, "a list of tools")
        if found is None:
            return None
        if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
            raise ValueError('no list of tools; expected [{"type": "function", ...}, ...]', repr(found)[:60])
        return found or None

    def parsed(self, value: t.Any, wanted: str) -> t.Any:
        """A value that may be written as JSON, of plain lists and dicts."""
        import json

        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise ValueError(f"text that is not JSON; expected {wanted}", repr(value[:60])[:60]) from None
        return self._plain(value, 0)

    def _plain(self, value: t.Any, depth: int) -> t.Any:
        value = value.tolist() if hasattr(value, "tolist") else value
        if not isinstance(value, (dict, list, tuple)):
            return value
        if depth >= self.deepest:
            raise ValueError(f"a value that is nested deeper than {self.deepest} lists and objects", "")
        if isinstance(value, dict):
            return {k: self._plain(v, depth + 1) for k, v in value.items()}
        return [self._plain(v, depth + 1) for v in value]

    def _turn(self, turn: t.Any, number: int) -> dict[str, t.Any]:
        if not isinstance(turn, dict) or "role" not in turn:
            raise ValueError(
                'a turn without a role; expected {"role": ..., "content": ...}', f"turn {number}: {turn!r:.60}"
            )
        if turn["role"] not in self.roles:
            raise ValueError(
                f"an unknown role; expected one of {', '.join(self.roles)}", f"turn {number}: {turn['role']!r:.60}"
            )
        given = {k: v for k, v in turn.items() if v is not None}
        if "function_call" in given:  # OpenAI's older name, for one call
            given.setdefault("tool_calls", [given.pop("function_call")])
        calls = self._calls(given.pop("tool_calls"), number) if "tool_calls" in given else None
        found = {"role": given.pop("role"), "content": self._content(given.pop("content", None), number, bool(calls))}
        if calls:
            found["tool_calls"] = calls
        if given:
            found |= given if self.weights.isdisjoint(given) else self._weighted(given, number)
        return found

    def _weighted(self, given: dict[str, t.Any], number: int) -> dict[str, t.Any]:
        """The keys of a turn with one weight for all that say whether it is learnt."""
        weights = {key: weight for key, weight in given.items() if key in self.weights}
        for key, weight in weights.items():
            if weight not in (0, 1):
                raise ValueError(f"a {key} that is neither 0 nor 1", f"turn {number}: {weight!r:.60}")
        rest = {key: value for key, value in given.items() if key not in weights}
        return {**rest, "weight": int(min(weights.values()))}

    def _content(self, content: t.Any, number: int, calls: bool) -> str | None:
        if isinstance(content, str) or (content is None and calls):
            return content
        if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
            return "".join(str(part.get("text", "")) for part in content)
        raise ValueError("a turn whose content is not text", f"turn {number}: {content!r:.60}")

    def _calls(self, calls: t.Any, number: int) -> list[dict[str, t.Any]]:
        calls = self.parsed(calls, "a list of tool calls") if isinstance(calls, str) and calls else calls or []
        for call in calls if isinstance(calls, list) else [calls]:
            function = (call.get("function") or call) if isinstance(call, dict) else None
            if (
                not isinstance(calls, list)
                or not isinstance(function, dict)
                or not isinstance(function.get("name"), str)
            ):
                raise ValueError(
                    "tool calls without a name; expected "
                    '[{"type": "function", "function": {"name": ..., "arguments": {...}}}, ...]',
                    f"turn {number}: {call!r:.60}",
                )
        return t.cast(list[dict[str, t.Any]], calls)


class ChatTemplate:
    """Renders turns with a Jinja template, as transformers does. Self-contained: exported with chat models.

    ``tokens`` are the special tokens by the names that templates know: bos_token, eos_token, ... ``written`` are the
    shapes in which the template writes turns with tool calls: what comes in another one is given to it in the nearest
    of these. An empty list: it writes no tool calls, and content null is given to it as empty. None: all is given to it
    as it is. A shape is what the content is (text, null or empty), where a call's name stands (function: under that
    key; flat: at the call itself), and what its arguments are (object, or text that holds JSON).
    """

    contents, forms, kinds = ("text", "null", "empty"), ("function", "flat"), ("object", "text")

    def __init__(
        self, template: str, tokens: dict[str, str], written: t.Sequence[t.Sequence[str]] | None = None
    ) -> None:
        import datetime as dt
        import json

        from jinja2 import TemplateError
        from jinja2.ext import Extension, loopcontrols
        from jinja2.nodes import CallBlock

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
        self.source = template
        self.written = None if written is None else {tuple(shape) for shape in written}
        self.sandbox = TemplateSandbox()
        environment = self.sandbox.environment([Generation, loopcontrols])
        environment.filters["tojson"] = tojson
        self.sandbox.bound(environment)
        environment.globals["raise_exception"] = raise_exception
        environment.globals["strftime_now"] = lambda form: dt.datetime.now().strftime(form)
        try:
            self.template = environment.from_string(template)
        except TemplateLimit:
            raise
        except Exception as e:  # of expressions nested too deep, RecursionError, SyntaxError or MemoryError
            raise ValueError("a chat template that is no Jinja template", str(e)[:200] or type(e).__name__) from None

    def __call__(self, turns: t.Any, tools: t.Any = None, add_generation_prompt: bool = False) -> str:
        """Return the text of turns. Raises ValueError (problem, reason) where the template does not take them."""
        return self.render(self.shown(turns), tools, add_generation_prompt)

    def shown(self, turns: t.Any) -> list[dict[str, t.Any]]:
        """Return the turns as the template is given them. Raises ValueError (problem, reason)."""
        return [self._shown(turn, number) for number, turn in enumerate(turns, 1)]

    def shape(self, turn: t.Mapping[str, t.Any]) -> tuple[str, ...]:
        """The shape of a turn with tool calls; the first of them says that of all."""
        content, call = turn["content"], turn["tool_calls"][0]
        arguments = (call.get("function") or call).get("arguments")
        return (
            "null" if content is None else "text" if content.strip() else "empty",
            "function" if call.get("function") else "flat",
            "text" if isinstance(arguments, str) else "object",
        )

    def fitting(self, shape: tuple[str, ...]) -> tuple[str, ...]:
        """The shape nearest to one in which the template writes such turns; the same where it writes them in none."""
        contents = {"null", "empty"} if shape[0] != "text" else {"text"}
        written = self.written or set()
        shapes = [other for other in written if other[0] in contents]
        shapes = shapes or [(shape[0], form, kind) for _, form, kind in written]  # content is lost, but no more
        near = sorted(shapes, key=lambda other: (sum(a != b for a, b in zip(other, shape, strict=True)), other))
        return near[0] if near else shape

    def _shown(self, turn: dict[str, t.Any], number: int) -> dict[str, t.Any]:
        if "weight" in turn:
            turn = {k: v for k, v in turn.items() if k != "weight"}
        if "tool_calls" not in turn or self.written is None:
            return turn
        if not self.written:
            return {**turn, "content": turn["content"] or ""}
        shape = self.shape(turn)
        content, form, kind = self.fitting(shape)
        if content != shape[0]:
            turn = {**turn, "content": None if content == "null" else ""}
        return {**turn, "tool_calls": [self._call(call, form, kind, number) for call in turn["tool_calls"]]}

    def _call(self, call: dict[str, t.Any], form: str, kind: str, number: int) -> dict[str, t.Any]:
        import json

        nested = bool(call.get("function"))
        function = dict(call["function"] if nested else call)
        arguments = function.get("arguments")
        if kind == "text" and isinstance(arguments, (dict, list)):
            function["arguments"] = json.dumps(arguments, ensure_ascii=False)
        elif kind == "object" and isinstance(arguments, str):
            try:
                function["arguments"] = json.loads(arguments or "{}")
            except ValueError:
                raise ValueError(
                    "tool calls whose arguments are not JSON, while the chat template writes objects only",
                    f"turn {number}: {arguments!r:.60}",
                ) from None
        if form == "flat":
            return (
                {**{k: v for k, v in call.items() if k not in ("type", "function")}, **function} if nested else function
            )
        if nested:
            return {**call, "function": function}
        around = {key: function.pop(key) for key in ("id", "type") if key in function}
        return {"type": "function", **around, "function": function}

    def render(self, shown: t.Any, tools: t.Any = None, add_generation_prompt: bool = False) -> str:
        """As a call, for turns as `shown` returns them."""
        try:
            return self.sandbox.render(
                self.template,
                messages=shown,
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.tokens,
            )
        except TemplateLimit:
            raise
        except Exception as e:  # a template is a program: it may fail in any way
            raise ValueError("turns that the chat template does not take", f"{type(e).__name__}: {e}"[:200]) from None

    def answers(self, shown: t.Any, tools: t.Any = None) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of turns as `shown` returns them and, by the template's own marks, the assistant's parts."""
        text = self.render(shown, tools)
        unused = (chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in text)
        begin, end = self.marks = (next(unused), next(unused))
        try:
            marked = self.render(shown, tools)
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
