"""Conversations are rendered as transformers renders them, with labels on what the assistant says alone."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tuneport.encoding.conversation_encoder import ConversationEncoder
from tuneport.encoding.conversations import end_of_turn, passed_over, special_tokens, turns_of
from tuneport.encoding.located import library_located
from tuneport.encoding.template_trial import call_shapes
from tuneport.labels import IGNORED
from tuneport.serving.chat_template import ChatTemplate, Turns

IM_END = 3
TOKENS = {"bos_token": "<s>", "eos_token": "<|im_end|>"}
# As SmolLM2 has it.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# With tools, the begin of the text, white space control and the assistant's parts marked.
MARKED = """\
{{- bos_token }}
{%- if tools %}
    {{- '<|im_start|>system\n' + tools | tojson(indent=1) + strftime_now('%Y') + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role not in ['system', 'user', 'assistant', 'tool'] %}{{ raise_exception('role') }}{% endif %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}
        {{- message.content | trim }}
        {%- for call in message.tool_calls or [] %}{{ '[' + call.function | tojson + ']' }}{% endfor %}
        {{- '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\n' }}
        {%- continue %}
    {%- endif %}
    {{- message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
"""
UNMARKED = MARKED.replace("{%- generation %}", "").replace("{%- endgeneration %}", "")
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Is it > 3 °C & <dry>?"}}]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Örebro"}}}
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi <b>you</b> 👋"},
    {"role": "assistant", "content": "Hello!\n"},
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"t": 3}'},
    {"role": "assistant", "content": "3 °C"},
]
PLAIN = [{k: v for k, v in turn.items() if k != "tool_calls"} for turn in TALK if turn["role"] != "tool"]


@pytest.fixture
def tokenizer() -> Tokenizer:
    special = ["<pad>", "<s>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: i for i, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def learnt(tokenizer: Tokenizer, row: Any) -> list[str]:
    """The runs of labels as text."""
    runs: list[list[int]] = [[]]
    for label, token in zip(row.labels, row.input_ids, strict=True):
        assert label in (IGNORED, token)
        if label == IGNORED:
            runs.append([])
        else:
            runs[-1].append(label)
    return [tokenizer.decode(run, skip_special_tokens=False) for run in runs if run]


class Encoded(NamedTuple):
    input_ids: list[int]
    labels: list[int]
    truncated: bool
    trainable: bool
    notes: list[str]


def encoder(
    tokenizer: Tokenizer, template: str, *, max_tokens: int = 1000, last: bool = False
) -> Callable[..., Encoded]:
    encode = ConversationEncoder(
        tokenizer,
        library_located(tokenizer),
        ChatTemplate(template, TOKENS, call_shapes(ChatTemplate(template, TOKENS))),
        max_seq_length=max_tokens,
        last=last,
        stop=[IM_END],
    )

    def encoded(turns: Any, tools: Any = None) -> Encoded:
        columns = encode([encode.spans(turns, tools)]).columns()
        listed = {name: v if isinstance(v, list) else v.tolist() for name, v in columns.items()}
        return Encoded(*(listed[name][0] for name in Encoded._fields))

    return encoded


@pytest.mark.parametrize("template", [CHATML, MARKED, UNMARKED])
@pytest.mark.parametrize("ask", [False, True])
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_a_text_equals_that_of_transformers(template: str, ask: bool, tools: Any, tokenizer: Tokenizer) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **TOKENS)
    wanted = theirs.apply_chat_template(
        TALK, tools=tools, chat_template=template, add_generation_prompt=ask, tokenize=False
    )
    assert ChatTemplate(template, special_tokens(TOKENS))(TALK, tools, add_generation_prompt=ask) == wanted


@pytest.mark.parametrize("tools", [None, TOOLS])
def test_ids_and_mask_equal_those_of_transformers_and_of_prefix_rendering(tools: Any, tokenizer: Tokenizer) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **TOKENS).apply_chat_template(
        TALK, tools=tools, chat_template=MARKED, return_dict=True, return_assistant_tokens_mask=True
    )
    row = encoder(tokenizer, MARKED)(TALK, tools)
    assert row.input_ids == theirs["input_ids"][: len(row.input_ids)]
    assert tokenizer.decode(theirs["input_ids"][len(row.input_ids) :]) == ""
    assert [label != IGNORED for label in row.labels] == [bool(i) for i in theirs["assistant_masks"]]
    assert encoder(tokenizer, UNMARKED)(TALK, tools) == row


def test_the_answers_and_their_end_are_learnt_and_no_white_space_after_it(tokenizer: Tokenizer) -> None:
    call = '[{"name": "weather", "arguments": {"city": "Örebro"}}]'
    for template in (MARKED, UNMARKED):
        found = learnt(tokenizer, encoder(tokenizer, template)(TALK))
        assert found == ["Hello!<|im_end|>", f"{call}<|im_end|>", "3 °C<|im_end|>"]
    assert learnt(tokenizer, encoder(tokenizer, CHATML)(PLAIN[:3])) == ["Hello!\n<|im_end|>"]


def test_one_turn_token_by_token(tokenizer: Tokenizer) -> None:
    row = encoder(tokenizer, CHATML)([{"role": "user", "content": "a"}, {"role": "assistant", "content": "bc"}])
    shown = [
        (tokenizer.decode([i], skip_special_tokens=False), label != IGNORED)
        for i, label in zip(row.input_ids, row.labels, strict=True)
    ]
    system = ["<|im_start|>", *"system\nYou help.", "<|im_end|>", "\n"]
    asked = [*system, "<|im_start|>", *"user\na", "<|im_end|>", "\n", "<|im_start|>", *"assistant\n"]
    assert shown == [
        *((token, False) for token in asked),
        ("b", True),
        ("c", True),
        ("<|im_end|>", True),
        ("\n", False),
    ]


@pytest.mark.parametrize("template", [MARKED, UNMARKED])
def test_turns_of_weight_0_are_read_but_not_learnt_and_last_learns_one(template: str, tokenizer: Tokenizer) -> None:
    turns = [dict(turn) for turn in TALK]
    turns[2]["weight"] = 0
    assert len(learnt(tokenizer, encoder(tokenizer, template)(turns))) == 2
    assert encoder(tokenizer, template)(turns).input_ids == encoder(tokenizer, template)(TALK).input_ids
    assert learnt(tokenizer, encoder(tokenizer, template, last=True)(TALK)) == ["3 °C<|im_end|>"]


def test_a_conversation_ends_with_the_last_answer_that_is_learnt(tokenizer: Tokenizer) -> None:
    more = [*TALK, {"role": "user", "content": "Thanks"}]
    assert encoder(tokenizer, MARKED)(more) == encoder(tokenizer, MARKED)(TALK)


def test_a_long_conversation_loses_its_end(tokenizer: Tokenizer) -> None:
    whole = encoder(tokenizer, MARKED)(TALK)
    cut = encoder(tokenizer, MARKED, max_tokens=60)(TALK)
    assert cut.truncated and not whole.truncated and cut.trainable
    assert (cut.input_ids, cut.labels) == (whole.input_ids[:60], whole.labels[:60])
    assert not encoder(tokenizer, MARKED, max_tokens=20)(TALK).trainable


def test_a_template_that_changes_earlier_turns_is_refused_unless_the_last_is_learnt(tokenizer: Tokenizer) -> None:
    def only(condition: str) -> str:
        return CHATML.replace("message['content']", f"(message['content'] if loop.last or {condition} else '')", 1)

    forgets_answers, forgets_questions = only("message.role != 'assistant'"), only("message.role == 'assistant'")
    turns = [*PLAIN[:4], {"role": "assistant", "content": "3"}]
    with pytest.raises(ValueError, match=r"earlier turns that the chat template changes.*loss_on=last") as e:
        encoder(tokenizer, forgets_answers)(turns)
    assert e.value.args[1] == "turn 3"
    assert learnt(tokenizer, encoder(tokenizer, forgets_answers, last=True)(turns)) == ["3<|im_end|>"]
    with pytest.raises(ValueError, match="otherwise than it asks for them") as e:
        encoder(tokenizer, forgets_questions, last=True)(turns)
    assert e.value.args[1] == "turn 5"


def test_a_template_that_raises_is_named_with_its_reason(tokenizer: Tokenizer) -> None:
    picky = ChatTemplate("{{ raise_exception('no system, please') }}", TOKENS)
    with pytest.raises(ValueError, match="does not take") as e:
        picky(TALK)
    assert e.value.args[1] == "TemplateError: no system, please"
    with pytest.raises(ValueError, match="is no Jinja template"):
        ChatTemplate("{% for %}", TOKENS)


def test_a_template_cannot_reach_python() -> None:
    with pytest.raises(ValueError, match="SecurityError"):
        ChatTemplate("{{ messages.__class__.__mro__[1].__subclasses__() }}", TOKENS)(TALK)


def test_the_end_of_a_turn_is_a_special_token(tokenizer: Tokenizer) -> None:
    assert end_of_turn(ChatTemplate(CHATML, TOKENS), tokenizer) == tokenizer.token_to_id("<|im_end|>")
    spelt = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    assert end_of_turn(ChatTemplate(spelt, TOKENS), tokenizer) is None


def test_turns_come_as_lists_or_json_and_stay_as_they_are_but_for_parts_and_weights() -> None:
    call = {"function": {"name": "f", "arguments": '{"a": null}'}}
    schema = {"name": "f", "arguments": {"a": None, "b": [None]}}
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": None},
        {"role": "assistant", "content": None, "tool_calls": [call, schema], "train": False},
        {"role": "assistant", "content": "", "tool_calls": json.dumps([call]), "train": True, "weight": 0},
    ]
    wanted = [
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": None, "tool_calls": [call, schema], "weight": 0},
        {"role": "assistant", "content": "", "tool_calls": [call], "weight": 0},
    ]
    assert Turns()(turns) == Turns()(json.dumps(turns)) == wanted


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("hello", "text that is not JSON; expected a list of turns"),
        ({"a": 1}, "no list of turns"),
        ([], "a conversation without turns"),
        ([{"role": "system", "content": "x"}], "a conversation without turns"),
        ([{"role": "assistant", "content": "x"}], "a conversation that the assistant begins"),
        ([{"role": "bot", "content": "x"}], "an unknown role; expected one of system, user, assistant, tool"),
        ([{"content": "x"}], "a turn without a role"),
        ([{"role": "user", "content": None}], "a turn whose content is not text"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "a turn whose content is not text"),
        ([{"role": "user", "content": "x", "weight": 0.5}], "a weight that is neither 0 nor 1"),
        ([{"role": "user", "content": "x", "train": "no"}], "a train that is neither 0 nor 1"),
        ([{"role": "user", "content": "x", "tool_calls": [{"function": {"a": 1}}]}], "tool calls without a name"),
        ([{"role": "user", "content": "x", "tool_calls": {"name": "f"}}], "tool calls without a name"),
        ([{"role": "user", "content": "x", "tool_calls": [None]}], "tool calls without a name"),
    ],
)
def test_bad_turns_are_refused(value: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Turns()(value)


def test_other_shapes_become_the_same_turns() -> None:
    asked, said = {"role": "user", "content": "Add.\n\n1, 2"}, {"role": "assistant", "content": "3"}
    share = [{"from": "human", "value": "Add.\n\n1, 2"}, {"from": "gpt", "value": "3"}]
    rows: dict[str, dict[str, Any]] = {
        "messages": {"talk": [asked, said]},
        "sharegpt": {"conversations": share},
        "alpaca": {"instruction": "Add.", "input": "1, 2", "output": "3"},
        "prompt_completion": {"prompt": "Add.\n\n1, 2", "completion": "3"},
    }
    for shape, row in rows.items():
        assert turns_of(row, shape, "talk") == [asked, said], shape
    assert turns_of({"instruction": "Add.", "input": "", "output": "3"}, "alpaca", "")[0]["content"] == "Add."
    lists = {"prompt": [asked, said, asked], "completion": [said]}
    assert turns_of(lists, "prompt_completion", "") == [asked, {**said, "weight": 0}, asked, said]
    assert all(turns_of({}, shape, "talk") is None for shape in rows)


def test_a_system_column_is_the_first_turn_unless_the_conversation_has_one() -> None:
    share = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "train": False, "weight": 1}]
    system, own = {"role": "system", "content": "S"}, {"from": "system", "value": "own"}
    asked = {"role": "user", "content": "a"}
    said = {"role": "assistant", "content": "b", "train": False, "weight": 1}
    row = {"conversations": share, "system": "S"}
    assert turns_of(row, "sharegpt", "") == [system, asked, said]
    assert Turns()(turns_of(row, "sharegpt", ""))[-1]["weight"] == 0
    assert turns_of({**row, "system": " "}, "sharegpt", "") == [asked, said]
    first = turns_of({**row, "conversations": [own, *share]}, "sharegpt", "")
    assert first == [{"role": "system", "content": "own"}, asked, said]
    assert passed_over(row, "sharegpt", [system, asked]) == []
    assert "has a system turn of its own" in passed_over(row, "sharegpt", first)[0]
    with pytest.raises(ValueError, match="column 'system' holds no text"):
        turns_of({**row, "system": ["S"]}, "sharegpt", "")


@pytest.mark.parametrize("history", [[["a", "b"], ["c", "d"]], '[["a", "b"], ["c", "d"]]'])
def test_the_history_of_alpaca_is_earlier_turns_which_are_learnt_too(history: Any) -> None:
    row = {"instruction": "e", "input": "", "output": "f", "system": "S", "history": history}
    turns = turns_of(row, "alpaca", "")
    assert [turn["content"] for turn in turns] == ["S", *"abcdef"]
    assert [turn["role"] for turn in turns] == ["system", *["user", "assistant"] * 3]
    assert not any("weight" in turn for turn in turns) and passed_over(row, "alpaca", turns) == []
    for nothing in (None, "", [], "[]"):
        assert len(turns_of({**row, "history": nothing}, "alpaca", "")) == 3


@pytest.mark.parametrize("history", [[["a"]], [["a", None]], [{"user": "a"}], {"a": "b"}, 3])
def test_another_history_is_refused(history: Any) -> None:
    with pytest.raises(ValueError, match=r"column 'history' holds no list of \[question, answer\]"):
        turns_of({"instruction": "e", "output": "f", "history": history}, "alpaca", "")


def test_columns_that_other_shapes_use_are_passed_over_by_name() -> None:
    row = {"messages": [], "system": "S", "history": [["a", "b"]], "other": 1}
    assert passed_over(row, "messages", []) == [
        "the column 'system' is not used with chat_format=messages",
        "the column 'history' is not used with chat_format=messages",
    ]
    assert passed_over({"messages": [], "system": None, "history": []}, "messages", []) == []
