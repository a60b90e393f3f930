"""Ports, and the one message format for a value that does not fit."""

import re
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from tuneport.artifacts import Dataset, File, Model
from tuneport.errors import UserError
from tuneport.step import REQUIRED, Params, Step, consumes, param, parse_values, produces


class Schedule(Params):
    """Schedule."""

    rate: float = param("Rate.", default=2e-5, gt=0)
    warmup: int | None = param("Warm-up.", default=None, ge=0)


class LearnWords(Step, Schedule):
    """Learn words.

    And a second paragraph.
    """

    data: Dataset = consumes("Data.")
    more: File | None = consumes("More data.")
    label: str = param("Column.")
    steps: int = param("Steps.", default=-1, ge=-1, lt=100)
    share: float = param("Share.", default=0.5, ge=0, le=1)
    quick: bool = param("Quick.", default=False)
    optim: Literal["adamw", "sgd", ""] = param("Optimiser.", default="")
    precision: Literal["32", "16"] = param("Bits.", default="32")
    note: str | None = param("Note.", default=None)
    model: Model = produces("Model.")

    def run(self) -> None:
        (self.model.path / "x").touch()


def made(**values: Any) -> LearnWords:
    return LearnWords(**({"data": "d", "label": "l"} | values))


def test_ports_are_the_fields_with_a_steps_own_before_its_groups() -> None:
    ports = LearnWords.ports()
    assert list(ports) == [
        "data", "more", "label", "steps", "share", "quick", "optim", "precision", "note", "model", "rate", "warmup",
    ]  # fmt: skip
    assert (ports["rate"].group, ports["label"].group) == ("Schedule", "")
    assert (ports["label"].default, ports["label"].required) == (REQUIRED, True)
    assert (ports["more"].default, ports["more"].required, ports["more"].optional) == (None, False, True)
    assert ports["optim"].choices == ("adamw", "sgd", "")
    assert (ports["rate"].bounds, ports["steps"].bounds) == ({"gt": 0}, {"ge": -1, "lt": 100})
    assert (LearnWords.name(), LearnWords.description()) == ("learn_words", "Learn words.")


def test_values_become_their_ports_types() -> None:
    step = made(steps="7", rate="3e-4", quick="TRUE", warmup="12", label=5, precision=32, more="x.csv", note="")
    assert (step.steps, step.rate, step.quick, step.warmup) == (7, 3e-4, True, 12)
    assert (step.label, step.precision, step.note) == ("5", "32", "")
    assert step.data == Dataset(Path("d"))
    assert step.more == File(Path("x.csv"))
    assert step.model is None


@pytest.mark.parametrize("text", ["true", "True", "TRUE", True])
def test_booleans_are_taken_in_any_case(text: Any) -> None:
    assert made(quick=text).quick is True
    assert made(quick=str(not text) if isinstance(text, bool) else "False").quick is False


@pytest.mark.parametrize("text", ["", "none", "None", "null", None])
def test_an_optional_number_is_unset_by_an_empty_text_or_none(text: Any) -> None:
    assert made(warmup=text).warmup is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": "many"}, "steps='many': not valid; expected a whole number >= -1 and < 100 (default -1)."),
        ({"steps": 1.5}, "steps=1.5: not valid; expected a whole number >= -1 and < 100 (default -1)."),
        ({"steps": 100}, "steps=100: not valid; expected a whole number >= -1 and < 100 (default -1)."),
        ({"steps": -2}, "steps=-2: not valid; expected a whole number >= -1 and < 100 (default -1)."),
        ({"steps": ""}, "steps='': not valid; expected a whole number >= -1 and < 100 (default -1)."),
        ({"steps": None}, "steps=None: not valid; expected a whole number >= -1 and < 100 (default -1)."),
        ({"rate": 0}, "rate=0: not valid; expected a number > 0 (default 2e-05)."),
        ({"rate": "nan"}, "rate='nan': not valid; expected a number > 0 (default 2e-05)."),
        ({"rate": "inf"}, "rate='inf': not valid; expected a number > 0 (default 2e-05)."),
        ({"share": 1.01}, "share=1.01: not valid; expected a number >= 0 and <= 1 (default 0.5)."),
        ({"quick": "maybe"}, "quick='maybe': not valid; expected true or false (default false)."),
        ({"label": True}, "label=true: not valid; expected text."),
        ({"label": ["a"]}, "label=['a']: not valid; expected text."),
        (
            {"optim": "admw"},
            "optim='admw': not valid; expected one of adamw, sgd, '' (default ''). Did you mean 'adamw'?",
        ),
        ({"precision": "8"}, "precision='8': not valid; expected one of 32, 16 (default '32')."),
        ({"data": ""}, "data='': not valid; expected a path (Dataset)."),
        ({"data": "a\0b"}, "data='a\\x00b': not valid; expected a path (Dataset)."),
        ({"label": REQUIRED}, "label: is required by learn_words; expected text."),
        ({"data": REQUIRED}, "data: is required by learn_words; expected a path (Dataset)."),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_what_was_wanted(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        made(**given)


def test_all_that_is_wrong_is_told_at_once() -> None:
    values = {"steps": "x", "lable": "y", "rate": 1, "quick": 2}
    with pytest.raises(UserError) as e:
        parse_values(LearnWords.ports(), values, "learn_words")
    assert str(e.value).splitlines() == [
        "steps='x': not valid; expected a whole number >= -1 and < 100 (default -1).",
        "unknown parameter 'lable' for learn_words. Did you mean 'label'?",
        "quick=2: not valid; expected true or false (default false).",
    ]


class Settled(LearnWords):
    """Learn one column."""

    fixed: ClassVar = {"label": "text"}


def test_a_specialised_steps_settled_value_stands_whatever_is_given() -> None:
    assert Settled(data="d").label == "text"
    assert Settled(data="d", label="other").label == "text"
