"""Chat completion: a decoder learns what the assistant says in conversations, written by a chat template."""

from __future__ import annotations

import json
import typing as t
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from tuneport.encoding.base_model import BaseModel
from tuneport.encoding.conversations import end_of_turn, special_tokens, turns_of
from tuneport.encoding.prompts import vocabulary_size
from tuneport.errors import UserError
from tuneport.serving.chat_completer import ChatCompleter
from tuneport.serving.chat_template import ChatTemplate, Turns
from tuneport.step import Params, param
from tuneport.tasks._language_modeling import LanguageModelingTask
from tuneport.tasks.task import Drop, Encoder, Meta, Refuse, Row, TaskData

if t.TYPE_CHECKING:
    import pyarrow as pa
    from tokenizers import Tokenizer

    from tuneport.encoding.conversation_encoder import ConversationEncoder
    from tuneport.encoding.fast_tokenizer import FastTokenizer
    from tuneport.encoding.located import Locate, Spans

COLUMNS = {  # of each chat_format, besides messages
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
}
LISTED_ROWS = 20


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
        "Column that holds the list of tools (JSON schemas) that a conversation may use.", default=None
    )
    chat_template: str | None = param(
        "Jinja chat template, or a file that holds it. Unset: the model's own.", default=None
    )
    loss_on: t.Literal["assistant", "last"] = param(
        "What is learnt of a conversation: each turn of the assistant, or the last one.", default="assistant"
    )


class ChatCompletion(LanguageModelingTask):
    """Fields of a row: ``messages`` and, with ``tools_key``, ``tools``, both as JSON."""

    name = "chat_completion"
    params: t.ClassVar = {"preprocess": ChatCompletionColumns, **LanguageModelingTask.params}
    predictor = ChatCompleter

    def columns(self, options: ChatCompletionColumns) -> dict[str, str]:
        tools = {"tools": options.tools_key} if options.tools_key is not None else {}
        if options.chat_format == "messages":
            return {"messages": options.messages_key, **tools}
        return {name: name for name in COLUMNS[options.chat_format]} | tools

    def hint(self, columns: Sequence[str], options: ChatCompletionColumns) -> str:
        fitting = [shape for shape, wanted in COLUMNS.items() if set(wanted) <= set(columns)]
        fitting += ["messages"] if "messages" in columns else []
        return "".join(f" These columns fit chat_format={s}." for s in fitting[:1] if s != options.chat_format)

    def row_schema(self, options: ChatCompletionColumns) -> pa.Schema:
        import pyarrow as pa

        tools = [("tools", pa.string())] if options.tools_key is not None else []
        return pa.schema([("messages", pa.string()), *tools])

    def reader(self, options: ChatCompletionColumns) -> Callable[[Mapping[str, t.Any], str], Row]:
        check = Turns()

        def read(raw: Mapping[str, t.Any], where: str) -> Row:
            try:
                found = turns_of(raw, options.chat_format, options.messages_key)
                if found is None:
                    raise Drop(
                        f"null in column '{next(c for c in self.columns(options).values() if raw.get(c) is None)}'"
                    )
                row: Row = {"messages": _json(_learnable(check(found), options.loss_on))}
                if options.tools_key is not None:
                    tools = raw.get(options.tools_key)
                    row["tools"] = None if tools in (None, "") else _json(check.parsed(tools, "a list of tools"))
            except ValueError as e:
                raise Refuse(*e.args) from None
            return row

        return read

    def identity(self, row: Row) -> str:
        """All that the assistant does not say."""
        turns = [turn for turn in json.loads(row["messages"]) if turn["role"] != "assistant"]
        return "\n".join([*(f"{turn['role']}: {turn['content']}" for turn in turns), row.get("tools") or ""])

    def describe(self, data: TaskData, base: BaseModel, options: ChatCompletionColumns) -> Meta:
        prompting = self.decoding(base)
        source, tokens = _template(options.chat_template, base), special_tokens(base.tokenizer_config)
        try:
            end = end_of_turn(ChatTemplate(source, tokens), base.tokenizer)
        except ValueError as e:
            raise UserError(
                f"chat_template: {': '.join(e.args)}. Expected one that renders a user's turn and an assistant's; "
                "set chat_template to such a template."
            ) from None
        stop = list(dict.fromkeys([*prompting["stop"], *([] if end is None else [end])]))
        return {
            "vocabulary": vocabulary_size(base),
            "prompting": {**prompting, "stop": stop, "chat_template": source, "tokens": tokens},
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

        template = ChatTemplate(settings["chat_template"], settings["tokens"])
        encode = ConversationEncoder(
            tokenizer, located, template, max_seq_length=settings["max_seq_length"], last=options.loss_on == "last"
        )
        return lambda rows: encode(_spans(encode, rows)).columns()

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

    def written(self, answer: Row) -> str | None:
        return answer.get("content")


def _learnable(turns: list[Row], loss_on: str) -> list[Row]:
    said = [turn for turn in turns if turn["role"] == "assistant"]
    learnt = [turn for turn in (said[-1:] if loss_on == "last" else said) if turn.get("weight", 1)]
    if not learnt:
        raise Drop("no assistant's turn" if not said else "no assistant's turn to learn: all have weight 0")
    if not all(turn["content"].strip() or turn.get("tool_calls") for turn in learnt):
        raise Drop("an assistant's turn without text")
    return turns


def _json(value: t.Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Drop("text that is not valid Unicode") from None
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
        return Path(given).read_text("utf-8")
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or "no UTF-8 text"
        raise UserError(
            f"chat_template={given!r}: cannot be read ({reason}); expected a Jinja template, or a file that holds one."
        ) from None


def _spans(encoder: ConversationEncoder, rows: Sequence[Row]) -> list[tuple[str, Spans]]:
    """The texts of rows, and what in them is learnt. Raises `UserError` that names those that have none."""
    found, wrong = [], dict[str, list[str]]()
    for row in rows:
        try:
            found.append(encoder.spans(json.loads(row["messages"]), json.loads(row.get("tools") or "null")))
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
