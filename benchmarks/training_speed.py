"""Training speed and memory beside plain peers: `python benchmarks/training_speed.py [--rounds N] [--only CASE …]`.

Where `make peers` has made environments with LLaMA-Factory and TRL, the cases of a decoder have them as contestants,
too (`peers/causal_trainers.py`).

Each case is trained on the same rows in the same order by `tuneport` (the stage finetune as it is), by a plain
transformers Trainer that pads to the longest row of a batch (`plain`), by one whose batches are of rows of similar
length (`grouped`), by one that pads to the maximum where the case says so (`maximum`), and by a bare PyTorch loop over
the same parts as tuneport, which is the limit (`bare`). Each is a process of its own; they take turns of a few steps,
so that what else the machine does hits all alike. A round of turns gives a ratio of useful tokens a second, those of
the rows without padding; the ratios' median and spread are printed. As batches of similar length make turns of few and
many tokens, those of `grouped` are in random order, and its ratio is that of all its turns. Packs hold other rows than
batches do, so for who packs the tokens of each turn are counted, and its ratio is of all its turns as well.
"""

import argparse
import dataclasses as dc
import json
import math
import multiprocessing
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

MAX_LENGTH = 512
SPREAD = 1.0  # sigma of the log-normal distribution of lengths
LEARNING_RATE = 5e-5
LABELS = 9
RESERVED = 5  # the first tokens of each vocabulary, which no row has
ROOT = Path(__file__).resolve().parents[1]
PYTHONS = {name: ROOT / f".venv-{name}" / "bin" / "python" for name in ("llama-factory", "trl")}
PACKED = "tuneport-packing"
PACKS = 2  # of the longest row's length each, for a batch: about as many tokens as the rows of one have
PEERS = {"llama-factory": "llama-factory", "trl-padding-free": "trl", "trl-packing": "trl"}  # by environment


@dc.dataclass(frozen=True, kw_only=True)
class Case:
    """A task on rows of log-normal lengths, equally many of each median; goals by what is compared."""

    task: str
    medians: tuple[int, ...]
    batch: int
    longest: int = MAX_LENGTH
    padded_to_maximum: bool = False
    bf16: bool = False
    goals: dict[str, float]

    @property
    def contestants(self) -> list[str]:
        if self.bf16:
            return ["tuneport", PACKED, "plain"]
        packed = [PACKED] if self.task == "text_generation" else []
        return ["tuneport", *packed, "plain", "grouped", *(["maximum"] if self.padded_to_maximum else []), "bare"]

    def grouped(self, lengths: list[int]) -> list[int]:
        """The numbers of the rows in batches of similar length, as transformers groups them."""
        from torch import Generator
        from transformers.trainer_pt_utils import get_length_grouped_indices

        found = get_length_grouped_indices(lengths, self.batch, generator=Generator().manual_seed(0))
        batches = [found[start : start + self.batch] for start in range(0, len(found), self.batch)]
        random.Random(0).shuffle(batches)
        return [row for batch in batches for row in batch]


CASES = {
    "decoder": Case(
        task="text_generation",
        medians=(28, 120, 400, 700),
        batch=8,
        longest=1024,
        goals={"plain": 2.7, "bare": 0.85, "memory": 0.55, "llama-factory": 1.5, "memory of peers": 1.0},
    ),
    "decoder-bf16": Case(
        task="text_generation",
        medians=(28, 120, 400, 700),
        batch=8,
        longest=1024,
        bf16=True,
        goals={"best peer": 2.5, "memory of peers": 1.0},
    ),
    "classification-28": Case(
        task="text_classification",
        medians=(28,),
        batch=32,
        padded_to_maximum=True,
        goals={"plain": 4.0, "maximum": 10.0},
    ),
    "classification-120": Case(task="text_classification", medians=(120,), batch=16, goals={"plain": 3.0}),
    "ner-28": Case(
        task="token_classification",
        medians=(28,),
        batch=32,
        padded_to_maximum=True,
        goals={"plain": 4.0, "maximum": 10.0},
    ),
    "ner-120": Case(task="token_classification", medians=(120,), batch=16, goals={"plain": 3.0}),
    "encoder-decoder": Case(task="translation", medians=(120,), batch=16, goals={"plain": 1.8}),
}

# A third of SmolLM2-135M's width at its depth, with its size of heads and its share of weights in the vocabulary.
DECODER = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 30, "num_attention_heads": 3}
DECODER |= {"num_key_value_heads": 1, "vocab_size": 16384, "max_position_embeddings": 2048, "tie_word_embeddings": True}
# MiniLM-L6.
ENCODER = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12}
# The T5 of examples/translation.
ENCODER_DECODER = {"d_model": 192, "d_ff": 768, "d_kv": 48, "num_layers": 3, "num_heads": 4, "vocab_size": 8000}
ENCODER_DECODER |= {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
ENCODER |= {"vocab_size": 30522, "max_position_embeddings": 512, "pad_token_id": 0}
SIZES = {
    "text_generation": DECODER,
    "translation": ENCODER_DECODER,
    "text_classification": ENCODER,
    "token_classification": ENCODER,
}


def main() -> None:
    """Measure the cases, print a table, exit 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="optimizer steps of a turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=CASES, default=[*CASES])
    parser.add_argument("--against", nargs="+", help="of the contestants only these, as all at once take 35 GB")
    parser.add_argument("--results", type=Path, help="file to write the measurements to, as JSON")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    found = {"machine": machine(options.threads), "cases": {}}
    print(json.dumps(found["machine"]))
    met = True
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            measured = measure(CASES[name], Path(folder), options)
        found["cases"][name] = measured
        met &= report(name, CASES[name], measured)
        if options.results:
            options.results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.exit(not met)


def machine(threads: int) -> dict[str, Any]:
    """What the figures were measured on and with."""
    from importlib.metadata import version

    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    versions = {name: version(name) for name in ("torch", "transformers", "accelerate")}
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": threads, "python": platform.python_version(), **versions}


# -- measuring ---------------------------------------------------------------------------------------------------------


def measure(case: Case, root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Let the contestants take turns; return what each of their turns took, and their peak memory."""
    lengths = write_data(case, root, steps=options.steps * (options.rounds + 1) + 1)
    write_model(case, root)
    context = multiprocessing.get_context("spawn")
    processes: dict[str, Any] = {}
    pipes: dict[str, Connection] = {}
    peers = peers_of(case)
    chosen = ["tuneport", *(options.against or [*case.contestants[1:], *peers])]
    for who in [who for who in case.contestants if who in chosen]:
        pipes[who], theirs = context.Pipe()
        processes[who] = context.Process(target=contend, args=(who, case, root, options.steps, theirs), daemon=True)
        processes[who].start()
        theirs.close()  # so that a contestant that dies is noticed
    for who in [who for who in peers if who in chosen]:
        processes[who], pipes[who] = start_peer(who, case, root, options)
    turns: dict[str, list[float]] = {who: [] for who in processes}
    packed: dict[str, list[int]] = {who: [] for who in processes if who in (PACKED, *peers)}
    memory = {}
    try:
        for number in range(options.rounds + 1):  # the first one is not counted
            order = [*processes] if number % 2 else [*processes][::-1]
            for who in order:
                try:
                    pipes[who].send("go")
                    seconds, memory[who], counted_tokens = pipes[who].recv()
                except (EOFError, OSError):
                    log = root / f"{who}.log"
                    raise RuntimeError(
                        f"{who} ended: {log.read_text('utf-8', 'replace')[-2000:]}" if log.exists() else who
                    ) from None
                print(f"round {number}: {who} took {seconds:.1f} s", file=sys.stderr, flush=True)
                if number:
                    turns[who].append(seconds)
                    if who in packed:
                        packed[who].append(counted_tokens)
    finally:
        for who, process in processes.items():
            pipes[who].close()
            process.kill()
            process.join() if hasattr(process, "join") else process.wait()
    per_turn = case.batch * options.steps

    def tokens(lengths: list[int]) -> list[int]:
        return [sum(lengths[i * per_turn : (i + 1) * per_turn]) for i in range(1, options.rounds + 1)]

    grouped = tokens([lengths[row] for row in case.grouped(lengths)])
    counted = {who: grouped if who == "grouped" else packed.get(who) or tokens(lengths) for who in turns}
    return {"seconds": turns, "tokens": counted, "peak_gb": memory}


def peers_of(case: Case) -> list[str]:
    """The peers that a case is held against, as far as their environments are there."""
    if case.task != "text_generation":
        return []
    return [who for who, environment in PEERS.items() if PYTHONS[environment].exists()]


def start_peer(who: str, case: Case, root: Path, options: argparse.Namespace) -> tuple[Any, Connection]:
    """A peer's process and the pipe to it. Raises RuntimeError where it ends before it is there."""
    address, log = str(root / f"{who}.socket"), root / f"{who}.log"
    settings = {"steps": options.steps, "batch": case.batch, "longest": case.longest, "bf16": case.bf16}
    script = Path(__file__).parent / "peers" / "causal_trainers.py"
    home = root / who  # a model and rows of its own, as each writes beside them
    home.mkdir()
    for name in ("model", "rows.jsonl"):
        (home / name).symlink_to(root / name)
    with Listener(address, "AF_UNIX") as listener, log.open("wb") as sink:
        command = [str(PYTHONS[PEERS[who]]), str(script), who, str(home), address, json.dumps(settings)]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TRL_EXPERIMENTAL_SILENCE": "1"}
        process = subprocess.Popen(command, stdout=sink, stderr=sink, env=environment)
        listener._listener._socket.settimeout(300)  # type: ignore[attr-defined]
        try:
            return process, listener.accept()
        except TimeoutError:
            process.kill()
            raise RuntimeError(f"{who} did not start:\n{log.read_text('utf-8', 'replace')[-2000:]}") from None


def report(name: str, case: Case, measured: dict[str, Any]) -> bool:
    """Print a case's figures; return whether its goals are met."""
    turns, tokens, memory = measured["seconds"], measured["tokens"], measured["peak_gb"]
    rates = {who: [c / took for c, took in zip(tokens[who], turns[who], strict=True)] for who in turns}
    for who, found in rates.items():
        print(f"{name:<20} {who:<9} {statistics.median(found):>7,.0f} useful tokens/s, peak {memory[who]:.2f} GB")
    ratios = {who: [own / other for other, own in zip(rates[who], rates["tuneport"], strict=True)] for who in turns}
    figures = {who: statistics.median(found) for who, found in ratios.items() if who != "tuneport"}
    whole = {who: sum(tokens[who]) / sum(turns[who]) for who in turns}
    for who in {"grouped", PACKED, *PEERS} & set(whole):
        figures[who] = whole["tuneport"] / whole[who]
    if "plain" in memory:
        figures["memory"] = memory["tuneport"] / memory["plain"]
    if peers := {"plain", *PEERS} & set(whole):
        figures["best peer"] = min(figures[who] for who in peers)
        least = min(memory[who] for who in peers)  # packs have about as many tokens each, batches of rows have not
        figures["memory of peers"] = memory.get(PACKED, memory["tuneport"]) / least
    met = True
    for what, figure in figures.items():
        of_memory = what.startswith("memory")
        spread = f" ({min(ratios[what]):.2f} to {max(ratios[what]):.2f})" if what in ratios else ""
        goal = case.goals.get(what)
        reached = goal is None or (figure <= goal if of_memory else figure >= goal)
        sign = "<=" if of_memory else ">="
        verdict = "" if goal is None else f", goal {sign} {goal}: {'met' if reached else 'missed'}"
        labels = {"memory": "peak memory / plain", "memory of peers": "peak memory / least"}
        label = labels.get(what, f"speed / {what}")
        print(f"{name:<20} {label:<19} {figure:.2f}{spread}{verdict}", flush=True)
        met &= reached
    return met


# -- contestants -------------------------------------------------------------------------------------------------------


class Turns:
    """Lets a contestant take its steps only while it is its turn, and says what they took."""

    def __init__(self, pipe: Connection, steps: int) -> None:
        self.pipe, self.steps, self.taken, self.tokens = pipe, steps, 0, 0

    def begin_step(self) -> None:
        if self.taken % self.steps == 0:
            self.pipe.recv()
            self.tokens = 0
            self.started = time.perf_counter()

    def watch(self, model: Any) -> None:
        """Count the useful tokens that a model is given, as packs hold rows of any length."""

        def count(module: Any, args: Any, kwargs: Any) -> None:
            self.tokens += int((kwargs["input_ids"] >= RESERVED).sum())

        model.register_forward_pre_hook(count, with_kwargs=True)

    def end_step(self) -> None:
        self.taken += 1
        if self.taken % self.steps == 0:
            seconds = time.perf_counter() - self.started
            unit = 1 if sys.platform == "darwin" else 1024
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
            self.pipe.send((seconds, peak, self.tokens))


def contend(who: str, case: Case, root: Path, steps: int, pipe: Connection) -> None:
    """In a process of its own: train, turn by turn, until the process is ended."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    turns = Turns(pipe, steps)
    try:
        {"tuneport": with_tuneport, PACKED: with_tuneport, "bare": with_bare_loop}.get(who, with_trainer)(
            case, root, turns, who
        )
    except (EOFError, BrokenPipeError):
        return


def with_tuneport(case: Case, root: Path, turns: Turns, who: str) -> None:
    """As the stage finetune does it, with its own defaults."""
    import steps
    from tuneport import tasks
    from tuneport.data.prepared import Prepared
    from tuneport.tracking import Run
    from tuneport.training.sampler import EpochSampler
    from tuneport.training.train import train

    packing = who == PACKED
    if not packing:  # the rows as they stand
        EpochSampler.__iter__ = lambda self: iter(range(self.size))  # type: ignore[method-assign]
    stage: Any = steps.load("finetune", case.task)(
        model_selector_output=root / "model",
        preprocess_output=root,
        per_device_train_batch_size=PACKS if packing else case.batch,
        packing=packing,
        num_train_epochs=100 if packing else 1,
        learning_rate=LEARNING_RATE,
        precision="bf16" if case.bf16 else "32",
        seed=0,
    )
    output = root / f"out-{who}"
    output.mkdir()
    train(
        tasks.load(case.task),
        root / "model",
        Prepared(root),
        stage,
        metric_for_best_model="loss",
        output=output,
        run=Run(),
        callbacks=[gate(turns)],
    )


def with_trainer(case: Case, root: Path, turns: Turns, who: str) -> None:
    """As transformers' examples do it: its own defaults, padding to the longest row, or to the maximum."""
    import transformers

    transformers.set_seed(0)
    halves = 2 if who == "maximum" else 1  # a batch of that would take 12 GB, and its padding is the same
    model, collate, rows = parts(case, root, case.longest if who == "maximum" else None)
    if who == "grouped":
        rows = rows.select(case.grouped(rows["length"][:]))
    arguments = transformers.TrainingArguments(
        output_dir=str(root / who),
        per_device_train_batch_size=case.batch // halves,
        gradient_accumulation_steps=halves,
        learning_rate=LEARNING_RATE,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        bf16=case.bf16,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = transformers.Trainer(
        model=model, args=arguments, data_collator=collate, train_dataset=rows, callbacks=[gate(turns)]
    )
    trainer.train()


def with_bare_loop(case: Case, root: Path, turns: Turns, who: str) -> None:
    """The same model without padding, loss, optimizer and schedule, in a loop that does nothing else."""
    import torch
    import transformers

    from tuneport.training.padding_free import choose

    transformers.set_seed(0)
    model, collate, rows = parts(case, root, None)
    unpadded = choose.choose(model, ("sdpa", ""), wanted=True, pad_to=None)
    collate = unpadded.collator(collate)
    batches = torch.utils.data.DataLoader(rows, case.batch, collate_fn=collate)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed}, {"params": others}], lr=LEARNING_RATE, weight_decay=0, fused=True
    )
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, 0, len(batches))
    model.train()
    for batch in batches:
        turns.begin_step()
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        turns.end_step()


def parts(case: Case, root: Path, pad_to: int | None) -> tuple[Any, Any, Any]:
    """The model, the collator and the rows."""
    from datasets import Dataset, concatenate_datasets

    from tuneport import tasks
    from tuneport.data.prepared import Prepared

    task, prepared = tasks.load(case.task), Prepared(root)
    model = task.load_model(root / "model", prepared.info.meta)
    rows = concatenate_datasets([Dataset.from_file(str(file)) for file in prepared.encoded_files("train")])
    return model, task.collator(model, prepared.info.meta, pad_to), rows


def gate(turns: Turns) -> Any:
    """A callback of transformers' Trainer that waits for its turn."""
    from transformers import TrainerCallback

    class Gate(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            turns.watch(kwargs["model"])

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            turns.begin_step()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            turns.end_step()

    return Gate()


# -- data and model ----------------------------------------------------------------------------------------------------


def write_data(case: Case, root: Path, steps: int) -> list[int]:
    """Prepared rows of random tokens, as preprocess hands them on; returns the lengths of the training rows."""
    import pyarrow as pa

    from tuneport.data.shards import ShardWriter

    rng = random.Random(0)
    vocabulary = SIZES[case.task]["vocab_size"]

    def row(number: int) -> dict[str, Any]:
        median = case.medians[number % len(case.medians)]
        length = min(max(round(math.exp(rng.gauss(math.log(median), SPREAD))), 5), case.longest)
        ids = [rng.randrange(RESERVED, vocabulary) for _ in range(length)]
        labels: Any = ids[1] % LABELS
        if case.task == "text_generation":  # 60 % of a row is its prompt
            asked = round(0.6 * length)
            labels = [-100] * asked + ids[asked:]
        elif case.task == "translation":  # with a target of about its length
            target = min(max(round(length * rng.gauss(1, 0.2)), 5), case.longest)
            labels = [rng.randrange(5, vocabulary) for _ in range(target)]
        elif case.task == "token_classification":
            labels = [i % LABELS for i in ids]
        useful = length + (len(labels) if case.task == "translation" else 0)
        return {"row_id": f"rows:{number}", "input_ids": ids, "labels": labels, "length": useful}

    training = [row(number) for number in range(case.batch * steps)]
    rng.shuffle(training)
    per_token = pa.list_(pa.int32())
    labels = pa.int64() if case.task == "text_classification" else per_token
    schema = pa.schema([("row_id", pa.string()), ("input_ids", per_token), ("labels", labels), ("length", pa.int32())])
    for split, rows in (("train", training), ("validation", training[:1])):
        with ShardWriter(root / "encoded", split, schema) as writer:
            writer.write(pa.Table.from_pylist(rows, schema), len(rows))
    with (root / "rows.jsonl").open("w", encoding="utf-8") as f:  # the same for peers, who tokenise themselves
        for entry in training if case.task == "text_generation" else ():
            ids, asked = entry["input_ids"], entry["labels"].count(-100)
            prompt, response = (" ".join(f"w{i}" for i in part) for part in (ids[:asked], ids[asked:]))
            f.write(json.dumps({"prompt": prompt, "response": response}) + "\n")
    meta: dict[str, Any] = {"labels": [str(i) for i in range(LABELS)], "multi_label": False, "iob": False}
    meta["prompting"] = {"encoder_decoder": case.task == "translation", "stop": []}
    splits = {"train": {"rows": len(training)}, "validation": {"rows": 1}}
    info = {"task_name": case.task, "columns": {}, "meta": meta, "max_seq_length": case.longest, "pad_to": None}
    (root / "dataset.json").write_text(json.dumps(info | {"splits": splits}))
    return [entry["length"] for entry in training]


def write_model(case: Case, root: Path) -> None:
    """A model of random weights, with a tokenizer of numbered words, which only peers ask."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    transformers.set_seed(0)
    if case.task == "text_generation":
        model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODER))
    elif case.task == "translation":
        model = transformers.T5ForConditionalGeneration(transformers.T5Config(**ENCODER_DECODER))
    else:
        labels = {"id2label": {i: str(i) for i in range(LABELS)}, "label2id": {str(i): i for i in range(LABELS)}}
        kind = "Sequence" if case.task == "text_classification" else "Token"
        model = getattr(transformers, f"BertFor{kind}Classification")(transformers.BertConfig(**ENCODER, **labels))
    model.save_pretrained(root / "model")
    words = {f"w{number}": number for number in range(SIZES[case.task]["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel({"?": 0} | {w: n for w, n in words.items() if n}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(root / "model" / "tokenizer.json"))
    special = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "?", "pad_token": "?", "eos_token": "w2"}
    (root / "model" / "tokenizer_config.json").write_text(json.dumps(special))


if __name__ == "__main__":
    main()
