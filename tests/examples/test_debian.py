"""Descriptions are read as Debian's control files and indexes write them."""

import hashlib
import lzma
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

Script = Callable[[str], ModuleType]

PACKAGES = """\
Package: zeroc-icegrid
Source: zeroc-ice (3.7.8-1)
Description-md5: 11
Filename: pool/i.deb

Package: zoo
Description-md5: 22
"""
DESCRIPTIONS = """\
Package: zeroc-icegrid
Description-md5: 11
Description-en: Locate, deploy  and manage servers
 The IceGrid service helps
 you locate servers:
  * one
    more
 .
 Ice is a framework.

Package: elsewhere
Description-md5: 33
Description-en: of another architecture
 Nothing.

Package: zoo
Description-md5: 22
Description-en: archives
"""


@pytest.fixture
def debian(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, with an archive that is all in the cache."""
    monkeypatch.setenv("TUNEPORT_CACHE", str(tmp_path))
    module = script("debian.py")
    folder = tmp_path / f"debian-{module.RELEASE}"
    folder.mkdir()
    index = "Origin: Debian\nMD5Sum:\n 00 1 main/i18n/Translation-en.xz\nSHA256:\n"
    for name, text in ((module.PACKAGES, PACKAGES), ("main/i18n/Translation-en", DESCRIPTIONS)):
        data = lzma.compress(text.encode())
        (folder / f"{Path(name).name}.xz").write_bytes(data)
        index += f" {hashlib.sha256(data).hexdigest()} {len(data):>8} {name}.xz\n"
    (folder / "InRelease").write_text(index)
    return module


def test_a_description_has_its_source_package_its_synopsis_and_its_paragraphs(debian: ModuleType) -> None:
    ice, zoo = debian.descriptions()
    assert (ice.package, ice.source, ice.synopsis) == (
        "zeroc-icegrid",
        "zeroc-ice",
        "Locate, deploy and manage servers",
    )
    assert [(p.text, p.verbatim) for p in ice.paragraphs] == [
        ("The IceGrid service helps you locate servers:", False),
        ("  * one\n    more", True),
        ("Ice is a framework.", False),
    ]
    assert ice.prose == "The IceGrid service helps you locate servers:\nIce is a framework."
    assert (zoo.source, zoo.paragraphs) == ("zoo", ())


def test_a_file_that_the_index_does_not_list_is_an_error_of_one_line(debian: ModuleType, tmp_path: Path) -> None:
    index = tmp_path / f"debian-{debian.RELEASE}" / "InRelease"
    with pytest.raises(SystemExit, match=r"lists no main/i18n/Translation-xx; expected it as one of \.xz") as e:
        debian.find(index, ["main/i18n/Translation-xx"])
    assert "\n" not in str(e.value)


def test_without_a_network_what_is_missing_is_an_error_of_one_line(
    debian: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"debian-{debian.RELEASE}" / "Packages.xz").write_bytes(b"cut")
    monkeypatch.setattr(debian, "HOST", "http://127.0.0.1:9")  # where nothing listens
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(SystemExit, match=r"error: http://127.0.0.1:9/.*/InRelease could not be downloaded") as e:
        debian.descriptions()
    assert "\n" not in str(e.value)


def test_the_order_of_rows_is_settled_by_their_keys_alone(script: Script) -> None:
    shuffled = script("fetching.py").shuffled
    assert shuffled("abcdef", str) == shuffled("fedcba", str) == list("dfcbea")
