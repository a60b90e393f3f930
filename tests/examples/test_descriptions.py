"""Rows made of descriptions have the columns that the examples' configurations name."""

from collections.abc import Callable
from types import ModuleType

Script = Callable[[str], ModuleType]


def describe(script: Script, package: str, *texts: str, source: str = "", synopsis: str = "one two three") -> object:
    debian = script("debian.py")
    paragraphs = tuple(debian.Paragraph(text, verbatim=text.startswith("  ")) for text in texts)
    return debian.Description(package, source or package, synopsis, paragraphs)


def test_a_summary_is_the_synopsis_of_one_package_of_each_source(script: Script) -> None:
    text = "word " * 29 + "end."
    packages = [describe(script, name, text, "  * item", source="s") for name in ("a", "b")]
    short = describe(script, "c", "too short")
    (row,) = script("summarization/fetch.py").rows([*packages, short])
    assert row == {"document": text, "summary": "one two three", "source": "s"}


def test_paragraphs_of_the_same_form_are_translations_of_each_other(script: Script) -> None:
    rows = script("translation/fetch.py").rows
    english = [describe(script, "a", "A text.", "  * item", "More."), describe(script, "b", "Lone.")]
    french = [describe(script, "a", "Un⋅texte.", "  * article", "More."), describe(script, "c", "Seul.")]
    assert rows(english, french) == [{"en": "A text.", "fr": "Un texte.", "source": "a"}]
    assert rows(english, [describe(script, "a", "Un texte. More.")]) == []
    assert rows(english, [describe(script, "b", "Une phrase bien plus longue")]) == []


def test_a_completion_is_the_first_paragraph_unless_other_sources_fill_in_the_same_form(script: Script) -> None:
    rows = script("text_generation/fetch.py").rows
    form = "This package contains the source {} word for word, as it is published by its own author."
    own = describe(script, "a", "A text that begins and ends in a way of its own, which no other package does.")
    forms = [describe(script, name, form.format(f"of {name}")) for name in ("b", "c")]
    (row,) = rows([own, *forms])
    assert row["prompt"] == "Package: a\nSynopsis: one two three\nDescription:"
    assert row["completion"].startswith(" A text")
    assert [r["source"] for r in rows([forms[0]])] == ["b"]


def test_a_conversation_is_a_statement_and_its_reply(script: Script) -> None:
    line = {"": "250", "statement": "where have you been? ", "reply": "out for a walk."}
    short = {"": "251", "statement": "why?", "reply": "no."}
    (row,) = script("chat_completion/fetch.py").rows([line, short])
    assert row == {
        "messages": [
            {"role": "user", "content": "where have you been?"},
            {"role": "assistant", "content": "out for a walk."},
        ],
        "block": 2,
    }
