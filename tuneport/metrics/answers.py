"""Scores of what a model writes, row by row: the right answer, the right number, JSON, the right call of a tool.

``metrics`` names those that a report has; the first one made of rows leads it.
"""

from __future__ import annotations

import json
import math
import re
import typing as t
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from tuneport.artifacts import File
from tuneport.errors import UserError, did_you_mean, excerpt
from tuneport.json_yaml import parse_json
from tuneport.metrics import spans, texts
from tuneport.metrics.metric import AnyMetric, Headline, Metric, Sums, Undefined
from tuneport.metrics.texts import WrittenRows
from tuneport.step import Params, consumes, param

if t.TYPE_CHECKING:
    import numpy as np

Calls = list[tuple[str, t.Any]]  # name and arguments of each
METRIC_NAMES = (  # of METRICS
    *("exact_match", "token_f1", "numeric_match", "json_valid", "json_schema", "tool_call", "refusal", "empty_answer"),
    *("answer_words", "rouge1", "rouge2", "rougeL", "rougeLsum", "chrf_rows", "bleu", "chrf", "length_difference"),
)
# metric_for_best_model: a function of the user's, and of a dict that it returns the value meant.
OWN_CHOICE = {r"[^:]+:[A-Za-z_]\w*(\.[\w-]+)?": "file.py:function, of a dict file.py:function.name"}
NUMBER = re.compile(r"(?:(?<![\w.)])[-−])?(?:\d+(?:,\d{3})*(?:\.\d+)?|(?<![\w.)])\.\d+)(?:[eE][-+]?\d+)?")
REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")  # of JSON schemas
FENCE = re.compile(r"^```(?:json)?\s*\n(.*?)\n?```$", re.DOTALL | re.IGNORECASE)
REFUSAL_CHARACTERS = 200  # a text that refuses says so at its start
REFUSALS = re.compile(
    r"\b(?:i(?: am|['’]m) (?:sorry|unable|not able)|i (?:can(?:not|['’]t| not)|won['’]t|will not|must decline)"
    r"|i do(?: not|n['’]t) (?:know|have (?:enough|access))|as an ai\b|as a language model)",
    re.IGNORECASE,
)


class AnswerParams(Params):
    """Scoring of written answers."""

    answer_normalization: t.Literal["none", "case", "squad"] = param(
        "What exact_match does not look at. none: white space around an answer; case: also case, and how much white "
        "space; squad: also punctuation and the English articles.",
        default="none",
    )
    numeric_tolerance: float = param(
        "By how much the last number of an answer may differ from that of the true one in numeric_match.",
        default=1e-6,
        ge=0,
    )
    answer_schema: str | None = param(
        "JSON schema, or its JSON text, that json_schema holds answers against.", default=None, json=True
    )


class AnswerMetricsParams(AnswerParams):
    """Scoring of written answers."""

    metrics: str = param(
        f"Metrics of what is written, the most telling one first: {', '.join(METRIC_NAMES)}, or file.py:function for a "
        "function in metrics_file, or the name of one that another distribution brings. Unset: the task's own.",
        default="",
        json=True,
    )
    metrics_file: File | None = consumes(
        "Python file with functions that metrics names: f(predictions, references, rows) gives a number, one a row, or "
        "a dict of these."
    )


class AnswerRowsParams(Params):
    """Rows of which answers are written."""

    evaluation_rows: int = param(
        "Test rows whose answers are written where metrics names what they are scored by, drawn by the seed; -1: all.",
        default=-1,
        ge=-1,
    )


class ValidationAnswersParams(AnswerParams):
    """Scoring of written answers."""

    validation_metric_file: File | None = consumes(
        "Python file with the function that metric_for_best_model names: f(predictions, references, rows) gives a "
        "number, one a row, or a dict of these."
    )

    answered_validation_rows: int = param(
        "Validation rows whose answers are written at each evaluation of a training whose metric_for_best_model needs "
        "them, drawn by the seed; -1: all.",
        default=-1,
        ge=-1,
    )
    validation_max_new_tokens: int = param(
        "Most tokens of such an answer. -1: as max_new_tokens=-1 says.", default=-1, ge=-1
    )


@dataclass(frozen=True, kw_only=True)
class AnsweredRows(WrittenRows):
    """Texts that a model wrote, beside the true ones, for the rows at ``places`` of ``total``: all, where it is None.

    ``calls`` are the tool calls that are true of each row. The likelihood is of all rows.
    """

    places: Sequence[int] | None = None
    total: int = 0
    calls: Sequence[Calls] = ()
    raw: Sequence[dict[str, t.Any]] = ()
    normalization: str = "none"
    tolerance: float = 1e-6
    schema: str | None = None

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Values (answered rows,) as `Headline.parts` of all rows, (total, 2); nan counts for nothing."""
        import numpy as np

        known = np.isfinite(values)
        parts = np.column_stack([np.where(known, values, 0.0), known.astype(float)])
        if self.places is None:
            return parts
        found = np.zeros((self.total, 2))
        found[list(self.places)] = parts
        return found


Values = Callable[[AnsweredRows], "np.ndarray"]  # (answered rows,), nan where a row has no such value


def answer_parameters(options: t.Any) -> dict[str, t.Any]:
    """`AnsweredRows`'s fields of that kind; ``options`` without them: their defaults."""
    ports = AnswerParams.ports()
    names = {"normalization": "answer_normalization", "tolerance": "numeric_tolerance", "schema": "answer_schema"}
    return {field: getattr(options, name, ports[name].default) for field, name in names.items()}


def check_schema(text: str | None) -> None:
    """Raise `UserError` for what is not a JSON schema."""
    if text is None:
        return
    from jsonschema import SchemaError
    from referencing.exceptions import Unresolvable

    try:
        validator = _validator(text)
        validator.check_schema(validator.schema)
        validator.is_valid(None)
    except (ValueError, SchemaError, Unresolvable, AttributeError, TypeError, RecursionError) as e:
        reason = str(e) if isinstance(e, ValueError) else excerpt(getattr(e, "message", e))
        reason = "nested too deep" if isinstance(e, RecursionError) else reason
        raise UserError(
            f"answer_schema={excerpt(text)}: not valid ({reason}); expected a JSON schema, such as "
            '{"type": "object", "required": ["name"]}.'
        ) from None


def _validator(text: str) -> t.Any:
    """What holds values against a schema; it fetches nothing that the schema refers to.

    It raises ValueError where a reference leads back to itself, which jsonschema would follow without end.
    """
    from jsonschema import validators
    from referencing import Registry

    schema = parse_json(text)
    kind = validators.validator_for(schema)
    once = {name: _once(kind.VALIDATORS[name]) for name in REFERENCES if name in kind.VALIDATORS}
    if isinstance(schema, dict):
        schema.pop("$schema", None)  # which `kind` follows; a reference to the root would take jsonschema's own again
    return validators.extend(kind, once)(schema, registry=Registry())


def _once(follow: Callable[..., t.Any]) -> Callable[..., Iterator[t.Any]]:
    """A keyword's function that follows a reference from one place to one value only once at a time."""
    followed: set[tuple[int, int]] = set()

    def keyword(validator: t.Any, reference: t.Any, value: t.Any, schema: t.Any) -> Iterator[t.Any]:
        step = id(schema), id(value)
        if step in followed:
            raise ValueError(f"the reference to {excerpt(reference)} leads back to itself without end")
        followed.add(step)
        try:
            yield from follow(validator, reference, value, schema) or ()
        finally:
            followed.discard(step)

    return keyword


def of_rows(
    name: str, title: str, values: Values, claim: tuple[str, str], *, percent: bool = True, **more: t.Any
) -> Metric[AnsweredRows]:
    """The metric that is the mean of ``values`` over the rows that have one."""

    def compute(rows: AnsweredRows) -> float:
        import numpy as np

        found = _known(rows, values)
        return float(np.mean(found))

    def distinct(rows: AnsweredRows) -> tuple[np.ndarray, np.ndarray]:
        import numpy as np

        kept, counts = np.unique(_known(rows, values), return_counts=True)
        return np.column_stack([kept, np.ones(len(kept))]), counts

    return Metric(
        name=name,
        title=title,
        compute=compute,
        percent=percent,
        sums=Sums(distinct=distinct, value=lambda sums: sums[:, 0] / sums[:, 1]),
        parts=lambda rows: rows.spread(values(rows)),
        claim=claim,
        **{"chooses_checkpoint": True, **more},
    )


def _known(rows: AnsweredRows, values: Values) -> np.ndarray:
    import numpy as np

    if not rows.predicted:
        raise Undefined("no text was written")
    found = values(rows)
    found = found[np.isfinite(found)]
    if not len(found):
        raise Undefined("no row has what it is about")
    return found


def _each(score: Callable[[str, str], float]) -> Values:
    """Values from the true text and the written one of each row."""

    def values(rows: AnsweredRows) -> np.ndarray:
        import numpy as np

        return np.array([score(want, got) for want, got in zip(rows.truth, rows.predicted, strict=True)], dtype=float)

    return values


def _exact(rows: AnsweredRows) -> np.ndarray:
    if rows.normalization == "squad":
        return spans.row_scores([[want] for want in rows.truth], rows.predicted)["exact"]
    plain = str.strip if rows.normalization == "none" else _caseless
    return _each(lambda want, got: plain(want) == plain(got))(rows)


def _caseless(text: str) -> str:
    return " ".join(text.casefold().split())


def _token_f1(rows: AnsweredRows) -> np.ndarray:
    return spans.row_scores([[want] for want in rows.truth], rows.predicted)["f1"]


def last_number(text: str) -> float | None:
    """The last number of a text, whose thousands may be set apart by commas; None where there is none."""
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "").replace("−", "-")) if found else None


def _numeric(rows: AnsweredRows) -> np.ndarray:
    def score(want: str, got: str) -> float:
        true, said = last_number(want), last_number(got)
        if true is None:
            return math.nan
        return float(said is not None and math.isclose(true, said, rel_tol=1e-12, abs_tol=rows.tolerance))

    return _each(score)(rows)


def as_json(text: str) -> t.Any:
    """The value of an answer that is JSON, perhaps in a Markdown fence. Raises ValueError for another one."""
    text = text.strip()
    fenced = FENCE.match(text)
    return json.loads(fenced[1] if fenced else text, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> t.NoReturn:
    raise ValueError(f"{name} is not JSON")


def _is_json(want: str, got: str) -> bool:
    try:
        as_json(got)
    except (ValueError, RecursionError):
        return False
    return True


def _fits_schema(rows: AnsweredRows) -> np.ndarray:
    if rows.schema is None:
        raise Undefined("answer_schema is not set")
    from referencing.exceptions import Unresolvable

    validator = _validator(rows.schema)

    def fits(want: str, got: str) -> bool:
        if not _is_json(want, got):
            return False
        try:
            return bool(validator.is_valid(as_json(got)))
        except RecursionError:  # of the answer: it is nested too deep
            return False

    try:
        return _each(fits)(rows)
    except Unresolvable as e:
        raise UserError(
            f"answer_schema: refers to {excerpt(e.ref)}, which is not in it; expected a schema that stands alone."
        ) from None
    except (ValueError, re.error) as e:
        raise UserError(f"answer_schema: cannot be held against an answer: {e}. Mend the schema.") from None


def calls_in(text: str) -> Calls:
    """The tool calls that a text holds: JSON objects with a name and arguments, in whatever the template puts around.

    Arguments may be JSON in a string, and be called parameters.
    """
    return [call for value in _objects(text) for call in _calls(value)]


def _objects(text: str) -> Iterator[t.Any]:
    decoder, place = json.JSONDecoder(), 0
    while (place := min((i for i in (text.find("{", place), text.find("[", place)) if i >= 0), default=-1)) >= 0:
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            place += 1
        else:
            yield value


def _calls(value: t.Any) -> Iterator[tuple[str, t.Any]]:
    if isinstance(value, list):
        for part in value:
            yield from _calls(part)
        return
    if not isinstance(value, dict):
        return
    if isinstance(value.get("tool_calls"), list):
        yield from _calls(value["tool_calls"])
        return
    value = value["function"] if isinstance(value.get("function"), dict) else value
    arguments = next((value[key] for key in ("arguments", "parameters") if key in value), None)
    if isinstance(value.get("name"), str) and arguments is not None:
        yield value["name"], _decoded(arguments)


def _decoded(arguments: t.Any) -> t.Any:
    if isinstance(arguments, str):
        try:
            return json.loads(arguments)
        except ValueError:
            return arguments
    return arguments


def true_calls(turn: dict[str, t.Any]) -> Calls:
    """The calls of an assistant's turn."""
    return list(_calls(turn.get("tool_calls") or []))


def _tool_call(rows: AnsweredRows) -> np.ndarray:
    import numpy as np

    wanted = rows.calls or [[]] * len(rows.predicted)
    pairs = zip(wanted, rows.predicted, strict=True)
    return np.array([math.nan if not want else float(calls_in(got) == want) for want, got in pairs])


def _refuses(want: str, got: str) -> bool:
    return bool(REFUSALS.search(got[:REFUSAL_CHARACTERS]))


def _of_texts(metric: AnyMetric) -> AnyMetric:
    """A metric of the written texts alone, which says so where there are none."""

    def compute(rows: AnsweredRows) -> float:
        if not rows.predicted:
            raise Undefined("no text was written")
        return float(metric.compute(rows))

    return replace(metric, compute=compute, main=None, headline=None)


def _rouge(metric: AnyMetric) -> AnyMetric:
    values: Values = lambda rows: rows.rouge[metric.name]  # noqa: E731
    return of_rows(metric.name, metric.title, values, (f"has a {metric.title} of", "one of"), percent=False)


def _chrf(rows: AnsweredRows) -> np.ndarray:
    return rows.chrf_of_rows


METRICS: tuple[AnyMetric, ...] = (
    of_rows("exact_match", "Exact match", _exact, ("is exactly right in", "in")),
    of_rows("token_f1", "F1 of words", _token_f1, ("has an F1 of words of", "one of"), percent=False),
    of_rows("numeric_match", "Last number is right", _numeric, ("gives the right number in", "in")),
    of_rows("json_valid", "Valid JSON", _each(_is_json), ("writes valid JSON in", "in")),
    of_rows("json_schema", "JSON that fits the schema", _fits_schema, ("fits the JSON schema in", "in")),
    of_rows("tool_call", "Tool calls are right", _tool_call, ("calls the right tools in", "in")),
    of_rows(
        "refusal",
        "Refusals",
        _each(_refuses),
        ("refuses in", "in"),
        greater_is_better=False,
    ),
    of_rows(
        "empty_answer",
        "Empty answers",
        _each(lambda want, got: not got.strip()),
        ("writes nothing in", "in"),
        greater_is_better=False,
    ),
    of_rows(
        "answer_words",
        "Words an answer",
        _each(lambda want, got: len(got.split())),
        ("has a mean length in words of", "one of"),
        percent=False,
        chooses_checkpoint=False,
        ranked=False,
    ),
    *(_rouge(metric) for metric in texts.SUMMARY_METRICS if metric.name.startswith("rouge")),
    of_rows("chrf_rows", "chrF, mean of rows", _chrf, ("has a mean chrF of", "one of"), percent=False),
    *(_of_texts(metric) for metric in texts.TRANSLATION_METRICS if metric.name in ("bleu", "chrf")),
    of_rows(
        "length_difference",
        "Words too many or too few",
        _each(lambda want, got: abs(len(got.split()) - len(want.split()))),
        ("is off in words by", "by"),
        percent=False,
        greater_is_better=False,
    ),
)


def beside(table: Sequence[AnyMetric]) -> tuple[AnyMetric, ...]:
    """A task's own metrics and those here that they lack."""
    own = {metric.name for metric in table}
    return (*table, *(metric for metric in METRICS if metric.name not in own))


def is_written(name: str) -> bool:
    """Whether a metric needs written answers."""
    return name in METRIC_NAMES


def named(text: str, option: str = "metrics", example: str = "exact_match,token_f1") -> list[str]:
    """The names in ``metrics``, or another ``option``: a JSON list, or names between commas.

    Raises `UserError` for a list of something else.
    """
    if not text.lstrip().startswith("["):
        return [name.strip() for name in text.split(",") if name.strip()]
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise UserError(f"{option}={excerpt(text)}: not valid; expected a list of names, such as {example}.")
    return list(dict.fromkeys(found))


def chosen(names: Sequence[str], table: Sequence[AnyMetric], own: Sequence[AnyMetric] = ()) -> tuple[AnyMetric, ...]:
    """The metrics to score by: the named ones come first, then the others of the task's ``table``.

    The first one that is made of rows is the headline. Raises `UserError` for a name that there is not.
    """
    known = {metric.name: metric for metric in (*table, *METRICS)}  # those here can lead, ...
    known |= {metric.name: metric for metric in table if metric.headline} | {metric.name: metric for metric in own}
    for name in names:
        if name not in known:
            raise UserError(
                f"metrics: '{name}' is not one of them; expected names of {', '.join(known)}, or file.py:function for "
                f"one of your own.{did_you_mean(name, known)}"
            )
    leading = [known[name] for name in dict.fromkeys(names)]
    rest = [metric for metric in table if metric.name not in names]
    first = next((metric.name for metric in leading if metric.headline or (metric.parts and metric.claim)), None)
    if first is None:
        return (*(replace(metric, main=10 + i) for i, metric in enumerate(leading)), *rest)
    return (
        *(_leading(metric, i, metric.name == first) for i, metric in enumerate(leading, 1)),
        *(replace(metric, main=None, headline=None) for metric in rest),
    )


def _leading(metric: AnyMetric, place: int, first: bool) -> AnyMetric:
    if not first or metric.headline is not None:
        return replace(metric, main=place, headline=metric.headline if first else None)
    assert metric.parts is not None
    assert metric.claim is not None
    return replace(metric, main=place, headline=Headline(parts=metric.parts, claim=metric.claim))
