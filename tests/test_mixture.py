"""Lists of sources: one text for whatever way they are written, and what is no such list."""

import json
from typing import Any

import pytest

from tuneport import mixture
from tuneport.artifacts import File, MLTable, digest
from tuneport.errors import UserError
from tuneport.secrets import masked
from tuneport.step import Port


def test_a_list_is_one_text_however_it_is_written() -> None:
    given = [{"path": "a.jsonl", "weight": 3, "max_rows": None}, {"weight": 1, "path": "s3://rows/b"}]
    text = mixture.canonical("data", given)
    assert text == '[{"path": "a.jsonl", "weight": 3}, {"path": "s3://rows/b", "weight": 1}]'
    assert mixture.canonical("data", json.dumps(given)) == mixture.canonical("data", text) == text
    assert mixture.canonical("data", ["a.jsonl", "b.jsonl"]) == '[{"path": "a.jsonl"}, {"path": "b.jsonl"}]'
    assert mixture.canonical("data", {"path": "a", "columns": {"x": "y"}}) == '[{"path": "a", "columns": {"x": "y"}}]'
    assert [part.address.text for part in mixture.parts(text)] == ["a.jsonl", "s3://rows/b"]


@pytest.mark.parametrize("text", ["[ab]*.jsonl", "rows[0-9].csv", "{a}.jsonl", "s3://rows/[ab].csv"])
def test_a_glob_with_brackets_is_a_path(text: str) -> None:
    assert not mixture.is_mixture(text)
    (part,) = mixture.parts(text)
    assert part.address.text == text


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ('[{"path": "a.jsonl", }]', "is not JSON"),
        ("[]", "names no source"),
        ([3], "data[1]: is 3; expected a path, or an object with path, weight, max_rows, columns"),
        ([{"path": "a", "wieght": 1}], "data[1]: 'wieght' is not known; expected path, weight, max_rows, columns. Did"),
        (["a", {"weight": 1}], "data[2].path=None: not valid; expected a path or an address"),
        ([{"path": "a", "weight": -1}], "data[1].weight=-1: not valid; expected a number of at least 0"),
        ([{"path": "a", "weight": True}], "data[1].weight=True: not valid"),
        ('[{"path": "a", "weight": NaN}]', "data[1].weight=nan: not valid"),
        ([{"path": "a", "max_rows": 0}], "data[1].max_rows=0: not valid; expected a whole number of at least 1"),
        ([{"path": "a", "columns": ["b"]}], "data[1].columns=['b']: not valid; expected an object of names"),
        ([{"path": "a", "weight": 0}, {"path": "b", "weight": 0}], "the weights sum to 0; expected at least one above"),
        ([{"path": "a", "weight": 1}, "b"], "'b' has no weight, but others have one"),
        (["a", "b", "a"], "names 'a' twice; expected each source once"),
    ],
)
def test_what_is_no_list_of_sources_is_refused(value: Any, said: str) -> None:
    with pytest.raises(UserError) as e:
        mixture.canonical("data", value)
    assert said in str(e.value)


def test_an_artifact_of_several_sources_is_each_of_them(tmp_path: Any) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    port = Port(name="data", kind="input", type=File, help="", mixable=True)
    both = port.parse([{"path": str(tmp_path / "a"), "weight": 1}, {"path": str(tmp_path / "b"), "weight": 2}])
    assert both.is_mixture and both.is_local and port.parse(both) == both
    assert [one.path for one in both.each()] == [tmp_path / "a", tmp_path / "b"]
    assert not port.parse([str(tmp_path / "a"), "s3://rows/b"]).is_local
    before = digest(both)
    other = port.parse([{"path": str(tmp_path / "a"), "weight": 1}, {"path": str(tmp_path / "b"), "weight": 3}])
    assert digest(other) != before
    (tmp_path / "b").write_text("changed")
    assert digest(both) != before
    tables = Port(name="data", kind="input", type=MLTable, help="", mixable=True).parse(["a", "b"])
    assert all(isinstance(one, MLTable) for one in tables.each())
    alone = Port(name="data", kind="input", type=File, help="").parse('[{"path": "a"}]')
    assert not alone.is_mixture


def test_secrets_of_its_addresses_are_masked() -> None:
    text = mixture.canonical("data", [{"path": "https://me:secret@host/a.csv?sig=hidden", "weight": 1}])
    assert "secret" not in masked(text) and "hidden" not in masked(text) and '"weight": 1' in masked(text)
