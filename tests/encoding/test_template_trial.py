"""Tool calls are given to each template in a shape that it writes whole, in training as in serving."""

import json
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tuneport.encoding.conversation_encoder import ConversationEncoder
from tuneport.encoding.conversations import end_of_turn
from tuneport.encoding.located import library_located
from tuneport.encoding.template_trial import call_shapes, closed, end_of_calls, learns_end
from tuneport.serving.chat_template import ChatTemplate, Turns

BEGIN = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
END = "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
EACH = "{% for c in m.tool_calls or [] %}"
PLAIN = BEGIN + "{{ m.content }}" + END
# Each as the models of that name write tool calls, but for what stands around.
DEEPSEEK = (  # where content is none only; arguments are text
    BEGIN
    + "{% if m.content is none %}"
    + EACH
    + "{{ '<call>' + c.function.name + '\n```json\n' + c.function.arguments }}"
    "{{ '\n```</call>' }}{% endfor %}{% else %}{{ m.content }}{% endif %}" + END
)
HERMES = (  # with or without the level 'function'; arguments are an object
    BEGIN + "{{ m.content }}" + EACH + "{% if c.function %}{% set c = c.function %}{% endif %}"
    "{{ '<tool_call>{\"name\": \"' + c.name + '\", \"arguments\": ' }}{{ c.arguments | tojson }}{{ '}</tool_call>' }}"
    "{% endfor %}" + END
)
QWEN3 = (  # either kind of arguments
    BEGIN + "{{ m.content or '' }}" + EACH + "{% if c.function %}{% set c = c.function %}{% endif %}{{ c.name + ' ' }}"
    "{% if c.arguments is string %}{{ c.arguments }}{% else %}{{ c.arguments | tojson }}{% endif %}{% endfor %}" + END
)
CODER = (  # a tag for each argument
    BEGIN + "{{ m.content or '' }}" + EACH + "{{ '<function=' + c.function.name + '>' }}"
    "{% for k, v in c.function.arguments | items %}{{ '<parameter=' + k + '>' }}"
    "{{ v if v is string else v | tojson }}{{ '</parameter>' }}{% endfor %}{{ '</function>' }}{% endfor %}" + END
)
LLAMA = (  # content is never written beside calls; one call at most
    BEGIN + "{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one call') }}{% endif %}"
    '{% set c = m.tool_calls[0].function %}{{ \'{"name": "\' + c.name + \'", "parameters": \' }}'
    "{{ c.arguments | tojson }}{{ '}' }}{% else %}{{ m.content }}{% endif %}" + END
)
MISTRAL = (  # asks for ids of nine characters, and for content as text
    BEGIN + "{{ m.content + '' }}{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}"
    "{{ raise_exception('id') }}{% endif %}{{ '[TOOL_CALLS]' }}{{ c.function | tojson }}{% endfor %}" + END
)
PRINTING = BEGIN + "{{ m.content or '' }}" + EACH + "{{ c.function.name }} {{ c.function.arguments }}{% endfor %}" + END
WRITTEN = {
    DEEPSEEK: '<call>f\n```json\n{"a": 1, "b": null}\n```</call>',
    HERMES: '<tool_call>{"name": "f", "arguments": {"a": 1, "b": null}}</tool_call>',
    QWEN3: 'f {"a": 1, "b": null}',
    CODER: "<function=f><parameter=a>1</parameter><parameter=b>null</parameter></function>",
    LLAMA: '{"name": "f", "parameters": {"a": 1, "b": null}}',
    PRINTING: 'f {"a": 1, "b": null}',
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    special = ["</s>", "<|im_start|>", "<|im_end|>", "<|eom|>", "<|call|>"]
    vocabulary = {token: i for i, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    found = Tokenizer(models.BPE(vocabulary, []))
    found.add_special_tokens(special)
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    found.decoder = decoders.ByteLevel()
    return found


def tried(source: str) -> ChatTemplate:
    return ChatTemplate(source, {"eos_token": "</s>"}, call_shapes(ChatTemplate(source, {"eos_token": "</s>"})))


def learnt(
    tokenizer: Tokenizer, source: str, turns: list[dict[str, Any]], tools: Any = None
) -> tuple[list[str], list[str]]:
    """What is learnt of a conversation, and what is said of it."""
    encode = ConversationEncoder(
        tokenizer, library_located(tokenizer), tried(source), max_seq_length=1000, last=False, stop=[0, 2]
    )
    row = encode.spans(Turns()(turns), tools)
    return [row.text[start:end] for start, end in row.spans], list(encode([row]).columns()["notes"][0])


def calling(*calls: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": list(calls), **more}]


@pytest.mark.parametrize("content", [None, ""])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("source", WRITTEN, ids=["deepseek", "hermes", "qwen3", "coder", "llama", "printing"])
def test_a_call_is_written_whole_and_once_in_whatever_shape_it_came(
    source: str, text: bool, flat: bool, content: str | None, tokenizer: Tokenizer
) -> None:
    arguments: Any = {"a": 1, "b": None}
    function = {"name": "f", "arguments": json.dumps(arguments) if text else arguments}
    call = function if flat else {"type": "function", "function": function}
    turns = calling(call, content=content)
    assert learnt(tokenizer, source, turns)[0] == [WRITTEN[source] + "<|im_end|>"]
    served = tried(source)(Turns()(turns))  # as a request's earlier turns are
    assert f"assistant\n{WRITTEN[source]}<|im_end|>" in served


def test_what_came_in_a_shape_that_the_template_writes_is_not_touched(tokenizer: Tokenizer) -> None:
    spaced = '{ "a":1,  "b" : null }'
    found, notes = learnt(tokenizer, QWEN3, calling({"function": {"name": "f", "arguments": spaced}}))
    assert (found, notes) == ([f"f {spaced}<|im_end|>"], [])
    call = {"id": "abcdefghi", "function": {"name": "f", "arguments": {"a": 1}, "extra": None}}
    found, notes = learnt(tokenizer, MISTRAL, calling(call, content=""))
    assert found == ['[TOOL_CALLS]{"name": "f", "arguments": {"a": 1}, "extra": null}<|im_end|>'] and not notes


def test_the_older_name_of_one_call_is_known(tokenizer: Tokenizer) -> None:
    call = {"name": "f", "arguments": '{"a": 1}'}
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "function_call": call}]
    assert learnt(tokenizer, QWEN3, turns) == (['f {"a": 1}<|im_end|>'], [])
    assert learnt(tokenizer, LLAMA, turns)[0] == ['{"name": "f", "parameters": {"a": 1}}<|im_end|>']


def test_what_has_to_be_reshaped_is_said(tokenizer: Tokenizer) -> None:
    _, notes = learnt(tokenizer, DEEPSEEK, calling({"name": "f", "arguments": {"a": 1}}, content=""))
    assert [note.partition(" (the data has ")[0] for note in notes] == [
        "tool calls are given to the chat template with content null",
        "tool calls are given to the chat template with name and arguments under 'function'",
        "tool calls are given to the chat template with arguments as JSON text",
    ]


def test_a_template_that_writes_no_calls_has_no_shape_for_them(tokenizer: Tokenizer) -> None:
    assert call_shapes(ChatTemplate(PLAIN, {})) == []
    names_only = PLAIN.replace("{{ m.content }}", "{{ m.content or '' }}" + EACH + "{{ c.function.name }}{% endfor %}")
    assert call_shapes(ChatTemplate(names_only, {})) == []


@pytest.mark.parametrize(
    ("source", "turn", "lost"),
    [
        (
            PLAIN.replace("m.content }}", "m.content.split('</think>')[-1] }}"),
            {"content": "<think>x</think>y"},
            "content",
        ),
        (PLAIN.replace("m.content }}", "m.content | upper }}"), {"content": "why"}, "content"),
        (PLAIN.replace("m.content }}", "m.content[:3] }}"), {"content": "because"}, "content"),
        (PLAIN.replace("m.content }}", "m.content[:3] }}"), {"content": "because " * 20}, "content"),
        (
            PLAIN.replace(
                "{{ m.content }}", "{% generation %}{{ m.content[:3] }}{% endgeneration %}{{ m.content[3:] }}"
            )
            .replace("{% generation %}", "{% if m.role == 'assistant' %}{% generation %}")
            .replace("{% endgeneration %}", "{% endgeneration %}{% else %}{{ m.content[:3] }}{% endif %}"),
            {"content": "because"},
            "content",
        ),
        (LLAMA, {"content": "Wait.", "tool_calls": [{"name": "f", "arguments": "{}"}]}, "its content"),
        (DEEPSEEK, {"content": "Wait.", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}, "call 'f'"),
        (
            QWEN3.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]"),
            {"tool_calls": [{"name": "f", "arguments": {}}, {"name": "f", "arguments": {}}]},
            "call 'f'",
        ),
        (
            HERMES.replace("c.arguments | tojson", "dict(c.arguments.items() | rejectattr('1', 'none')) | tojson"),
            {"tool_calls": [{"name": "f", "arguments": {"a": 1, "b": None}}]},
            "argument 'b'",
        ),
        (
            CODER.replace("v | tojson", "(v | int if v == 1.5 else v | tojson)"),
            {"tool_calls": [{"name": "f", "arguments": {"a": 1.5}}]},
            "value 1.5 of the argument 'a'",
        ),
    ],
)
def test_what_a_template_leaves_out_of_an_answer_is_refused(
    source: str, turn: dict[str, Any], lost: str, tokenizer: Tokenizer
) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, **turn}]
    with pytest.raises(ValueError, match="does not write in full") as e:
        learnt(tokenizer, source, turns)
    assert e.value.args[1].startswith("turn 2: ") and lost in e.value.args[1]
    learnt(tokenizer, source, [turns[0], {**turns[1], "weight": 0}, turns[0], {"role": "assistant", "content": "ABC"}])


def test_arguments_that_are_no_json_are_refused_where_an_object_is_needed(tokenizer: Tokenizer) -> None:
    turns = calling({"function": {"name": "f", "arguments": "{oops"}})
    with pytest.raises(ValueError, match="whose arguments are not JSON") as e:
        learnt(tokenizer, HERMES, turns)
    assert e.value.args[1] == "turn 2: '{oops'"
    assert learnt(tokenizer, DEEPSEEK, turns)[0] == ["<call>f\n```json\n{oops\n```</call><|im_end|>"]


@pytest.mark.parametrize(
    ("source", "turns", "note"),
    [
        (
            PLAIN,
            [{"role": "assistant", "content": "a", "reasoning_content": "hm"}],
            "not write 'reasoning_content' of an",
        ),
        (PLAIN, [{"role": "assistant", "content": "a", "mood": 3}], "does not write 'mood' of an answer"),
        (
            PLAIN,
            [{"role": "user", "content": "a", "name": "Ann"}],
            "does not write 'name' of turns that are not learnt",
        ),
        (PLAIN, [{"role": "user", "content": "a", "train": True}], "role user is marked to be learnt: only the assis"),
        (
            PLAIN.replace("messages %}", "messages if m.role != 'tool' %}"),
            [{"role": "tool", "content": "rain"}],
            "does not write the text of a turn of role tool",
        ),
        (
            PLAIN.replace("m.content }}", "m.content.split() | join(' ') }}"),
            [{"role": "assistant", "content": "a\n\nb"}],
            "white space",
        ),
        (
            CODER.replace("v | tojson", "v | string"),
            calling({"name": "f", "arguments": {"a": True}})[1:],
            "in Python's notation",
        ),
        (
            CODER.replace("v | tojson", "v | string"),
            calling({"name": "f", "arguments": {"a": {"b": "c"}}})[1:],
            "in Python's notation",
        ),
    ],
)
def test_what_is_not_learnt_though_it_was_given_is_said(
    source: str, turns: list[dict[str, Any]], note: str, tokenizer: Tokenizer
) -> None:
    talk = [{"role": "user", "content": "q"}, *turns, {"role": "assistant", "content": "end"}]
    assert any(note in said for said in learnt(tokenizer, source, talk)[1])


def test_keys_that_the_template_writes_and_links_are_not_mentioned(tokenizer: Tokenizer) -> None:
    thinking = PLAIN.replace("{{ m.content }}", "{{ (m.reasoning_content or '') + m.content }}")
    talk = [
        {"role": "user", "content": "q"},
        {"role": "tool", "content": "rain", "tool_call_id": "x", "name": "f"},
        {"role": "assistant", "content": "a", "reasoning_content": "hm "},
    ]
    assert learnt(tokenizer, thinking, talk) == (["hm a<|im_end|>"], [])
    assert learnt(tokenizer, PLAIN, [*talk[:2], {"role": "assistant", "content": "a"}])[1] == []


def test_tools_that_the_template_does_not_write_are_said(tokenizer: Tokenizer) -> None:
    talk, tools = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], [{"name": "weather"}]
    assert learnt(tokenizer, PLAIN, talk, tools)[1] == [
        "the chat template does not write the tools that a conversation may use"
    ]
    assert learnt(tokenizer, "{{ tools | tojson }}" + PLAIN, talk, tools)[1] == []


def test_an_answer_that_the_generation_prompt_begins_is_whole(tokenizer: Tokenizer) -> None:
    thinking = PLAIN.replace("assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif")
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>\nhm</think>a"}]
    assert learnt(tokenizer, thinking, talk)[0] == ["hm</think>a<|im_end|>"]


MARKED = (
    BEGIN
    + (
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{{ AFTER }}"
        "{% else %}{{ m.content }}{% endif %}"
    )
    + END
)


def test_an_end_behind_the_generation_mark_is_learnt_and_said(tokenizer: Tokenizer) -> None:
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "yes"}] * 2
    found, notes = learnt(tokenizer, MARKED.replace("{{ AFTER }}", ""), talk)
    assert found == ["yes<|im_end|>", "yes<|im_end|>"] and "behind the template's {% generation %} part" in notes[0]
    assert len(notes) == 1
    far = MARKED.replace("{{ AFTER }}", "{{ ' (end)' }}")
    assert learnt(tokenizer, far, talk)[0] == ["yes", "yes"]
    assert "closed by no token that ends the generation" in learnt(tokenizer, far, talk)[1][0]
    near = tried(MARKED.replace("{{ AFTER }}", "{{ '\n<|eom|>' }}"))
    assert learns_end(tried(PLAIN), "<|im_end|>", tokenizer) and learns_end(near, "<|im_end|>", tokenizer)
    assert learnt(tokenizer, near.source, talk)[0] == ["yes\n<|eom|><|im_end|>"] * 2
    assert not learns_end(tried(far), "<|im_end|>", tokenizer)


def test_a_marked_answer_that_is_asked_for_otherwise_is_said(tokenizer: Tokenizer) -> None:
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "yes"}]
    thinking = MARKED.replace("{{ AFTER }}", "").replace("assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif")
    assert any("asks for an answer otherwise" in note for note in learnt(tokenizer, thinking, talk)[1])


def test_only_rows_without_an_end_are_said_to_lack_it_and_cut_ones_are_not(tokenizer: Tokenizer) -> None:
    some = PLAIN.replace("{{ '<|im_end|>\n' }}", "{{ '<|im_end|>\n' if 'open' not in m.content else '\n' }}")
    encode = ConversationEncoder(
        tokenizer, library_located(tokenizer), tried(some), max_seq_length=40, last=False, stop=[0, 2]
    )
    talks = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": c}] for c in ("a", "open", "x" * 99)]
    notes = encode([encode.spans(talk) for talk in talks]).columns()["notes"]
    assert [len(of_row) for of_row in notes] == [0, 1, 0] and "closed by no token" in notes[1][0]


def test_the_end_of_a_turn_of_calls_is_a_token_of_its_own_unless_it_ends_each_call(tokenizer: Tokenizer) -> None:
    ends = {
        HERMES: "<|im_end|>",
        LLAMA.replace("{{ '}' }}", "{{ '}<|eom|>' }}").replace(
            "'<|im_end|>\n'", "'' if m.tool_calls else '<|im_end|>'"
        ): "<|eom|>",
        HERMES.replace("}</tool_call>", "}<|call|>").replace("'<|im_end|>\n'", "''"): None,
    }
    for source, end in ends.items():
        assert end_of_calls(tried(source), tokenizer) == (None if end is None else tokenizer.token_to_id(end))


def test_a_template_without_an_end_is_given_one_that_transformers_writes_too(tokenizer: Tokenizer) -> None:
    from transformers import PreTrainedTokenizerFast

    spelt = "  {% for m in messages %}{{ m.role + ': ' + (m.content or '') + '\n' }}{% endfor %}"
    spelt += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    assert end_of_turn(ChatTemplate(spelt, {"eos_token": "</s>"}), tokenizer) is None
    mended = ChatTemplate(closed(spelt), {"eos_token": "</s>"})
    assert end_of_turn(mended, tokenizer) == tokenizer.token_to_id("</s>")
    talk: list[dict[str, Any]] = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    text = mended(talk, add_generation_prompt=True)
    assert text == "user: a\nassistant: b</s>\nuser: c\nassistant: " and talk[1]["content"] == "b"
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    assert text == theirs.apply_chat_template(
        talk, chat_template=closed(spelt), add_generation_prompt=True, tokenize=False
    )
    assert learnt(tokenizer, closed(spelt), talk[:2])[0] == ["b</s>"]
    unknown = spelt.replace("'\n' }}{% endfor", "'[END]\n' }}{% endfor")
    assert learnt(tokenizer, closed(unknown), talk[:2]) == (["b</s>"], [])


def test_a_template_that_forgets_the_answer_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="does not write what the assistant says"):
        end_of_turn(ChatTemplate("{{ messages[0].content }}", {}), tokenizer)


def test_a_template_that_is_nested_too_deep_is_none() -> None:
    with pytest.raises(ValueError, match="a chat template that is no Jinja template"):
        ChatTemplate("{{ " + "[" * 3000, {})
