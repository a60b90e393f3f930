"""Make the pictures of the documentation from a real run: `python docs/make_pictures.py`, with Chromium at hand.

It runs examples/text_classification on a terminal of 100 columns, in a folder that is deleted, and takes pictures of
the terminal, of the report, of MLflow and of the preview.
"""

import io
import os
import re
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
RUN = ["run", "text_classification", "--config", "config.yaml", "num_train_epochs=2", "--name", "first"]


def main() -> None:
    """Make them all."""
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "text_classification"
        copy = [tuneport(), "examples", "copy", folder.name]
        subprocess.run(copy, cwd=place, check=True, stdout=subprocess.DEVNULL)
        subprocess.run([sys.executable, "fetch.py"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        picture_of_terminal(RUN, folder, PICTURES / "run.svg")
        report = folder / "runs" / "text_classification" / "first" / "model_evaluation" / "evaluation_result"
        photograph((report / "report.html").as_uri(), PICTURES / "report.png", 1180, 900)
        page = (report / "report.html").read_text("utf-8")
        (report / "errors.html").write_text(page.replace("</style>", f"{ERRORS_ALONE}</style>", 1), "utf-8")
        photograph((report / "errors.html").as_uri(), PICTURES / "report-errors.png", 1180, 640)
        photograph((report / "report.html").as_uri(), PICTURES / "report-phone.png", 390, 900)
        with mlflow_ui(folder) as address:
            photograph(
                f"{address}/#/experiments/1/runs?workflowType=machine_learning", PICTURES / "mlflow.png", 1280, 620
            )
        preview(folder)


def preview(folder: Path) -> None:
    """The rows as the model sees them, as a page."""
    command = [tuneport(), "preview", "text_classification", "--config", "config.yaml", "--rows", "2"]
    page = folder / "preview.html"
    subprocess.run([*command, "--html", page.name], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    photograph(page.as_uri(), PICTURES / "preview.png", 1000, 338)


def tuneport() -> str:
    """The command of this environment."""
    return str(Path(sys.executable).with_name("tuneport"))


def picture_of_terminal(arguments: list[str], folder: Path, picture: Path) -> None:
    """Run a command on a terminal, and draw the last screen as SVG."""
    code, chunks = written([tuneport(), *arguments], COLUMNS, folder, {**os.environ, "PATH": _path()})
    if code:
        raise SystemExit(b"".join(chunks).decode("utf-8", "replace"))
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    for chunk in chunks:
        stream.feed(chunk.replace(str(folder).encode() + b"/", b""))
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
    main()
