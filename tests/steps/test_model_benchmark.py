"""Stage model_benchmark: lm_eval's scores of both models, counted again; data from a folder; what is refused."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lm_eval
import pytest

import pipelines
import steps
from tests.tasks.conftest import CHATML, llama
from tuneport.artifacts import Folder, Model, write_manifest
from tuneport.errors import UserError
from tuneport.stage import execute
from tuneport.step import Context

CHOICE = """\
task: animals
dataset_path: json
dataset_kwargs: {data_files: {test: animals.jsonl, train: solved.jsonl}}
test_split: test
fewshot_split: train
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
WRITTEN = """\
task: copying
dataset_path: acme/words
test_split: test
output_type: generate_until
doc_to_text: "Copy {{text}}:"
doc_to_target: "{{text}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


def model(folder: Path, seed: int, say: str | None = None, template: str | None = None) -> Path:
    """A tiny decoder; one that is told to says a byte whatever it is asked, and then ends."""
    import torch
    from safetensors.torch import load_file, save_file

    torch.manual_seed(seed)
    llama(folder)
    if say is not None:
        weights = load_file(folder / "model.safetensors")
        from transformers import AutoTokenizer

        token = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(say)
        for name, weight in weights.items():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
        weights["model.embed_tokens.weight"][:] = 0.0
        weights["model.embed_tokens.weight"][:, 0] = 1.0
        weights["model.embed_tokens.weight"][token, 1] = 1.0  # what says `token` is followed by the end
        weights["lm_head.weight"].zero_()
        weights["lm_head.weight"][token, 0] = 5.0
        weights["lm_head.weight"][2, 1] = 100.0
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    write_manifest(Model(folder), "by hand", "0", {}, {})
    return folder


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory, write_jsonl: Any) -> Path:
    """A folder with two benchmarks: one of choices with its rows, one of texts with a data set as a hub has it."""
    folder = tmp_path_factory.mktemp("benchmarks")
    rows = [
        {"question": f"Number {i}?", "choices": [f"cat {i}", f"dog {i % 7}", "bird"], "answer": i % 3}
        for i in range(40)
    ]
    write_jsonl(folder / "animals.jsonl", rows[:30])
    write_jsonl(folder / "solved.jsonl", rows[30:])
    (folder / "acme" / "words").mkdir(parents=True)
    write_jsonl(folder / "acme" / "words" / "test.jsonl", [{"text": "a" if i % 5 else "b"} for i in range(30)])
    (folder / "animals.yaml").write_text(CHOICE)
    (folder / "copying.yaml").write_text(WRITTEN)
    (folder / "both.yaml").write_text(
        "group: both\ntask: [animals, other_animals]\n"
        "aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]\n"
    )
    (folder / "other.yaml").write_text(CHOICE.replace("task: animals", "task: other_animals"))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The base model says a, which many rows of copying want; the tuned one says b."""
    folder = tmp_path_factory.mktemp("models")
    return model(folder / "base", 0, say="a"), model(folder / "tuned", 1, say="b", template=CHATML)


def stage(models: tuple[Path, Path], task: str = "text_generation", **values: Any) -> Any:
    return steps.load("model_benchmark", task)(
        model_selector_output=models[0], pytorch_model_folder=models[1], **values
    )


def run(models: tuple[Path, Path], output: Path, **values: Any) -> SimpleNamespace:
    context = values.pop("context", None)
    step = stage(models, benchmark_result=output, **values)
    if context is not None:
        step.context = context
    execute(step)
    lines = (output / "samples.jsonl").read_text().splitlines()
    return SimpleNamespace(
        metrics=json.loads((output / "metrics.json").read_text()),
        samples=[json.loads(line) for line in lines],
        page=(output / "report.html").read_text(),
    )


@pytest.fixture(scope="module")
def measured(models: tuple[Path, Path], benchmarks: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("measured")
    names = "copying,both"
    return run(models, folder / "result", benchmark_tasks=names, benchmark_folder=benchmarks)


def likelihoods(folder: Path, row: dict[str, Any]) -> list[float]:
    """How likely a model takes each choice to be, by transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, network = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    start, found = len(tokenizer(row["question"])["input_ids"]), []
    for choice in row["choices"]:
        whole = tokenizer(f"{row['question']} {choice}", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = network(whole).logits[0].log_softmax(-1)
        found.append(float(sum(logits[i - 1, whole[0, i]] for i in range(start, whole.shape[1]))))
    return found


def test_a_score_of_choices_is_the_share_whose_likeliest_answer_is_the_right_one(
    models: tuple[Path, Path], measured: SimpleNamespace, benchmarks: Path
) -> None:
    rows = [json.loads(line) for line in (benchmarks / "animals.jsonl").read_text().splitlines()]
    for side, folder in (("base", models[0]), ("tuned", models[1])):
        right = 0
        for row in rows:
            found = likelihoods(folder, row)
            right += found.index(max(found)) == row["answer"]
        scores, intervals = measured.metrics[side]["metrics"], measured.metrics[side]["intervals"]
        share = right / len(rows)
        assert scores["animals/acc"] == pytest.approx(share)
        error = math.sqrt(share * (1 - share) / (len(rows) - 1))
        assert intervals["animals/acc"] == pytest.approx([share - 1.96 * error, share + 1.96 * error])


def test_what_the_tuned_model_forgot_is_said(measured: SimpleNamespace) -> None:
    metrics = measured.metrics
    assert metrics["base"]["metrics"]["copying/exact_match"] == pytest.approx(24 / 30)
    assert metrics["tuned"]["metrics"]["copying/exact_match"] == pytest.approx(6 / 30)
    gain = metrics["gains"]["copying/exact_match"]
    assert gain["value"] == pytest.approx(-18 / 30)
    assert -1 < gain["interval"][0] < gain["value"] < gain["interval"][1] < 0
    assert "copying/exact_match" in metrics["worse"]
    assert metrics["headline"].startswith("The tuned model forgot: it is clearly worse than its base by copying/exact")


def test_a_group_is_compared_by_the_rows_of_its_tasks(measured: SimpleNamespace) -> None:
    scores = measured.metrics["tuned"]["metrics"]
    assert scores["both/acc"] == pytest.approx((scores["animals/acc"] + scores["other_animals/acc"]) / 2)
    assert measured.metrics["gains"]["both/acc"]["value"] == pytest.approx(
        measured.metrics["gains"]["animals/acc"]["value"]
    )


def test_every_answer_of_both_models_is_kept_and_gives_the_scores(measured: SimpleNamespace) -> None:
    rows = [row for row in measured.samples if row["benchmark"] == "copying"]
    assert len(rows) == 30 and rows[0]["asked"][0][0] == "Copy b:"
    for side in ("tuned", "base"):
        right = [row[side]["answers"] == [row["target"]] for row in rows]
        assert sum(right) / 30 == pytest.approx(measured.metrics[side]["metrics"]["copying/exact_match"])


def test_the_page_has_every_score(measured: SimpleNamespace) -> None:
    assert measured.metrics["headline"].split(":")[0] in measured.page
    assert "copying" in measured.page and "0.800" in measured.page and "<td>30</td>" in measured.page
    assert "benchmark_folder alone" in measured.page and "http" not in measured.page


def test_rows_shots_batches_and_seed_have_an_effect(
    models: tuple[Path, Path], benchmarks: Path, tmp_path: Path
) -> None:
    given = {"benchmark_tasks": '["animals"]', "benchmark_folder": benchmarks, "benchmark_rows": 6}
    plain = run(models, tmp_path / "plain", **given, benchmark_batch_size=2)
    assert len(plain.samples) == 6 and plain.metrics["tasks"]["animals"]["rows"] == 6
    solved, other = (run(models, tmp_path / str(seed), **given, num_fewshot=2, seed=seed) for seed in (1, 2))
    assert solved.metrics["tasks"]["animals"]["num_fewshot"] == 2
    asked = [found.samples[0]["asked"][0][0] for found in (plain, solved, other)]
    assert [text.count("Number") for text in asked] == [1, 3, 3] and asked[1] != asked[2]


def test_a_chat_model_is_asked_by_turns_unless_it_is_told_otherwise(
    models: tuple[Path, Path], benchmarks: Path, tmp_path: Path
) -> None:
    given = {
        "task": "chat_completion",
        "benchmark_tasks": "animals",
        "benchmark_folder": benchmarks,
        "benchmark_rows": 2,
    }
    by_turns = run(models, tmp_path / "chat", **given)
    assert by_turns.samples[0]["asked"][0][0] == "<|im_start|>user\nNumber 0?<|im_end|>\n<|im_start|>assistant\n"
    plain = run(models, tmp_path / "plain", **given, apply_chat_template="false")
    assert plain.samples[0]["asked"][0][0] == "Number 0?"


def test_a_model_without_a_template_is_not_asked_by_turns(
    models: tuple[Path, Path], benchmarks: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"apply_chat_template=true: .* has no chat template"):
        run(
            (models[0], models[0]),
            tmp_path / "result",
            benchmark_tasks="animals",
            benchmark_folder=benchmarks,
            apply_chat_template="true",
        )
    assert not (tmp_path / "result").exists()


def test_a_template_that_refuses_the_turns_is_named(
    models: tuple[Path, Path], benchmarks: Path, tmp_path: Path
) -> None:
    picky = model(tmp_path / "picky", 1, template="{{ raise_exception('a system turn is expected') }}")
    given = {"benchmark_tasks": "animals", "benchmark_folder": benchmarks, "apply_chat_template": "true"}
    with pytest.raises(UserError, match=r"refuses the turns of 'animals' .*a system turn is expected.*template=false"):
        run((models[0], picky), tmp_path / "result", **given)
    assert not (tmp_path / "result").exists()


def test_prompts_that_are_cut_are_counted(models: tuple[Path, Path], tmp_path: Path, write_jsonl: Any) -> None:
    folder = tmp_path / "long"
    folder.mkdir()
    (folder / "copying.yaml").write_text(
        WRITTEN.replace("acme/words", "json\ndataset_kwargs: {data_files: {test: a.jsonl}}")
    )
    write_jsonl(folder / "a.jsonl", [{"text": "a" * length} for length in (1, 300, 400)])
    found = run(models, tmp_path / "result", benchmark_tasks="copying", benchmark_folder=folder)
    assert found.metrics["tasks"]["copying"]["cut"] == 2
    assert found.metrics["notes"] == [
        "copying: 2 of 3 rows have a prompt that is longer than the model takes; it read their ends."
    ]


def test_a_metric_whose_parts_are_not_numbers_is_kept_in_every_row_and_not_compared(
    models: tuple[Path, Path], benchmarks: Path, tmp_path: Path
) -> None:
    """Of the MCC a row has the label and the answer, NumPy's numbers; of the Brier score an array."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("animals.jsonl", "solved.jsonl"):
        (folder / name).write_bytes((benchmarks / name).read_bytes())
    both = "[{metric: mcc, aggregation: matthews_corrcoef, higher_is_better: true}, "
    both += "{metric: brier_score, aggregation: brier_score, higher_is_better: false}]"
    (folder / "animals.yaml").write_text(f"{CHOICE.rpartition('metric_list')[0]}metric_list: {both}\n")
    found = run(models, tmp_path / "result", benchmark_tasks="animals", benchmark_folder=folder, benchmark_rows=6)
    assert found.metrics["tuned"]["metrics"].keys() == {"animals/mcc", "animals/brier_score"}
    assert found.metrics["gains"] == {}
    row = found.samples[2]["tuned"]
    assert row["mcc"][0] == row["brier_score"][0] == 2
    assert len(row["brier_score"][1]) == 3 and sum(row["brier_score"][1]) == pytest.approx(1)


def test_the_scores_stand_in_the_run_that_trained_the_model(
    models: tuple[Path, Path], benchmarks: Path, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri)
    run_id = client.create_run(client.create_experiment("e", (tmp_path / "artifacts").as_uri())).info.run_id
    tuned = model(tmp_path / "tuned", 1)
    (tuned / "tracking.json").write_text(json.dumps({"tracking_uri": uri, "run_id": run_id, "model_uri": None}))
    write_manifest(Model(tuned), "by hand", "0", {}, {})
    given = {"benchmark_tasks": "animals", "benchmark_folder": benchmarks, "benchmark_rows": 4}
    found = run((models[0], tuned), tmp_path / "result", context=Context(tracking_uri=uri), **given)
    metrics = client.get_run(run_id).data.metrics
    assert metrics["benchmark/animals/acc"] == found.metrics["tuned"]["metrics"]["animals/acc"]
    assert metrics["benchmark/base_model/animals/acc"] == found.metrics["base"]["metrics"]["animals/acc"]
    assert "benchmark/report.html" in {file.path for file in client.list_artifacts(run_id, "benchmark")}


@pytest.fixture(scope="module")
def faulty(benchmarks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with benchmarks that cannot be asked, and one that can."""
    folder = tmp_path_factory.mktemp("faulty")
    for name in ("animals.yaml", "animals.jsonl", "solved.jsonl"):
        (folder / name).write_bytes((benchmarks / name).read_bytes())
    named = CHOICE.replace("task: animals", "task: {}")
    (folder / "lacking.yaml").write_text(named.replace("{}", "lacking").replace("animals.jsonl", "absent.jsonl"))
    (folder / "unsafe.yaml").write_text(named.replace("{}", "unsafe") + "unsafe_code: true\n")
    (folder / "broken.yaml").write_text(named.replace("{}", "broken").replace("test_split: test", "test_split: other"))
    (folder / "failing.py").write_text("def score(doc, results):\n    return {'acc': 1 / 0}\n")
    failing = named.replace("{}", "failing") + "process_results: !function failing.score\n"
    (folder / "failing.yaml").write_text(failing)
    (folder / "circle.yaml").write_text("group: circle\ntask: [animals, ring]\n")
    (folder / "ring.yaml").write_text("group: ring\ntask: [circle]\n")
    (folder / "misspelt.yaml").write_text(named.replace("{}", "misspelt").replace("{{question}}", "{{query}}"))
    (folder / "unfetched.yaml").write_text(WRITTEN.replace("copying", "unfetched").replace("acme/words", "acme/other"))
    return folder


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param(
            {"benchmark_tasks": "animal"},
            "'animal' is not a task of lm_eval .* Did you mean 'animals'?",
            marks=pytest.mark.slow,  # reads the files of all tasks
        ),
        ({"benchmark_tasks": "[1]"}, "benchmark_tasks='\\[1\\]': not valid; expected a list of names"),
        ({"benchmark_tasks": "animals", "benchmark_rows": 0}, "benchmark_rows=0: asks nothing"),
        ({"benchmark_tasks": " , "}, "benchmark_tasks: names no benchmark"),
        ({"benchmark_tasks": "lacking"}, "has no absent.jsonl, which the benchmark 'lacking' reads"),
        (
            {"benchmark_tasks": "unfetched"},
            "has no folder acme/other, the data set that .* reads. Put it there: hf download acme/other --repo-type",
        ),
        ({"benchmark_tasks": "circle"}, r"the group 'circle' is in itself \(circle > ring > circle\). Mend its file"),
        ({"benchmark_tasks": "unsafe"}, "'unsafe' runs code that the model writes"),
        ({"benchmark_tasks": "broken"}, "'broken' cannot be read: .* put what is lacking there"),
        (
            {"benchmark_tasks": "misspelt"},
            "'misspelt' cannot be read: .*'query' is undefined.* or mend the task's file",
        ),
        ({"benchmark_tasks": "failing"}, "'failing' failed: .*ZeroDivisionError.* Mend its file in benchmark_folder="),
        ({"benchmark_tasks": "animals", "benchmark_folder": "s3://bucket/x"}, "is no path of this machine"),
        ({"benchmark_tasks": "animals", "benchmark_folder": "/absent"}, "/absent: is not a folder"),
    ],
)
def test_what_cannot_be_asked_is_refused_and_nothing_is_written(
    values: dict[str, Any], message: str, models: tuple[Path, Path], faulty: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        run(models, tmp_path / "result", **({"benchmark_folder": faulty} | values))
    assert not (tmp_path / "result").exists()


def test_with_a_folder_no_hub_is_asked_whatever_a_task_wants(
    models: tuple[Path, Path], benchmarks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function of a task that fetches: it gets an error, and no connection is made."""
    import socket

    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "fetching.py").write_text(
        "import datasets\ndef fetch(**more):\n    return datasets.load_dataset('acme/on_the_hub')\n"
    )
    (folder / "fetching.yaml").write_text(
        WRITTEN.replace("copying", "fetching").replace(
            "dataset_path: acme/words", "custom_dataset: !function fetching.fetch"
        )
    )
    asked: list[Any] = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: asked.append(address))
    with pytest.raises(UserError, match=r"'fetching' cannot be read: .*acme/on_the_hub"):
        run(models, tmp_path / "result", benchmark_tasks="fetching", benchmark_folder=folder)
    assert asked == [] and not (folder / "__pycache__").exists()


def test_tasks_whose_models_do_not_go_on_with_a_text_refuse_it(models: tuple[Path, Path]) -> None:
    with pytest.raises(
        UserError, match=r"those of summarization do not. Leave it out; it is for chat_completion, text"
    ):
        stage(models, task="summarization", benchmark_tasks="hellaswag").check()
    assert "benchmark_tasks" not in pipelines.load("summarization").params


@pytest.mark.parametrize("task", ["text_generation", "chat_completion"])
def test_the_stage_runs_in_a_pipeline_that_names_benchmarks_alone(task: str) -> None:
    pipeline = pipelines.load(task)
    values = {name: port.default for name, port in pipeline.params.items()} | {"registered_model_name": None}
    assert "model_benchmark" not in [node.name for node in pipeline.active(values)]
    assert "model_benchmark" in [node.name for node in pipeline.active(values | {"benchmark_tasks": "hellaswag"})]


def test_without_a_folder_it_needs_the_network_and_no_platform_s_cache_may_skip_it(
    models: tuple[Path, Path], benchmarks: Path
) -> None:
    fetched, kept = (stage(models, benchmark_tasks="a", benchmark_folder=f) for f in (None, Folder(benchmarks)))
    assert (fetched.needs_network(), fetched.repeatable()) == (True, False)
    assert (kept.needs_network(), kept.repeatable()) == (False, True)
    assert kept.origins() == {"benchmark_tasks": f"lm_eval {lm_eval.__version__}"}


def test_without_lm_eval_the_install_line_is_said_before_anything_runs(
    models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.util import find_spec

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "lm_eval" else find_spec(name))
    with pytest.raises(UserError, match=r"lm_eval, .* is not installed. Run: pip install 'tuneport\[benchmark\]'"):
        stage(models, benchmark_tasks="hellaswag").check_here()
    stage(models, benchmark_tasks="hellaswag").check_files()  # for a container, whose image has the package
    assert "lm_eval" in sys.modules
