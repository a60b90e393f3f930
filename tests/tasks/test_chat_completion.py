"""Chat completion from conversations to answers, on a tiny Llama and a GPT-2 without special tokens of its own."""

import csv
import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import steps
from tuneport import tasks
from tuneport.artifacts import CustomModel, Model
from tuneport.data.prepared import Prepared
from tuneport.errors import UserError
from tuneport.stage import execute

TASK = "chat_completion"
COLOURS = {"cat": "red", "dog": "blue", "cow": "green", "hen": "pink"}
CHATML = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nHelp.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOKENS: dict[str, dict[str, Any]] = {"llama": {}, "gpt2": {"eos_token": None}}
IM_END = 4
GENERATION = {"max_new_tokens": 8}


def talk(i: int, animals: list[str]) -> list[dict[str, Any]]:
    turns = []
    for n, animal in enumerate(animals):
        turns += [{"role": "user", "content": f"{i + n} {animal}"}, {"role": "assistant", "content": COLOURS[animal]}]
    return turns


def rows(count: int = 80) -> list[dict[str, Any]]:
    rng = random.Random(0)
    return [{"messages": talk(i, rng.choices(list(COLOURS), k=1 + i % 2))} for i in range(count)]


def prepare(model: Path, data: Path, output: Path, **values: Any) -> Prepared:
    stage = steps.load("preprocess", TASK)
    execute(stage(model_selector_output=model, train_file_path=data, preprocess_output=output, **values))
    return Prepared(output)


@pytest.fixture(scope="session")
def chat_model(decoder: Any) -> Path:
    return Path(decoder("llama", CHATML))


@pytest.fixture(scope="session", params=["llama", "gpt2"])
def run(request: pytest.FixtureRequest, decoder: Any, write_jsonl: Any, tmp_path_factory: Any) -> SimpleNamespace:
    """All stages but the registration."""
    folder, model = tmp_path_factory.mktemp("run"), decoder(request.param, CHATML, **TOKENS[request.param])
    data = write_jsonl(folder / "rows.jsonl", rows())
    prepared = prepare(model, data, folder / "data", test_split_ratio=0.2)
    inputs = {"model_selector_output": model, "preprocess_output": prepared.path, "per_device_eval_batch_size": 16}
    tuned, exported, report = folder / "tuned", folder / "exported", folder / "report"
    values = {"num_train_epochs": 24, "per_device_train_batch_size": 8, "learning_rate": 1e-2}
    execute(
        steps.load("finetune", TASK)(**inputs, **values, metric_for_best_model="perplexity", pytorch_model_folder=tuned)
    )
    execute(
        steps.load("model_export", TASK)(
            pytorch_model_folder=tuned, preprocess_output=prepared.path, mlflow_model_folder=exported, **GENERATION
        )
    )
    execute(
        steps.load("model_evaluation", TASK)(
            **inputs, pytorch_model_folder=tuned, evaluation_result=report, generated_samples=6, **GENERATION
        )
    )
    return SimpleNamespace(
        name=request.param, model=model, prepared=prepared, tuned=tuned, exported=exported, report=report
    )


def predictor(run: SimpleNamespace) -> Any:
    task = tasks.load(TASK)
    return task.predictor(str(run.tuned), task.settings(run.prepared.info.meta, SimpleNamespace(**GENERATION)))


def test_the_scores_equal_the_models_own_loss(run: SimpleNamespace) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    found = json.loads((run.report / "metrics.json").read_text())
    for who, folder in (("tuned", run.tuned), ("base", run.model)):
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        losses = tokens = 0.0
        for row in run.prepared.encoded("test").to_pylist():
            labels = torch.tensor([row["labels"]])
            with torch.inference_mode():
                loss = model(input_ids=torch.tensor([row["input_ids"]]), labels=labels).loss.item()
            n = int((labels[:, 1:] != -100).sum())
            losses, tokens = losses + n * loss, tokens + n
        assert found[who]["metrics"]["loss"] == pytest.approx(losses / tokens, rel=1e-4)
        assert found[who]["metrics"]["perplexity"] == pytest.approx(math.exp(losses / tokens), rel=1e-3)


def test_the_tuned_model_answers_with_the_colours_and_stops_at_the_end_of_its_turn(run: SimpleNamespace) -> None:
    stop = run.prepared.info.meta["prompting"]["stop"]
    assert stop == ([2, IM_END] if run.name == "llama" else [IM_END])
    lines = [json.loads(line) for line in (run.report / "predictions.jsonl").read_text().splitlines()]
    answered = [line for line in lines if "content" in line["tuned"]]
    assert len(answered) == 6 < len(lines)
    right = [line["tuned"]["content"] == json.loads(line["messages"])[-1]["content"] for line in answered]
    assert sum(right) >= (5 if run.name == "llama" else 3) and all(
        line["tuned"]["role"] == "assistant" for line in answered
    )
    found = json.loads((run.report / "metrics.json").read_text())
    losses = [found["tuned"], *found["baselines"].values(), found["base"]]
    assert sorted(losses, key=lambda scores: scores["metrics"]["loss"]) == losses and len(losses) == 3
    page = (run.report / "report.html").read_text("utf-8")
    assert "6 test rows, the worst answer first" in page and "user: " in page


def test_preprocess_and_predictor_write_the_same_prompt(run: SimpleNamespace) -> None:
    predict, task = predictor(run), tasks.load(TASK)
    for row, encoded in zip(run.prepared.rows("test"), run.prepared.encoded("test").to_pylist(), strict=True):
        prompt = predict._prompt(task.example(row), 256)
        assert encoded["input_ids"][: len(prompt)] == prompt
        assert encoded["labels"][len(prompt)] != -100 == encoded["labels"][len(prompt) - 1]


def test_batches_answer_as_single_rows_do(run: SimpleNamespace) -> None:
    asked = [{"messages": talk(i, ["cat", "hen", "dog"][: 1 + i % 3])[:-1]} for i in range(5)]
    predict = predictor(run)
    assert predict(asked, batch_size=4) == [predict([row])[0] for row in asked]


def test_an_answer_says_how_many_tokens_were_read_and_written_and_why_it_ended(run: SimpleNamespace) -> None:
    asked, predict = [{"messages": talk(i, ["cat"])[:-1]} for i in range(3)], predictor(run)
    ended = predict.completions(asked)
    cut = predict.completions(asked, max_new_tokens=1)
    assert [answer["prompt_tokens"] for answer in ended] == [len(predict._prompt(row, 256)) for row in asked]
    for answer, short in zip(ended, cut, strict=True):
        ids = predict.generator.tokenizer.encode(answer["content"], add_special_tokens=False).ids
        assert (answer["finish_reason"], answer["completion_tokens"]) == ("stop", len(ids) + 1)
        assert (short["finish_reason"], short["completion_tokens"]) == ("length", 1)


@pytest.mark.parametrize(("stop", "expected"), [([2], (5, "length")), ([2, 0], (1, "stop"))])
def test_an_answer_of_which_nothing_is_shown_counts_what_was_written(
    chat_model: Path, stop: list[int], expected: tuple[int, str]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(chat_model)
    with torch.no_grad():
        model.model.norm.weight.zero_()  # each token is as likely as another, so that the first, <unk>, is written
    settings = {"encoder_decoder": False, "stop": stop, "max_positions": 64, "params": {"max_new_tokens": 5}}
    settings |= {"chat_template": CHATML, "tokens": {}, "tool_calls": {}}
    predict: Any = tasks.load(TASK).predictor
    (answer,) = predict(str(chat_model), settings, model).completions([{"messages": talk(1, ["cat"])[:-1]}])
    assert answer["content"] == "" and (answer["completion_tokens"], answer["finish_reason"]) == expected


def test_the_oldest_turns_of_a_long_conversation_go(run: SimpleNamespace) -> None:
    predict = predictor(run)
    system = {"role": "system", "content": "Hm."}
    long = [system, *talk(0, ["cow"] * 40), {"role": "user", "content": "7 cat"}]
    prompt = predict.generator.tokenizer.decode(predict._prompt({"messages": long}, 100), skip_special_tokens=False)
    assert prompt.startswith("<|im_start|>system\nHm.<|im_end|>\n<|im_start|>user\n") and "7 cat" in prompt
    assert len(predict._prompt({"messages": long}, 100)) <= 100
    one = {"messages": [{"role": "user", "content": "x" * 500}]}
    assert len(predict._prompt(one, 100)) == 100


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (talk(0, ["cat"]), "row 1: a conversation that ends with the assistant's turn"),
        ([{"role": "bot", "content": "x"}], "row 1: an unknown role; expected one of system, .*: turn 1: 'bot'"),
    ],
)
def test_a_bad_request_is_refused(messages: Any, message: str, run: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match=message):
        predictor(run)([{"messages": messages}])


SERVE = """
import json, sys
import mlflow
from mlflow.pyfunc.scoring_server import _parse_json_data
model = mlflow.pyfunc.load_model(sys.argv[1])
for payload in json.loads(sys.stdin.read()):
    got = _parse_json_data(json.dumps(payload), model.metadata, model.metadata.get_input_schema())
    print(json.dumps(model.predict(got.data, params=got.params).to_dict("records")))
try:
    model.predict({"messages": [{"role": "bot", "content": "x"}]})
except mlflow.exceptions.MlflowException as e:
    assert "row 1: an unknown role" in str(e), e
else:
    raise AssertionError("an unknown role was answered")
"""


def test_every_form_of_request_is_answered_without_tuneport(
    run: SimpleNamespace, fenced_python: Any, tmp_path: Path
) -> None:
    one, two = talk(3, ["cat"])[:-1], talk(5, ["dog", "hen"])[:-1]
    tools = [{"type": "function", "function": {"name": "f"}}]
    called = call_rows(1)[0]["messages"][:3]
    payloads = [
        {"messages": one},
        {"messages": two, "max_new_tokens": 2},
        {"messages": two, "tools": tools},
        {"inputs": {"messages": [one, two]}},
        {"inputs": {"messages": two}},
        {"inputs": [{"messages": one}, {"messages": two}]},
        {"inputs": [{"messages": called}]},
        {"dataframe_records": [{"messages": called}]},
        {"instances": [{"messages": called}]},
        {"instances": [{"messages": one}]},
        {"instances": [{"messages": two}, {"messages": two}]},
        {"instances": [{"messages": two, "tools": tools}]},
        {"instances": [{"messages": json.dumps(one)}, {"messages": json.dumps(two)}]},
        {"dataframe_split": {"columns": ["messages"], "data": [[one], [two]]}},
        {"dataframe_records": [{"messages": one}, {"messages": json.dumps(two)}], "params": {"max_new_tokens": 3}},
    ]
    done = fenced_python(SERVE, str(run.exported), input=json.dumps(payloads), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    predict = predictor(run)
    first, second = {"messages": one}, {"messages": two}
    wanted = [
        predict([first]),
        predict([second], max_new_tokens=2),
        predict([{**second, "tools": tools}]),
        predict([first, second]),
        predict([second]),
        predict([first, second]),
        predict([{"messages": called}]),
        predict([{"messages": called}]),
        predict([{"messages": called}]),
        predict([first]),
        predict([second, second]),
        predict([{**second, "tools": tools}]),
        predict([first, second]),
        predict([first, second]),
        predict([first, second], max_new_tokens=3),
    ]
    assert [json.loads(line) for line in done.stdout.splitlines()] == wanted


def test_a_tuned_model_is_tuned_again_by_its_own_template(
    run: SimpleNamespace, write_jsonl: Any, tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", rows())
    metas = []
    for source in ({"pytorch_model_path": CustomModel(run.tuned)}, {"mlflow_model_path": run.exported}):
        folder = tmp_path / next(iter(source))
        execute(steps.load("model_import")(**source, model_selector_output=Model(folder / "model")))
        metas.append(prepare(folder / "model", data, folder / "data").info.meta)
    assert metas[0]["prompting"]["chat_template"] == metas[1]["prompting"]["chat_template"] == CHATML
    assert metas[0]["prompting"]["stop"] == run.prepared.info.meta["prompting"]["stop"]


def test_a_given_template_comes_with_the_tuned_and_the_served_model(
    decoder: Any, write_jsonl: Any, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    model, data = decoder("llama", "[INST] {{ messages }}"), write_jsonl(tmp_path / "rows.jsonl", rows())
    prepared = prepare(model, data, tmp_path / "data", chat_template=CHATML)
    inputs = {"preprocess_output": prepared.path, "pytorch_model_folder": tmp_path / "tuned"}
    execute(steps.load("finetune", TASK)(model_selector_output=model, **inputs, max_steps=1))
    execute(steps.load("model_export", TASK)(**inputs, mlflow_model_folder=tmp_path / "exported"))
    turns = talk(1, ["cat"])[:1]
    for folder in (tmp_path / "tuned", tmp_path / "exported" / "artifacts" / "model"):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert text.endswith("<|im_start|>user\n1 cat<|im_end|>\n<|im_start|>assistant\n")
    assert (model / "chat_template.jinja").read_text() == "[INST] {{ messages }}"


def call_rows(count: int = 40) -> list[dict[str, Any]]:
    call = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}
    return [
        {
            "messages": [
                {"role": "user", "content": f"weather {i}?"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": "rain"},
                {"role": "assistant", "content": "It rains."},
            ]
        }
        for i in range(count)
    ]


CALLS = CHATML.replace(
    "message['content'] +",
    "(message['content'] or '') }}{% for c in message.tool_calls or [] %}"
    "{{ c.function.name }} {{ c.function.arguments | tojson }}{% endfor %}{{",
)


def test_tool_calls_that_the_template_does_not_write_are_refused_with_their_number(
    chat_model: Path, write_jsonl: Any, tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", [*call_rows(), *rows(10)])
    with pytest.raises(
        UserError, match=r"the base model: the chat template writes no tool calls.* but 3\d of 40 train"
    ):
        prepare(chat_model, data, tmp_path / "data")
    assert not (tmp_path / "data").exists()
    unlearnt = [
        {
            "messages": [
                {**turn, "weight": int("tool_calls" not in turn)} if turn["role"] == "assistant" else turn
                for turn in row["messages"]
            ]
        }
        for row in call_rows()
    ]
    data = write_jsonl(tmp_path / "rows.jsonl", unlearnt)
    (note,) = prepare(chat_model, data, tmp_path / "data").report()["splits"]["train"]["notes"]
    assert note == "the chat template does not write the tool calls of turns that are not learnt"


def test_preprocess_and_the_served_model_write_tool_calls_alike_and_what_is_changed_is_counted(
    chat_model: Path, write_jsonl: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", call_rows())
    prepared = prepare(chat_model, data, tmp_path / "data", chat_template=CALLS)
    task = tasks.load(TASK)
    settings = task.settings(prepared.info.meta, SimpleNamespace(**GENERATION))
    predict: Any = task.predictor(str(chat_model), settings)
    for row, encoded in zip(prepared.rows("train"), prepared.encoded("train").to_pylist(), strict=True):
        prompt = predict._prompt(task.example(row), 256)
        assert encoded["input_ids"][: len(prompt)] == prompt
        text = predict.generator.tokenizer.decode(prompt, skip_special_tokens=False)
        assert 'assistant\nweather {"city": "Bonn"}<|im_end|>' in text
    (note,) = prepared.report()["splits"]["train"]["notes"]
    assert note.startswith("tool calls are given to the chat template with arguments as objects (the data has")
    assert f"40 of 40 rows: {note}" in caplog.text


SPELT = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
SPELT += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"


def test_an_answer_that_the_template_does_not_end_is_ended_from_training_to_serving(
    decoder: Any, write_jsonl: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    model, data = decoder("llama", SPELT), write_jsonl(tmp_path / "rows.jsonl", rows())
    prepared = prepare(model, data, tmp_path / "data")
    assert "the eos_token </s> is put behind it" in caplog.text
    for row in prepared.encoded("train").to_pylist():
        learnt = [label for label in row["labels"] if label != -100]
        assert learnt[-1] == 2 and learnt.count(2) == row["input_ids"].count(2)
    inputs = {"preprocess_output": prepared.path, "pytorch_model_folder": tmp_path / "tuned"}
    execute(steps.load("finetune", TASK)(model_selector_output=model, **inputs, max_steps=1))
    text = AutoTokenizer.from_pretrained(tmp_path / "tuned").apply_chat_template(talk(1, ["cat"]), tokenize=False)
    assert text == "user: 1 cat\nassistant: red</s>\n"
    assert GenerationConfig.from_pretrained(tmp_path / "tuned").eos_token_id == 2
    assert prepared.info.meta["prompting"]["stop"] == [2]
    with pytest.raises(
        UserError, match=r"no special token of the tokenizer, and no eos_token can be put .* name eos_to"
    ):
        prepare(decoder("gpt2", SPELT, eos_token=None), data, tmp_path / "other")


def test_the_tuned_model_stops_by_its_own_settings_where_training_did(run: SimpleNamespace) -> None:
    from transformers import GenerationConfig

    stop = run.prepared.info.meta["prompting"]["stop"]
    for folder in (run.tuned, run.exported / "artifacts" / "model"):
        assert GenerationConfig.from_pretrained(folder).eos_token_id == (stop if len(stop) > 1 else stop[0])


def test_an_end_that_the_generation_mark_leaves_out_is_learnt_or_refused(
    chat_model: Path, write_jsonl: Any, tmp_path: Path
) -> None:
    marked = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
    marked += (
        "{{ m.content }}{% endgeneration %}END{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    )
    data = write_jsonl(tmp_path / "rows.jsonl", rows())
    prepared = prepare(chat_model, data, tmp_path / "data", chat_template=marked.replace("END", ""))
    assert all(row["labels"].count(IM_END) for row in prepared.encoded("train").to_pylist())
    (note,) = prepared.report()["splits"]["train"]["notes"].items()
    assert "behind the template's {% generation %} part" in note[0] and note[1]["rows"] == 64
    assert len(note[1]["first"]) == 20
    with pytest.raises(
        UserError, match=r"ends what the assistant says with <\|im_end\|>, but leaves it out of its {% ge"
    ):
        prepare(chat_model, data, tmp_path / "other", chat_template=marked)


def test_columns_of_known_shapes_are_used_or_said_to_be_unused(
    chat_model: Path, write_jsonl: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = {"system": "Be kind.", "history": [["a", "b"]], "tools": [{"name": "weather"}]}
    first = {}
    for shape in ("messages", "sharegpt", "alpaca", "prompt_completion"):
        data = write_jsonl(tmp_path / f"{shape}.jsonl", [{**turns_as(shape, row), **more} for row in rows()])
        prepared = prepare(chat_model, data, tmp_path / shape, chat_format=shape)
        row = prepared.rows("train")[0]
        assert json.loads(row["tools"]) == more["tools"]
        first[shape] = [turn["content"] for turn in json.loads(row["messages"])]
        notes = prepared.report()["sources"]["train"].get("notes", {})
        assert all(found["rows"] == 80 for found in notes.values())
        unused = [name for name in ("system", "history") if any(f"the column {name!r} is not used" in n for n in notes)]
        assert unused == {"sharegpt": ["history"], "alpaca": []}.get(shape, ["system", "history"])
    asked = first["messages"][0]
    assert first["prompt_completion"][0] == asked and first["sharegpt"][:2] == ["Be kind.", asked]
    assert first["alpaca"][:3] == ["Be kind.", "a", "b"] and len(first["alpaca"]) == 5
    assert "80 of 80 rows of messages.jsonl: the column 'system' is not used with chat_format=messages" in caplog.text


def turns_as(shape: str, row: dict[str, Any]) -> dict[str, Any]:
    asked, said = row["messages"][:2]
    return {
        "messages": {"messages": row["messages"]},
        "sharegpt": {
            "conversations": [
                {"from": {"user": "human", "assistant": "gpt"}[turn["role"]], "value": turn["content"]}
                for turn in row["messages"]
            ]
        },
        "alpaca": {"instruction": asked["content"], "input": "", "output": said["content"]},
        "prompt_completion": {"prompt": asked["content"], "completion": said["content"]},
    }[shape]


@pytest.mark.parametrize("shape", ["sharegpt", "alpaca", "prompt_completion"])
def test_other_shapes_are_prepared_alike_and_a_wrong_one_is_told(
    shape: str, chat_model: Path, write_jsonl: Any, tmp_path: Path
) -> None:
    whole = rows() if shape == "sharegpt" else [{"messages": row["messages"][:2]} for row in rows()]
    plain = write_jsonl(tmp_path / "plain.jsonl", whole)
    data = write_jsonl(tmp_path / "rows.jsonl", [turns_as(shape, row) for row in whole])
    wanted = prepare(chat_model, plain, tmp_path / "expected")
    found = prepare(chat_model, data, tmp_path / "found", chat_format=shape)
    for split in ("train", "test"):
        assert [r["messages"] for r in found.rows(split)] == [r["messages"] for r in wanted.rows(split)]
    with pytest.raises(UserError, match=f"messages' not found in rows.jsonl; .*These columns fit chat_format={shape}"):
        prepare(chat_model, data, tmp_path / "wrong")


def test_messages_may_be_json_in_a_csv_cell_and_tools_are_rendered(
    chat_model: Path, write_jsonl: Any, tmp_path: Path
) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    given = [{**row, "tools": tools} for row in rows()]
    with (tmp_path / "rows.csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, ["messages", "tools"])
        writer.writeheader()
        writer.writerows({k: json.dumps(v) for k, v in row.items()} for row in given)
    cells = prepare(chat_model, tmp_path / "rows.csv", tmp_path / "cells", tools_key="tools")
    data = write_jsonl(tmp_path / "rows.jsonl", given)
    lines = prepare(chat_model, data, tmp_path / "lines", tools_key="tools")
    unnamed = prepare(chat_model, data, tmp_path / "unnamed")
    without = prepare(chat_model, write_jsonl(tmp_path / "plain.jsonl", rows()), tmp_path / "without")
    prepared = (cells, lines, unnamed, without)
    ids = [[row["input_ids"] for row in found.encoded("train").to_pylist()] for found in prepared]
    assert ids[0] == ids[1] == ids[2] != ids[3]


@pytest.mark.parametrize(
    ("tools", "problem"),
    [("hammer", "text that is not JSON; expected a list of tools"), (["f"], "no list of tools"), ({"a": 1}, "no list")],
)
def test_a_column_of_tools_that_holds_none_is_named(
    tools: Any, problem: str, chat_model: Path, write_jsonl: Any, tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", [*rows(), {**rows()[0], "tools": tools}])
    with pytest.raises(UserError, match=rf"1 of 81 rows are wrong: column 'tools' \(tools_key\): {problem}"):
        prepare(chat_model, data, tmp_path / "data")


@pytest.mark.parametrize(
    ("name", "value"),
    [("messages_key", "other"), ("loss_on", "last"), ("chat_template", "file"), ("chat_template", "text")],
)
def test_a_parameter_of_preprocess_has_an_effect(
    name: str, value: str, chat_model: Path, write_jsonl: Any, tmp_path: Path
) -> None:
    given = [{**row, "other": talk(i, ["hen", "hen"])} for i, row in enumerate(rows())]
    data = write_jsonl(tmp_path / "rows.jsonl", given)
    template = CHATML.replace("Help.", "Be kind.")
    (tmp_path / "template.jinja").write_text(template)
    value = {"file": str(tmp_path / "template.jinja"), "text": template}.get(value, value)
    plain, other = prepare(chat_model, data, tmp_path / "a"), prepare(chat_model, data, tmp_path / "b", **{name: value})
    assert plain.encoded("train").to_pylist() != other.encoded("train").to_pylist()
    if name == "chat_template":
        assert other.info.meta["prompting"]["chat_template"] == template


def test_a_model_without_a_template_is_refused_with_the_remedy(decoder: Any, write_jsonl: Any, tmp_path: Path) -> None:
    data, model = write_jsonl(tmp_path / "rows.jsonl", rows()), decoder("llama")
    with pytest.raises(UserError, match=r"has no chat template.* Set chat_template to a Jinja template"):
        prepare(model, data, tmp_path / "data")
    assert prepare(model, data, tmp_path / "data", chat_template=CHATML).info.splits["train"]
    with pytest.raises(UserError, match=r"chat_template='/none': cannot be read \(No such file"):
        prepare(model, data, tmp_path / "other", chat_template="/none")
    with pytest.raises(UserError, match=r"chat_template: a chat template that is no Jinja template.*Expected one that"):
        prepare(model, data, tmp_path / "other", chat_template="{% for %}")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "bot", "content": "x"}], r"an unknown role; .* \(1 row: rows.jsonl row 81 \(turn 1: 'bot'\)\)"),
        ([], r"a conversation without turns; expected .* \(1 row: rows.jsonl row 81"),
        ([{"role": "assistant", "content": "x"}], r"that the assistant begins; .* \(1 row: rows.jsonl row 81\)"),
        ("hello", r"text that is not JSON; .* \(1 row: rows.jsonl row 81 \('hello'\)\)"),
        (None, r"null in column 'messages' \(1 rows: rows.jsonl row 81\)"),
        ([{"role": "user", "content": "x"}], r"no assistant's turn \(1 rows: rows.jsonl row 81\)"),
        ([*talk(0, ["cat"])[:1], {"role": "assistant", "content": " "}], "an assistant's turn without text"),
        ([*talk(0, ["cat"])[:1], {"role": "assistant", "content": "x", "weight": 0}], "all have weight 0"),
        (
            [{"role": "user", "content": "x" * 300}, {"role": "assistant", "content": "x"}],
            r"nothing to learn.*jsonl:81",
        ),
        (
            [{"role": "user", "content": "x"}, {"role": "tool", "content": "x"}, *talk(0, ["cat"])],
            r"jsonl:81 \(Templ.*no",
        ),
    ],
)
def test_a_bad_row_is_named(messages: Any, message: str, chat_model: Path, write_jsonl: Any, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", [*rows(), {"messages": messages}])
    picky = "{% for m in messages if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endfor %}" + CHATML
    with pytest.raises(UserError, match=message):
        prepare(chat_model, data, tmp_path / "data", max_dropped_fraction=0, chat_template=picky)
    assert not (tmp_path / "data").exists()
