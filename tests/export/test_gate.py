"""The condition of a registration: what holds, what does not, and what is no condition."""

import pytest

from tuneport.errors import UserError
from tuneport.export.gate import Gate, Value

SCORES: dict[str, Value] = {"accuracy": 0.75, "base_accuracy": 0.5, "auc": None, "better_than_base": True}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("better_than_base and accuracy >= 0.9", False),
        ("better_than_base and accuracy >= 0.7", True),
        ("not better_than_base or accuracy - base_accuracy > 0.2", True),
        ("0.7 < accuracy <= 0.75", True),
        ("accuracy > 1.5 * base_accuracy", False),
        ("better_than_base == True", True),
        ("-accuracy < 0", True),
        ("accuracy < 0.5 and auc > 0.5", False),
    ],
)
def test_a_condition_holds_or_not(text: str, holds: bool) -> None:
    assert Gate(text, "register_if")(SCORES) is holds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "accuracy >=",
        "__import__('os').system('true')",
        "accuracy.real > 0",
        "(lambda: 1)() > 0",
        "[accuracy][0] > 0",
        "'a' == 'a'",
        "accuracy ** 9999999",
        "accuracy in (1, 2)",
        "accuracy is 1",
        "(x := 1) > 0",
        "+accuracy > 0",
        "accuracy > 0 if 1 else 0",
        "(" * 500 + "accuracy" + ")" * 500,
        "not " * 480 + "better_than_base" + " " * 200,
        "accuracy > 1" + "0" * 3000,
        "1j > 0",
    ],
)
def test_what_is_no_condition_is_refused_before_any_work(text: str) -> None:
    with pytest.raises(UserError, match=r"register_if=.*: not valid \(.*\); expected scores, numbers, and"):
        Gate(text, "register_if")(SCORES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("acuracy > 0.5", "there is no score 'acuracy'; there are: accuracy, .*Did you mean 'accuracy'"),
        ("auc > 0.5", "auc has no value on these test rows"),
        ("accuracy", "it comes to 0.75, not to true or false"),
        ("1" + "0" * 400, "it comes to a number of 1329 bits, not to true or false"),
        ("accuracy and better_than_base", "accuracy is a number, not true or false"),
        ("accuracy / 0 > 1", "division by zero"),
    ],
)
def test_a_condition_that_cannot_be_decided_says_why(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Gate(text, "register_if")(SCORES)


def test_what_was_compared_is_said() -> None:
    gate = Gate("better_than_base and accuracy >= 0.9 and accuracy < 1", "register_if")
    assert gate.said(SCORES) == "better_than_base=true, accuracy=0.75"
