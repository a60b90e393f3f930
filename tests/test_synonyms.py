"""What other programs call a parameter is known, wherever an unknown name is refused."""

import pytest

import pipelines
from tuneport.synonyms import SYNONYMS, VALUES, meant


@pytest.mark.parametrize(
    ("said", "task", "hint"),
    [
        ("lr", "text_classification", "'learning_rate'"),
        ("epochs", "text_classification", "'num_train_epochs'"),
        ("train-batch-size", "text_classification", "'per_device_train_batch_size'"),
        ("FP32", "text_classification", "'precision=32'"),
        ("load_in_4bit", "text_classification", "'quantization=4bit'"),
        ("text_column", "text_classification", "'sentence1_key'"),
        ("text_column", "summarization", "'document_key'"),
        ("label_column", "token_classification", "'tag_key'"),
        ("run_name", "text_classification", "--name NAME"),
        ("lerning_rate", "text_classification", "'learning_rate'"),
    ],
)
def test_what_others_call_a_parameter_is_known(said: str, task: str, hint: str) -> None:
    assert meant(said, pipelines.load(task).params) == f" Did you mean {hint}?"


def test_each_parameter_and_value_that_is_proposed_is_there() -> None:
    ports = {name: port for task in pipelines.names() for name, port in pipelines.load(task).params.items()}
    assert {*SYNONYMS} <= {*ports}
    for value in VALUES.values():
        name, _, text = value.partition("=")
        ports[name].parse(text)
