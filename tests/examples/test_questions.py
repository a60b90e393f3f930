"""Templates find their answers where a text has them, and ask in vain only where it has not."""

from collections.abc import Callable
from types import ModuleType

import pytest

Script = Callable[[str], ModuleType]

CONTEXT = (
    "Surf is a simple web browser based on WebKit/GTK+. It supports the XEmbed protocol, which makes it possible to "
    "embed it. The browser was written by Enno Boland in 2009, e.g. for the Domain Name System (DNS).\n"
    "This package contains the manual"
)


@pytest.fixture
def q(script: Script) -> ModuleType:
    return script("question_answering/questions.py")


def asked(q: ModuleType, context: str) -> dict[str, tuple[str, str]]:
    """The questions on a context and their answers, by kind."""
    return {found.kind: (found.text, context[found.start : found.end]) for found in q.questions(context)}


def test_each_sentence_of_a_known_form_answers_a_question(q: ModuleType) -> None:
    found = asked(q, CONTEXT)
    assert {kind: answer for kind, (_, answer) in found.items()} == {
        "is": "a simple web browser based on WebKit/GTK+",
        "based": "WebKit/GTK+",
        "supports": "the XEmbed protocol",
        "author": "Enno Boland in 2009",
        "contains": "the manual",
        "acronym": "Domain Name System",
    }


@pytest.mark.parametrize(
    ("sentence", "kind", "question"),
    [
        ("It supports threads.", "supports", "Surf"),
        ("The browser also supports threads.", "supports", "the browser"),
        ("This package contains nothing.", "contains", "this package"),
    ],
)
def test_a_question_names_what_its_sentence_is_about(q: ModuleType, sentence: str, kind: str, question: str) -> None:
    assert f" {question}" in asked(q, f"Surf is a browser. {sentence}")[kind][0]


@pytest.mark.parametrize(
    "sentence",
    [
        "Surf supports fast, small and quiet machines.",  # the first of an enumeration is no whole answer
        "Surf supports this.",
        "Surf supports threads. Surf supports processes.",  # two answers
        "If it supports threads, it is new.",
        "Using it supports threads.",
        "Surf supports " + "very " * 12 + "old machines.",
    ],
)
def test_a_sentence_without_one_whole_answer_is_not_asked_about(q: ModuleType, sentence: str) -> None:
    assert "supports" not in asked(q, sentence)


def test_a_question_in_vain_is_asked_only_where_no_word_could_answer_it(q: ModuleType) -> None:
    kinds = {found.kind for found in q.unanswerable(CONTEXT)}
    assert {"replaces", "similar", "requires", "language"} & kinds == {"replaces", "similar", "requires"}
    assert not kinds & {"supports", "based", "contains", "author", "is"}
    assert [found.text for found in q.unanswerable(CONTEXT) if found.kind == "acronym"] == ["What does GTK stand for?"]
    assert all((found.start, found.end) == (-1, -1) for found in q.unanswerable(CONTEXT))


def test_a_row_has_the_span_of_its_answer(script: Script) -> None:
    fetch, debian = script("question_answering/fetch.py"), script("debian.py")
    filler = "Nothing more is said " + "of it " * 11
    text = debian.Paragraph(f"Surf is a web browser. {filler}", verbatim=False)
    (row,) = [
        r
        for r in fetch.rows([debian.Description("surf", "suckless", "browser", (text,))])
        if r["answers"]["answer_start"] == [8]
    ]
    assert row["answers"]["text"] == ["a web browser"]
    assert row["context"][8:21] == "a web browser"
    assert row["source"] == "suckless"


def test_texts_of_two_source_packages_that_share_a_sentence_are_no_contexts(script: Script) -> None:
    fetch, debian = script("question_answering/fetch.py"), script("debian.py")

    def description(name: str, source: str, own: str) -> object:
        text = f"{own} is " + "a word " * 15 + f". Shared sentence of {source[0]}."
        return debian.Description(name, source, name, (debian.Paragraph(text, verbatim=False),))

    a, b, c = description("one", "ab", "One"), description("two", "ac", "Two"), description("three", "b", "Three")
    assert fetch.contexts([a, b, c]) == [c]
