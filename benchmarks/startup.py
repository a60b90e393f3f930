"""How long the commands take that people wait for at a prompt: `python benchmarks/startup.py [RUNS]`.

Prints the median of several runs of each command, its goal, and their ratio; a ratio above 1 misses the goal.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def inputs(folder: Path) -> list[str]:
    """A model folder and 1,000 rows of data, as small as `tuneport validate` takes them for real."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models

    model = folder / "model"
    model.mkdir()
    shape = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "vocab_size": 2,
    }
    config = {"model_type": "bert", "architectures": ["BertModel"], **shape}
    (model / "config.json").write_text(json.dumps(config))
    (model / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 64, "pad_token": "[PAD]"}))
    Tokenizer(models.WordPiece({"[UNK]": 0, "[PAD]": 1}, unk_token="[UNK]")).save(str(model / "tokenizer.json"))
    save_file({"embeddings.word_embeddings.weight": torch.zeros(2, 8)}, model / "model.safetensors")
    rows = (json.dumps({"text": f"question {i}", "label": str(i % 3)}) for i in range(1000))
    (folder / "train.jsonl").write_text("\n".join(rows))
    paths = [f"train_file_path={folder}/train.jsonl", f"pytorch_model_path={model}"]
    return ["sentence1_key=text", "label_key=label", *paths]


def seconds(command: list[str]) -> float:
    """Wall time of one run of a command, which keeps its byte code as that of an installed package is kept."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - start


def main(runs: int) -> None:
    """Time every command and print the table."""
    tuneport = str(Path(sys.executable).with_name("tuneport"))
    with tempfile.TemporaryDirectory() as folder:
        validate = ["validate", "text_classification", *inputs(Path(folder))]
        azureml = ["--config", f"{folder}/azureml.yaml"]
        Path(azureml[1]).write_text("platform: {azureml: {image_base: base:1, image_trainer: trainer:1}}")
        goals = {
            "python -c pass": ([sys.executable, "-c", "pass"], None),
            "tuneport --help": ([tuneport, "--help"], 0.3),
            "python -m steps finetune --help": ([sys.executable, "-m", "steps", "finetune", "--help"], 0.3),
            "tuneport validate": ([tuneport, *validate], 1.0),
            "tuneport validate --target azureml": ([tuneport, *validate, "--target", "azureml", *azureml], 1.0),
            "tuneport compile --target azureml": (
                [tuneport, "compile", *validate[1:], "--target", "azureml", *azureml, "-o", f"{folder}/job"],
                0.6,
            ),
        }
        platform = {"images": {"base": f"base@sha256:{64 * '0'}", "trainer": f"trainer@sha256:{64 * '0'}"}}
        data = {"pytorch_model_path": "s3://models/base", "train_file_path": "s3://data/train.jsonl"}
        columns = {"sentence1_key": "text", "label_key": "label"}
        config = Path(folder, "kfp.yaml")
        config.write_text(json.dumps({**data, **columns, "platform": {"kfp": platform}}))
        compile_ = ["compile", "text_classification", "--config", str(config), "--target", "kfp"]
        kfp = [[sys.executable, "-c", "import kfp"], [tuneport, *compile_, "-o", str(Path(folder, "pipeline.yaml"))]]
        print(f"{'command':36}{'median s':>9}{'goal s':>8}{'ratio':>7}   ({runs} runs)")
        for name, (command, goal) in goals.items():
            seconds(command)  # fills the disk's cache, writes the byte code
            median = statistics.median(seconds(command) for _ in range(runs))
            print(f"{name:36}{median:9.3f}" + (f"{goal:8.1f}{median / goal:7.2f}" if goal else ""))
        compare("tuneport compile --target kfp", *kfp, 1.5, runs)


def compare(name: str, base: list[str], command: list[str], goal: float, runs: int) -> None:
    """Print how many times as long a command takes as another, run by turns."""
    times = [(seconds(base), seconds(command)) for _ in range(runs + 1)][1:]
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    ratio = medians[1] / medians[0]
    print(f"{name:36}{medians[1]:9.3f}{goal * medians[0]:8.1f}{ratio / goal:7.2f}   ({ratio:.2f} x import kfp)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
