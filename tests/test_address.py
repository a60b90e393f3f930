"""What an address is, and that it is shown without secrets."""

from pathlib import Path

import pytest

from tuneport.address import Address, is_elsewhere
from tuneport.artifacts import File
from tuneport.step import Port


@pytest.mark.parametrize(
    ("text", "scheme", "key", "name"),
    [
        ("/data/rows.jsonl", "", "/data/rows.jsonl", "rows.jsonl"),
        ("file:///data/a%20b.csv", "", "/data/a b.csv", "a b.csv"),
        ("s3://bucket//odd/../rows.csv", "s3", "bucket//odd/../rows.csv", "rows.csv"),
        ("GS://bucket/rows/", "gs", "bucket/rows/", "rows"),
        ("https://host/rows.csv?sig=a/b#part", "https", "host/rows.csv", "rows.csv"),
        ("hf://datasets/a/b@main/x.csv", "hf", "datasets/a/b@main/x.csv", "x.csv"),
        ("azureml:rows:3", "azureml", "rows:3", "rows:3"),
    ],
)
def test_an_address_is_read_as_it_is_written(text: str, scheme: str, key: str, name: str) -> None:
    found = Address.of(text)
    assert (found.scheme, found.key, found.name) == (scheme, key, name)
    assert found.is_local == (scheme == "")


def test_what_a_path_lost_of_an_address_is_given_back_and_what_a_text_says_is_kept() -> None:
    assert Address.of(Path("s3://bucket/key")).text == "s3://bucket/key"
    assert Address.of("models:/classifier/3").text == "models:/classifier/3"


def test_wildcards_are_a_pattern_but_in_web_addresses() -> None:
    assert Address.of("s3://b/*.csv").is_pattern and Address.of("/d/[ab].csv").is_pattern
    assert not Address.of("https://h/x.csv?a=b").is_pattern


def test_secrets_are_not_shown_and_an_address_elsewhere_has_no_path() -> None:
    address = Address.of("https://user:pass@host/rows.csv?sig=abc")
    assert str(address) == "https://***@host/rows.csv?sig=***"
    with pytest.raises(ValueError, match=r"\*\*\*@host"):
        _ = address.path


def test_an_artifact_keeps_the_address_that_a_port_was_given() -> None:
    port = Port(name="train_file_path", kind="input", type=File, help="")
    artifact = port.parse("s3://bucket//a/../rows.csv")
    assert artifact.location == "s3://bucket//a/../rows.csv"
    assert port.parse(artifact).location == artifact.location
    assert port.parse("file:///data/x.csv").path == Path("/data/x.csv")


def test_a_split_of_a_hub_s_data_set_is_an_address_and_a_path_is_none() -> None:
    assert Address.of("stanfordnlp/imdb:train").text == "hf://datasets/stanfordnlp/imdb:train"
    assert Address.of("a/b@v1.2:test").text == "hf://datasets/a/b@v1.2:test"
    assert is_elsewhere("stanfordnlp/imdb:train")
    for path in ("./a/b:train", "/a/b:train", "a/b", "a/b/c:train", "a:train", "a/b:train.csv", "a/b:"):
        assert Address.of(path).is_local, path
    assert Address.of(Path("a/b:train")).is_local
    assert File.at(Address.of("./a/b:train")).address.is_local
