"""Where a user's file lies: a path of this machine, or an address elsewhere. Nothing is opened here."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from tuneport.secrets import masked

# What is opened by fsspec, and the extra of ours that installs what it needs for that; empty: it is always there.
EXTRAS = {
    "s3": "s3", "gs": "gcs", "abfs": "azure", "abfss": "azure", "az": "azure",
    "http": "", "https": "", "hf": "",
}  # fmt: skip
WEB = ("http", "https")
PATTERN = frozenset("*?[")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # a `Path` makes one slash of the two
_ASSET = re.compile(r"azureml:")  # of Azure ML, which has no slash: azureml:rows:3
# A split of a data set on a hub, as people write it: organisation/name:train, also organisation/name@revision:train.
_OF_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[^/:]+)?:[A-Za-z]\w*")


def is_elsewhere(text: str) -> bool:
    """Whether a text is an address that no path of this machine stands for, as ``s3://…`` or ``azureml:rows:3``."""
    known = _SCHEME.match(text) or _ASSET.match(text) or _OF_HUB.fullmatch(text)
    return bool(known) and not text.startswith("file:/")


@dataclass(frozen=True)
class Address:
    """A local path as text, or an address as the user wrote it; `str` shows it without secrets."""

    text: str

    @classmethod
    def of(cls, value: str | Path | Address) -> Address:
        """The address of a path or a text; ``file://`` is the path that it names, ``NAME:SPLIT`` a hub's data set."""
        if isinstance(value, Address):
            return value
        text = str(value)
        if text.startswith("file:/"):
            return cls("/" + unquote(text.removeprefix("file:").lstrip("/")))
        if _OF_HUB.fullmatch(text):
            return cls(f"./{text}" if isinstance(value, Path) else f"hf://datasets/{text}")
        if isinstance(value, Path) and is_elsewhere(text):  # it lost a slash
            text = re.sub(r"^([A-Za-z][A-Za-z0-9+.-]+):/(?!/)", r"\1://", text)
        return cls(text)

    def __str__(self) -> str:
        return masked(os.fsencode(self.text).decode("utf-8", "replace"))

    @property
    def is_local(self) -> bool:
        return not is_elsewhere(self.text)

    @property
    def scheme(self) -> str:
        """In lower case; empty for a path."""
        return "" if self.is_local else self.text.partition(":")[0].lower()

    @property
    def path(self) -> Path:
        """The path of this machine. Raises ValueError where it is none."""
        if not self.is_local:
            raise ValueError(f"{self}: is no path of this machine")
        return Path(self.text)

    @property
    def key(self) -> str:
        """The part after the scheme; of a web address without query and fragment."""
        if self.is_local:
            return self.text
        rest = self.text.partition(":")[2].lstrip("/")
        return re.split(r"[?#]", rest, maxsplit=1)[0] if self.scheme in WEB else rest

    @property
    def name(self) -> str:
        """The last part of its path."""
        return Path(self.text).name if self.is_local else self.key.rstrip("/").rpartition("/")[2]

    @property
    def is_pattern(self) -> bool:
        """Whether it has wildcards; in a web address those signs mean something else."""
        return self.scheme not in WEB and bool(PATTERN & set(self.text))

    def child(self, name: str) -> Address:
        """What stands under it by a relative name."""
        return Address(str(Path(self.text) / name) if self.is_local else f"{self.text.rstrip('/')}/{name}")
