"""Make the pictures of the documentation from real runs: `python docs/make_pictures.py`, with Chromium at hand.

It runs examples/text_classification on a terminal of 100 columns, in a folder that is deleted, and takes pictures of
the terminal at each step, of the report and of MLflow; and of a preview of every example. `previews`, `steps` or `run`
as an argument makes those alone.
"""

import io
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyte
from PIL import Image
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.terminal import ROWS, written  # noqa: E402

PICTURES = ROOT / "docs" / "pictures"
COLUMNS = 100
COLOURS = 96  # of a PNG's palette: flat pages need no more
ERRORS_ALONE = "section:not(#errors), .verdict, header, footer { display: none; }"
PREVIEWS = {  # how high the part of the page is that is shown, in pixels
    "text_classification": 340,
    "token_classification": 325,
    "question_answering": 405,
    "summarization": 432,
    "translation": 340,
    "text_generation": 360,
    "chat_completion": 405,
}
RUN = ["run", "text_classification", "--config", "config.yaml", "num_train_epochs=2", "--name", "first"]


def main(asked: list[str]) -> None:
    """Make those that are asked for, or all."""
    PICTURES.mkdir(exist_ok=True)
    for make in [make for name, make in MAKERS.items() if name in (asked or MAKERS)]:
        with tempfile.TemporaryDirectory() as place:
            make(Path(place))


def example(place: Path, task: str) -> Path:
    """The folder of an example, with its model and its rows."""
    copy = [tuneport(), "examples", "copy", task]
    subprocess.run(copy, cwd=place, check=True, stdout=subprocess.DEVNULL)
    for program in ("fetch.py", "make_model.py"):  # a model that is to be made, after the rows
        if (place / task / program).is_file():
            subprocess.run([sys.executable, program], cwd=place / task, check=True, stdout=subprocess.DEVNULL)
    return place / task


def steps(place: Path) -> None:
    """What a terminal shows of each step before the run."""
    folder = example(place, "text_classification")
    shutil.copy(folder / "data" / "questions.jsonl", folder)
    shutil.copytree(folder / "data" / "model", folder / "models" / "minilm")
    init = ["init", "--data", "questions.jsonl", "--model", "models/minilm", "-o", "run.yaml"]
    picture_of_terminal(init, folder, PICTURES / "init.svg", wrote="run.yaml")
    validate = ["validate", "text_classification", "--config", "run.yaml"]
    picture_of_terminal(validate, folder, PICTURES / "validate.svg")


def run(place: Path) -> None:
    """The end of a run on a terminal, its report, and MLflow's page."""
    folder = example(place, "text_classification")
    picture_of_terminal(RUN, folder, PICTURES / "run.svg")
    report = folder / "runs" / "text_classification" / "first" / "model_evaluation" / "evaluation_result"
    photograph((report / "report.html").as_uri(), PICTURES / "report.png", 1180, 900)
    page = (report / "report.html").read_text("utf-8")
    (report / "errors.html").write_text(page.replace("</style>", f"{ERRORS_ALONE}</style>", 1), "utf-8")
    photograph((report / "errors.html").as_uri(), PICTURES / "report-errors.png", 1180, 640)
    photograph((report / "report.html").as_uri(), PICTURES / "report-phone.png", 390, 900)
    with mlflow_ui(folder) as address:
        photograph(f"{address}/#/experiments/1/runs?workflowType=machine_learning", PICTURES / "mlflow.png", 1280, 620)


def previews(place: Path) -> None:
    """Of each task, the first rows as the model sees them, as a page."""
    for task, height in PREVIEWS.items():
        folder = example(place, task)
        command = [tuneport(), "preview", task, "--config", "config.yaml", "--rows", "2", "--html", "preview.html"]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        photograph((folder / "preview.html").as_uri(), PICTURES / f"preview-{task}.png", 1120, height)


MAKERS = {"steps": steps, "run": run, "previews": previews}


def tuneport() -> str:
    """The command of this environment."""
    return str(Path(sys.executable).with_name("tuneport"))


def picture_of_terminal(arguments: list[str], folder: Path, picture: Path, wrote: str | None = None) -> None:
    """Run a command on a terminal, and draw the last screen as SVG; ``wrote``: a file that is shown below it."""
    command = [tuneport(), *arguments]
    if wrote is not None:
        command = ["sh", "-c", f"{shlex.join(command)} && printf '\\n$ cat {wrote}\\n' && cat {wrote}"]
    code, chunks = written(command, COLUMNS, folder, {**os.environ, "PATH": _path()})
    if code:
        raise SystemExit(b"".join(chunks).decode("utf-8", "replace"))
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    for chunk in chunks:
        stream.feed(chunk.replace(f"{folder}/".encode(), b"").replace(str(folder).encode(), b"~/questions"))
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    for line in _lines(screen):
        console.print(line, no_wrap=True, overflow="crop")
    drawn = console.export_svg(title=f"$ tuneport {' '.join(arguments)}")
    alone = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)  # those are fetched from elsewhere
    picture.write_text(alone, "utf-8")


def _path() -> str:
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


def _lines(screen: pyte.Screen) -> Iterator[Text]:
    last = max((i for i, line in enumerate(screen.display) if line.strip()), default=0)
    for row in range(last + 1):
        text = Text()
        for column in range(screen.columns):
            cell = screen.buffer[row][column]
            colour = "" if cell.fg == "default" else {"brown": "yellow"}.get(cell.fg, cell.fg)
            colour = f"#{colour}" if len(colour) == 6 and not colour.isalpha() else colour
            text.append(cell.data, f"{'bold ' if cell.bold else ''}{colour.replace('bright', 'bright_')}")
        text.rstrip()
        yield text


def photograph(address: str, picture: Path, width: int, height: int) -> None:
    """Take a picture of a page in Chromium."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("error: there is no chromium; install it, as with apt-get install chromium")
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=30000"]
        flags += [f"--user-data-dir={profile}", f"--window-size={width},{height}", f"--screenshot={picture}"]
        subprocess.run([chromium, *flags, address], check=True, capture_output=True, timeout=180)
    Image.open(picture).convert("RGB").quantize(COLOURS).save(picture, optimize=True)


@contextmanager
def mlflow_ui(folder: Path) -> Iterator[str]:
    """MLflow's pages of a run's folder."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [str(Path(sys.executable).with_name("mlflow")), "ui", "--port", str(port)]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "PATH": _path()}
    store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    server = subprocess.Popen([*command, *store], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main(sys.argv[1:])
