"""Secrets in addresses, told by their structure."""

import pytest

from tuneport.errors import UserError, excerpt
from tuneport.secrets import credentials, masked, masked_values


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:CANARY@host:5000/a", "http://***@host:5000/a"),
        ("https://CANARY@host", "https://***@host"),
        ("https:/me:CANARY@host/a", "https:/***@host/a"),  # as a Path writes it
        ("http://me:CAN@ARY@host/a", "http://***@host/a"),
        ("http://me:CAN/ARY@host/a", "http://***@host/a"),
        ("http://me:CAN?A#RY@host/a", "http://***@host/a"),
        ("http://me:CAN ARY@host/a", "http://***@host/a"),
        ("http://me:CAN'A\"RY@host/a", "http://***@host/a"),
        ("http://me:CANAR…", "http://me:***"),  # cut off
        ("postgresql+psycopg://me:CANARY@db/mlflow?password=CANARY", "postgresql+psycopg://***@db/mlflow?password=***"),
        ("https://a.blob/x?se=CANARY&sig=CANARY%2B%3D&version=3", "https://a.blob/x?se=***&sig=***&version=3"),
        ("https://h/x?X-Amz-Signature=CANARY#token=CANARY", "https://h/x?X-Amz-Signature=***#token=***"),
        ("https://h/x?CANARY", "https://h/x?***"),
        ("https://h/x?version=1&amp;sig=CANARY", "https://h/x?version=1&amp;sig=***"),
        (r"https://h/x?version=1\u0026sig=CANARY", r"https://h/x?version=1\u0026sig=***"),
        ("https://h/x?s%69g=CANARY", "https://h/x?s%69g=***"),
        ("https://proxy/https://me:CANARY@host/a", "https://proxy/https://***@host/a"),
        ("a='http://m:CANARY@h', b=\"https://h?k=CANARY\".", "a='http://***@h', b=\"https://h?k=***\"."),
        ("abfss://me:CANARY@account/x", "abfss://***@account/x"),
        ("why?https://h/x?sig=CANARY", "why?https://h/x?sig=***"),
        ("https://h/x?sig=CAN'A\"RY", "https://h/x?sig=***"),
        ('{"a":"https://h/x?sig=CANARY","b":"c"}', '{"a":"https://h/x?sig=***","b":"c"}'),
        ("<a href='https://h/x?sig=CANARY'>b</a>", "<a href='https://h/x?sig=***'>b</a>"),
        ("who?'https://h/x?sig=CANARY'", "who?'https://h/x?sig=***'"),
    ],
)
def test_userinfo_and_the_values_of_a_query_are_masked(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert masked(shown) == shown, "masked twice is masked once"


@pytest.mark.parametrize(
    "text",
    [
        "hf://datasets/a@rev/train.csv",
        "hf://gpt2@main",
        "models:/name@champion",
        "abfss://container@account.dfs.core.windows.net/path",
        "oci://registry/image@sha256:abc",
        "http://host:5000",
        "Set it to http://host:5000; or mail me@host.",
        "http://[::1]:5000/a",
        "https://kubeflow/#/runs/details/12",
        "https://h/x?download=true&versionId=12",
        "s3://bucket/shard-?.json",
        "sqlite:////a folder/mlflow.db?timeout=60",
        "runs:/12/model",
        "me@host wrote a:b",
        "https://registry/@scope/package",
    ],
)
def test_what_holds_no_secret_stays(text: str) -> None:
    assert masked(text) == text


def test_texts_in_mappings_and_lists_are_masked() -> None:
    assert masked_values({"a": ["http://a:b@c", 1, None], "b": True}) == {"a": ["http://***@c", 1, None], "b": True}


def test_values_of_variables_that_hold_credentials_are_masked_where_they_are_known() -> None:
    key = "-----BEGIN-----\nCANARYLINE1\nCANARYLINE2"
    environment = {"HF_TOKEN": "hf_CANARY", "DB_PASSWORD": "short", "MY_SECRET_X": key, "TLS_KEY": "hf_CANARY_2"}
    known = credentials({**environment, "TOKENIZERS_PARALLELISM": "false-or-true", "HOME": "/home/someone"})
    assert masked("Bearer hf_CANARY_2, hf_CANARY", known) == "Bearer ***, ***"
    assert "CANARY" not in masked(key, known)
    assert masked("short false-or-true /home/someone", known) == "short false-or-true /home/someone"


def test_a_mistakes_message_shows_no_secret() -> None:
    address = "https://me:CANARY@host/x?sig=CANARY"
    assert "CANARY" not in str(UserError(f"train_file_path={address}: not valid."))
    for value in (address, "x" * 150 + address, {"a": "y" * 180 + address}, [address], address.encode()):
        assert "CANARY" not in excerpt(value)
        assert "CANARY" not in excerpt(value, 25)


def test_a_long_text_is_masked_fast() -> None:
    for text in ("http://" * 50_000, "a:/" * 50_000, "http://a:b" + "x" * 500_000, "http://a:b " * 20_000):
        masked(text)
