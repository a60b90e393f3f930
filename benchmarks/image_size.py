"""Where the images' megabytes go, and how soon a container says something: `python benchmarks/image_size.py [RUNS]`.

Reads the images that `make images` builds; without them or without Docker it says so and measures nothing.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from startup import inputs

from tuneport.errors import UserError
from tuneport.targets.docker.container import Engine
from tuneport.targets.docker.settings import Images

MB = 1_000_000
GOALS = {"base": 650, "trainer": 2200}  # MB, unpacked; the trainer's with a torch for CPUs
GOAL_FIRST_LINE = 1.5  # seconds
LARGEST = 12
# A file counts once, for the first of these that holds it.
LIST = "du -sk --apparent-size /opt/venv/lib/python3*/site-packages/* /opt/venv /bin /etc /lib /sbin /usr /var 2>&1"


def parts(engine: Engine, image: str) -> dict[str, float]:
    """MB by what an image holds: the base system, the largest packages, the rest."""
    listed = engine("run", "--rm", "--network", "none", "--user", "0", image, "sh", "-c", LIST).stdout
    sizes = {
        path: int(kib) * 1024 / MB for kib, _, path in (line.partition("\t") for line in listed.splitlines()) if path
    }
    packages = {path.rpartition("/")[2]: size for path, size in sizes.items() if path.startswith("/opt/venv/")}
    largest = dict(sorted(packages.items(), key=lambda entry: -entry[1])[:LARGEST])
    system = sum(size for path, size in sizes.items() if not path.startswith("/opt/"))
    return {"base system": system, **largest, "all else": sum(sizes.values()) - system - sum(largest.values())}


def first_line(image: str, folder: Path) -> float:
    """Seconds from `docker run` of preprocess to its first line."""
    values = {"task_name": "text_classification", "sentence1_key": "text", "label_key": "label"}
    paths = {"model_selector_output": "/in/imported", "train_file_path": "/in/train.jsonl"}
    flags = [text for name, value in {**values, **paths}.items() for text in (f"--{name}", value)]
    command = ["docker", "run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp", "--volume"]  # noqa: S108
    command += [f"{folder}:/in:ro", image, "python", "-m", "steps", "preprocess", *flags]
    command += ["--preprocess_output", "/tmp/preprocess_output"]  # noqa: S108
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    line = process.stdout.readline()
    took = time.perf_counter() - started
    rest, _ = process.communicate()
    if process.returncode != 0:
        sys.exit(f"preprocess failed in {image}:\n{(line + rest).decode()}")
    return took


def main(runs: int) -> None:
    """Print the tables; exit 1 where a goal is missed."""
    missed = False
    try:
        engine = Engine()
        images = dict(Images())
        sizes = {name: int(engine.inspect(image, name)["Size"]) / MB for name, image in images.items()}
    except UserError as e:
        print(f"nothing measured: {e}")
        return
    for name, image in images.items():
        table, verdict = parts(engine, image), "met" if sizes[name] <= GOALS[name] else "missed"
        print(f"{image}: {sizes[name]:.0f} MB unpacked, goal <= {GOALS[name]} MB: {verdict}")
        print("\n".join(f"  {part:32}{size:8.1f} MB" for part, size in table.items()))
        missed |= sizes[name] > GOALS[name]
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        folder.chmod(0o755)
        inputs(folder)
        stage = [sys.executable, "-m", "steps", "model_import", "--pytorch_model_path", str(folder / "model")]
        subprocess.run([*stage, "--model_selector_output", str(folder / "imported")], check=True, capture_output=True)
        median = statistics.median(first_line(images["base"], folder) for _ in range(runs))
    verdict = "met" if median <= GOAL_FIRST_LINE else "missed"
    print(f"first log line of preprocess: {median:.2f} s after docker run ({runs} runs), ", end="")
    print(f"goal <= {GOAL_FIRST_LINE:g} s: {verdict}")
    sys.exit(missed or median > GOAL_FIRST_LINE)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
