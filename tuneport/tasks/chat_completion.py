"""Chat completion: a decoder learns what the assistant says in conversations, written by a chat template."""

from __future__ import annotations

import json
import logging
import typing as t
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from tuneport.encoding.base_model import BaseModel
from tuneport.encoding.conversations import ANSWER, QUESTION, end_of_turn, passed_over, special_tokens, turns_of
from tuneport.encoding.prompts import vocabulary_size
from tuneport.encoding.template_trial import call_shapes, closed, end_of_calls, learns_end
from tuneport.errors import UserError, excerpt
from tuneport.limits import MAX_TEMPLATE_BYTES, TEMPLATE_MEMORY, memory_limit, read_bytes
from tuneport.metrics.answers import Calls, true_calls
from tuneport.serving.chat_completer import ChatCompleter
from tuneport.serving.chat_template import ChatTemplate, Turns
from tuneport.serving.template_sandbox import TemplateLimit
from tuneport.step import Params, param
from tuneport.tasks._language_modeling import LanguageModelingTask
from tuneport.tasks.task import Drop, Encoder, Meta, Refuse, Row, TaskData, check_text

if t.TYPE_CHECKING:
    import pyarrow as pa
    from tokenizers import Tokenizer

    from tuneport.encoding.conversation_encoder import ConversationEncoder, Rendered
    from tuneport.encoding.fast_tokenizer import FastTokenizer
    from tuneport.encoding.located import Locate

COLUMNS = {  # of each chat_format, besides messages
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
}
LISTED_ROWS = 20
TOOLS = "tools"

log = logging.getLogger("tuneport.preprocess")


class ChatCompletionColumns(Params):
    """Chat completion columns."""

    chat_format: t.Literal["messages", "sharegpt", "alpaca", "prompt_completion"] = param(
        "Shape of the rows: messages (a list of role and content), sharegpt (column conversations: from and value), "
        "alpaca (columns instruction, output and perhaps input) or prompt_completion (columns prompt and completion, "
        "as text or messages).",
        default="messages",
    )
    messages_key: str = param(
        "Column that holds the messages (in CSV and TSV: JSON in the cell), with chat_format=messages.",
        default="messages",
    )
    tools_key: str | None = param(
        "Column that holds the list of tools (JSON schemas) that a conversation may use. Unset: the column 'tools', "
        "where there is one.",
        default=None,
    )
    chat_template: str | None = param(
        "Jinja chat template, or a file that holds it. Unset: the model's own.", default=None
    )
    loss_on: t.Literal["assistant", "last"] = param(
        "What is learnt of a conversation: each turn of the assistant, or the last one.", default="assistant"
    )


class ChatCompletion(LanguageModelingTask):
    """Fields of a row: ``messages`` and ``tools``, which may be null, both as JSON."""

    name = "chat_completion"
    reads_rows_apart = True
    params: t.ClassVar = {"preprocess": ChatCompletionColumns, **LanguageModelingTask.params}
    predictor = ChatCompleter
    benchmarked = "chat"

    def columns(self, options: ChatCompletionColumns) -> dict[str, str]:
        tools = {"tools": options.tools_key} if options.tools_key is not None else {}
        if options.chat_format == "messages":
            return {"messages": options.messages_key, **tools}
        return {name: name for name in COLUMNS[options.chat_format]} | tools

    def optional_columns(self, options: ChatCompletionColumns) -> Sequence[str]:
        return ("input",) if options.chat_format == "alpaca" else ()

    def hint(self, columns: Sequence[str], options: ChatCompletionColumns) -> str:
        fitting = [shape for shape, wanted in COLUMNS.items() if set(wanted) <= set(columns)]
        fitting += ["messages"] if "messages" in columns else []
        return "".join(f" These columns fit chat_format={s}." for s in fitting[:1] if s != options.chat_format)

    def row_schema(self, options: ChatCompletionColumns) -> pa.Schema:
        import pyarrow as pa

        return pa.schema([("messages", pa.string()), ("tools", pa.string())])

    def reader(self, options: ChatCompletionColumns) -> Callable[[Mapping[str, t.Any], str], Row]:
        check = Turns()

        def read(raw: Mapping[str, t.Any], where: str) -> Row:
            try:
                found = turns_of(raw, options.chat_format, options.messages_key)
                if found is None:
                    raise Drop(
                        f"null in column '{next(c for c in self.columns(options).values() if raw.get(c) is None)}'"
                    )
                turns = _learnable(check(found), options.loss_on)
                tools = _tools(raw, options.tools_key or TOOLS, check)
            except ValueError as e:
                raise Refuse(*e.args) from None
            notes = passed_over(raw, options.chat_format, turns)
            return {"messages": _json(turns), "tools": tools and _json(tools), "notes": notes}

        return read

    def identity(self, row: Row) -> str:
        """All that the assistant does not say."""
        turns = [turn for turn in json.loads(row["messages"]) if turn["role"] != "assistant"]
        return "\n".join([*(f"{turn['role']}: {turn['content']}" for turn in turns), row["tools"] or ""])

    def reference(self, row: Row) -> str:
        return t.cast(str, row["messages"])

    def describe(self, data: TaskData, base: BaseModel, options: ChatCompletionColumns) -> Meta:
        prompting = self.decoding(base)
        source, tokens = _template(options.chat_template, base), special_tokens(base.tokenizer_config)
        try:
            with memory_limit(TEMPLATE_MEMORY):
                source, end = _ending(source, tokens, base)
                shapes = call_shapes(ChatTemplate(source, tokens))
                template = ChatTemplate(source, tokens, shapes)
                end_of_call = end_of_calls(template, base.tokenizer) if shapes else None
        except ValueError as e:
            raise UserError(
                f"chat_template: {': '.join(e.args)}. Expected one that renders a user's turn and an assistant's; "
                "set chat_template to such a template."
            ) from None
        if not shapes:
            _refuse_calls(data, options)
        ends = [end, end_of_call]
        return {
            "vocabulary": vocabulary_size(base),
            "prompting": {
                **prompting,
                "stop": list(dict.fromkeys([*prompting["stop"], *(i for i in ends if i is not None)])),
                "chat_template": source,
                "tokens": tokens,
                "tool_calls": [list(shape) for shape in shapes],
            },
        }

    def encoder(self, tokenizer: Tokenizer, meta: Meta, options: ChatCompletionColumns) -> Encoder:
        from tuneport.encoding.located import library_located

        return self._encoder(tokenizer, library_located(tokenizer), meta["prompting"], options)

    def fast_encoder(self, tokenizer: FastTokenizer, meta: Meta, options: ChatCompletionColumns) -> Encoder:
        return self._encoder(tokenizer.tokenizer, tokenizer.located, meta["prompting"], options)

    def _encoder(
        self, tokenizer: Tokenizer, located: Locate, settings: Meta, options: ChatCompletionColumns
    ) -> Encoder:
        from tuneport.encoding.conversation_encoder import ConversationEncoder

        encode = ConversationEncoder(
            tokenizer,
            located,
            ChatTemplate(settings["chat_template"], settings["tokens"], settings["tool_calls"]),
            max_seq_length=settings["max_seq_length"],
            last=options.loss_on == "last",
            stop=settings["stop"],
        )
        return lambda rows: encode(_rendered(encode, rows)).columns()

    def chat_template(self, meta: Meta) -> str | None:
        return t.cast(str, meta["prompting"]["chat_template"])

    def serving_schema(self, fields: Iterable[str], meta: Meta) -> tuple[pa.Schema, pa.Schema]:
        import pyarrow as pa

        # As one column is a list, MLflow takes {"messages": [...]} for one row, not for a row each turn.
        tools = pa.field("tools", pa.list_(pa.json_()), metadata={"optional": "true"})
        answers = [("role", pa.string()), ("content", pa.string())]
        return pa.schema([("messages", pa.json_()), tools]), pa.schema(answers)

    def example(self, row: Row) -> Row:
        return {"messages": self._split(row)[0], "tools": json.loads(row.get("tools") or "null")}

    def asked(self, row: Row) -> Row:
        return self.example(row)

    def texts(self, row: Row) -> tuple[str, str]:
        asked, answer = self._split(row)
        return "\n".join(f"{turn['role']}: {_said(turn)}" for turn in asked), _said(answer)

    def _split(self, row: Row) -> tuple[list[Row], Row]:
        """The turns before the last one of the assistant, and that one."""
        turns = json.loads(row["messages"])
        last = max(i for i, turn in enumerate(turns) if turn["role"] == "assistant")
        return turns[:last], turns[last]

    def true_calls(self, row: Row) -> Calls:
        return true_calls(self._split(row)[1])

    def written(self, answer: Row) -> str | None:
        return answer.get("content")


def _tools(raw: Mapping[str, t.Any], column: str, check: Turns) -> list[t.Any] | None:
    try:
        return check.tools(raw.get(column))
    except ValueError as e:
        problem, found = e.args
        raise ValueError(f"column '{column}' (tools_key): {problem}", found) from None


def _learnable(turns: list[Row], loss_on: str) -> list[Row]:
    learnt = _learnt(turns, loss_on)
    if not learnt:
        said = any(turn["role"] == "assistant" for turn in turns)
        raise Drop("no assistant's turn" if not said else "no assistant's turn to learn: all have weight 0")
    if not all((turn["content"] or "").strip() or turn.get("tool_calls") for turn in learnt):
        raise Drop("an assistant's turn without text")
    return turns


def _learnt(turns: list[Row], loss_on: str) -> list[Row]:
    said = [turn for turn in turns if turn["role"] == "assistant"]
    return [turn for turn in (said[-1:] if loss_on == "last" else said) if turn.get("weight", 1)]


def _json(value: t.Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    check_text(text)
    return text


def _said(turn: Row) -> str:
    calls = [json.dumps(call.get("function", call), ensure_ascii=False) for call in turn.get("tool_calls", ())]
    return "\n".join([*([turn["content"]] if turn["content"] else []), *calls])


def _template(given: str | None, base: BaseModel) -> str:
    if given is None:
        if base.chat_template is None:
            raise UserError(
                "the base model has no chat template, so it is not known how it writes conversations. Set "
                "chat_template to a Jinja template, or to a file that holds one, or choose a chat model."
            )
        return base.chat_template
    if "{{" in given or "{%" in given:
        return given
    try:
        return read_bytes(Path(given), MAX_TEMPLATE_BYTES).decode("utf-8")
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or ("no UTF-8 text" if isinstance(e, UnicodeError) else e)
        raise UserError(
            f"chat_template={excerpt(given)}: cannot be read ({reason}); expected a Jinja template, or a file that "
            "holds one."
        ) from None


def _ending(source: str, tokens: dict[str, str], base: BaseModel) -> tuple[str, int]:
    """The template, which ends what the assistant says with a token, made to where it does not, and that token.

    Raises ValueError (problem, reason) where the template renders no conversation, `UserError` where there is no token.
    """
    template = ChatTemplate(source, tokens)
    end = end_of_turn(template, base.tokenizer)
    if end is None:
        name = tokens.get("eos_token", "")
        template, end = ChatTemplate(closed(source), tokens), base.tokenizer.token_to_id(name)
        if end is None or f"Answer{name}" not in template([QUESTION, ANSWER]):
            raise UserError(
                "the chat template ends what the assistant says with no special token of the tokenizer, and no "
                f"eos_token can be put there ({name!r} in tokenizer_config.json), so a model could not learn where to "
                "stop. Set chat_template to one that writes such a token after each turn, or name eos_token in the "
                "base model's tokenizer_config.json and run model_import again."
            )
        log.warning(
            "the chat template ends what the assistant says with no token: the eos_token %s is put behind it, in "
            "training and in the template of the tuned model, which stops there",
            name,
        )
        source = template.source
    if not learns_end(template, token := str(base.tokenizer.id_to_token(end)), base.tokenizer):
        raise UserError(
            f"the chat template ends what the assistant says with {token}, but leaves it out of its "
            "{% generation %} part and writes other text before it, so a model could not learn where to stop. Set "
            "chat_template to one whose {% generation %} part holds the token."
        )
    return source, end


def _refuse_calls(data: TaskData, options: ChatCompletionColumns) -> None:
    """Raise `UserError` where training rows have tool calls to learn, for a template that writes none."""
    rows = calling = 0
    for part in data.training("messages"):
        for text in part.to_pylist():
            rows += 1
            calling += '"tool_calls"' in text and any(
                turn.get("tool_calls") for turn in _learnt(json.loads(text), options.loss_on)
            )
    if calling:
        raise UserError(
            f"{'the base model' if options.chat_template is None else 'chat_template'}: the chat template writes no "
            "tool calls with their name and arguments, in any shape that is known, but "
            f"{calling:,} of {rows:,} training rows "
            "have some to learn, which would be learnt as empty answers. Set chat_template to a template that writes "
            "message.tool_calls, or give those turns weight 0."
        )


def _rendered(encoder: ConversationEncoder, rows: Sequence[Row]) -> list[Rendered]:
    """The texts of rows, and what in them is learnt. Raises `UserError` that names those that have none."""
    found, wrong = [], dict[str, list[str]]()
    with memory_limit(TEMPLATE_MEMORY):
        for row in rows:
            try:
                found.append(encoder.spans(json.loads(row["messages"]), json.loads(row["tools"] or "null")))
            except TemplateLimit as e:  # once is enough
                raise UserError(f"{row['row_id']}: {': '.join(e.args)}. Set another chat_template.") from None
            except ValueError as e:
                problem, detail = e.args
                wrong.setdefault(problem, []).append(f"{row['row_id']} ({detail})")
    if not wrong:
        return found
    listed = "; ".join(
        f"{problem} ({len(places)} of {len(rows)} rows: {', '.join(places[:LISTED_ROWS])}"
        f"{f' and {len(places) - LISTED_ROWS} more' if len(places) > LISTED_ROWS else ''})"
        for problem, places in wrong.items()
    )
    raise UserError(f"{listed}. Mend or remove them, or set another chat_template.")
