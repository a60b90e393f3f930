"""What a process says at its end is left where it outlasts its pod."""

import os
import socket
from pathlib import Path

import pytest

from tuneport.cli import exit_codes
from tuneport.errors import UserError
from tuneport.launchers import last_words


def test_a_message_is_left_in_the_shared_folder_and_where_the_kubelet_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, kubelets = tmp_path / "shared", tmp_path / "termination-log"
    shared.mkdir()
    kubelets.touch()
    monkeypatch.setenv(last_words.VARIABLE, os.pathsep.join(map(str, (shared, kubelets, tmp_path / "missing"))))

    def work() -> int:
        raise UserError("column x is missing in https://user:password@data.example/x")

    assert exit_codes.guard(work) == 2
    said = "column x is missing in https://***@data.example/x"
    assert last_words.read(shared) == {socket.gethostname(): said} and kubelets.read_text() == said
    assert not (tmp_path / "missing").exists()
    assert last_words.read(tmp_path / "missing") == {}


def test_a_long_message_is_cut_to_what_the_kubelet_takes(tmp_path: Path) -> None:
    last_words.leave({last_words.VARIABLE: str(tmp_path)}, "é" * 5000)
    assert (tmp_path / socket.gethostname()).stat().st_size == 4096
    assert last_words.read(tmp_path)[socket.gethostname()].startswith("ééé")
