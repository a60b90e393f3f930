"""Silver questions about a description: what a sentence says in a set form is asked back, its answer a span.

A template knows a form ("X is based on Y"), the questions that ask for it, and the words by which a text would say it
in any form. Where a text has none of those words, it does not answer the question: so the unanswerable ones are made.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

SUBJECT = r"(?P<subject>[\w.:+/'-]+(?: [\w.:+/'-]+){0,3}?)(?: (?:also|only|currently|always|often|\w+ly)\b)*"
SOME = r"[^,;:()]{0,70}?"  # what may stand between verb and form, within one clause
END = (  # of an answer: a new clause, a bracket, the sentence's end
    r"[,;:]? (?:(?:that|which|who|where|while|but|because|so)\b|-+ |– )|[,;:](?: |$)| \(|[.!?]*$"
    r"|,? and (?:is|are|was|has|can|may|aims|uses|provides|supports|offers|allows|implements|contains|includes)\b"
)
ANSWER = rf" (?P<answer>\S.*?)(?={END})"
LIST = re.compile(r", (?:[^.;:()]+,|[^,.;:()]{1,40}) (?:and|or|etc)\b|, [^.;:,()]{1,40},")
NO_SUBJECT = re.compile(
    r"\b(?:and|or|that|which|what|to|of|for|with|in|on|at|as|if|when|by|from|there|you|we|i)\b"
    r"|\b(?:although|since|while|some|also|not|essentially)\b|^\w+ing\b|:$|: ",
    re.IGNORECASE,
)
PRONOUN = {"it", "this", "they", "these", "he", "she", "that"}
SENTENCE_END = re.compile(r"\n|(?<=[.!?])(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bvs\.)(?<!\b[A-Z]\.) +(?=[\"'(]?[A-Z0-9])")
LONGEST = 12  # words of an answer
POINTER = re.compile(r"(?:this|that|these|those|it|such|their|its)\b", re.IGNORECASE)  # begins what is no answer
ARTICLE = re.compile(r"(?:The|This|A|An|These)\b")


@dataclass(frozen=True)
class Template:
    """A form of sentence, the questions that ask for its answer, and the words without which a text answers none."""

    form: re.Pattern[str]
    questions: tuple[str, ...]
    words: re.Pattern[str] | None = None  # none: a question that is never asked in vain


@dataclass(frozen=True)
class Question:
    """A question of a kind; without an answer its span is (-1, -1)."""

    kind: str
    text: str
    start: int = -1
    end: int = -1


def template(form: str, *questions: str, words: str | None = None) -> Template:
    """A template of a sentence's form after its subject."""
    return Template(
        re.compile(rf"^{SUBJECT} {form}{ANSWER}"), questions, re.compile(words, re.IGNORECASE) if words else None
    )


TEMPLATES = {
    "is": template(r"is(?= an? )", "What is {}?", "What kind of thing is {}?"),
    "provides": template(
        r"(?:provides|offers)", "What does {} provide?", "What does {} offer?",
        words=r"\bprovid|\boffer|\bsuppl|\bcontain|\binclud|\bship|\bimplement|\badds?\b"
    ),
    "contains": template(
        r"(?:contains|includes|ships|installs)", "What does {} contain?", "What is found in {}?",
        words=r"\bcontain|\binclud|\bship|\binstall|\bprovid|\bcome|\bconsist",
    ),
    "allows": template(
        r"(?:allows|enables|lets|permits) (?:you|users?|one|developers?|programmers?|the user)(?: to)?",
        "What can be done with {}?", "What does {} let its users do?",
        words=r"\ballow|\benabl|\blets?\b|\bpermit|\bcan\b|\bmay\b|\bable\b",
    ),
    "purpose": template(
        rf"(?:is (?:{SOME} )?|can (?:also )?be )(?:used|designed|intended|needed|useful)(?: to| for)",
        "What is {} for?", "What is the purpose of {}?",
        words=r"\buse[ds]?\b|\buseful|\bdesign|\bintend|\bneed|\baim|\bfor\b|\bto\b",
    ),
    "based": template(
        rf"is (?:{SOME} )?based (?:up)?on", "What is {} based on?", "What does {} build upon?",
        words=r"\bbas(?:ed|is)\b|\bbuil[dt]|\bon top|\bderiv|\bfork|\bus(?:es|ing)\b",
    ),
    "language": template(
        rf"(?:is|was) (?:{SOME} )?(?:written|implemented|coded|programmed) (?:entirely |completely |purely )?in",
        "Which language is {} written in?", "In what was {} programmed?",
        words=r"\bwritten|\bimplement|\bcoded|\bprogram|\blanguage|\bpure\b",
    ),
    "supports": template(
        r"supports", "What does {} support?", "What can {} cope with?",
        words=r"\bsupport|\bhandl|\bcompatib|\bcan\b"
    ),
    "uses": template(
        r"(?:uses|utilizes|employs)", "What does {} use?", "What does {} make use of?",
        words=r"\bus(?:es?|ed|ing)\b|\butili|\bemploy|\bvia\b|\bthrough\b|\bbased\b|\bwith\b",
    ),
    "implements": template(
        r"implements", "What does {} implement?", "What is implemented by {}?", words=r"\bimplement"
    ),
    "requires": template(
        r"(?:requires|depends on)", "What does {} require?", "What does {} need?",
        words=r"\brequir|\bneed|\bdepend|\bmust\b",
    ),
    "part": template(
        rf"(?:is|was) (?:{SOME} )?part of", "What is {} part of?", "What does {} belong to?",
        words=r"\bpart\b|\bbelong|\bcomponent|\bmodule|\bmember|\bproject|\bsuite|\bfrom\b|\bof the\b",
    ),
    "similar": template(
        rf"(?:is|works|looks) (?:{SOME} )?similar to", "What is {} similar to?", "What does {} resemble?",
        words=r"\bsimilar|\blike\b|\balike|\bresembl|\bequivalent|\banalog|\bclone",
    ),
    "replaces": template(
        rf"(?:is|provides) (?:{SOME} )?(?:replacement (?:for|of)|alternative (?:to|for)|successor (?:to|of)|clone of)",
        "What can {} take the place of?", "What is {} an alternative to?",
        words=r"\breplac|\balternativ|\bsuccess|\bclone|\binstead|\bsupersed",
    ),
    "author": template(
        rf"(?:is|was) (?:{SOME} )?(?:developed|written|created|made|maintained|designed) by",
        "Who made {}?", "By whom was {} developed?",
        words=r"\bby\b|\bauthor|\bdevelopers?\b|\bcreat|\bmaintain",
    ),
    "helps": template(
        r"(?:helps(?: (?:you|users?|with))?(?: to)?|aims (?:to|at)|tries to|attempts to)",
        "What does {} help with?", "What does {} try to achieve?",
        words=r"\bhelp|\baim|\btr(?:y|ies)\b|\battempt|\bgoal|\bto\b",
    ),
}  # fmt: skip
ACRONYM_QUESTIONS = ("What does {} stand for?", "What is {} short for?")
URL_QUESTIONS = ("Which web address is given?", "Where on the web can one read more?")
URL = re.compile(r"https?://[^\s<>()\"']*[\w/]")
SHORT = re.compile(r"(?<![\w-])[A-Z]{2,6}(?![\w-])")


def questions(context: str) -> Iterator[Question]:
    """Every question of each kind that a context answers once."""
    name = subject_of(context)
    for kind, template in TEMPLATES.items():
        matches = list(find(template, context))
        if len(matches) == 1:
            subject, start, end = matches[0]
            asked = choose(template.questions, context).format(referred(subject, name))
            yield Question(kind, asked, start, end)
    yield from acronyms(context)
    urls = list(URL.finditer(context))
    if len(urls) == 1:
        yield Question("address", choose(URL_QUESTIONS, context), *urls[0].span())


def unanswerable(context: str) -> Iterator[Question]:
    """Questions of each kind that a context does not answer: it has no word by which it would."""
    name = subject_of(context)
    for kind, template in TEMPLATES.items():
        if template.words and not template.words.search(context):
            yield Question(kind, choose(template.questions, context).format(name))
    if not URL.search(context) and "www." not in context:
        yield Question("address", choose(URL_QUESTIONS, context))
    unexplained = [s for s in dict.fromkeys(SHORT.findall(context)) if not explained(s, context)]
    for short in unexplained[:1] if "stand" not in context else []:
        yield Question("acronym", choose(ACRONYM_QUESTIONS, context).format(short))


def sentences(text: str) -> Iterator[tuple[int, str]]:
    """The sentences of a text and where they start."""
    start = 0
    for end in SENTENCE_END.finditer(text):
        yield start, text[start : end.start()]
        start = end.end()
    yield start, text[start:]


def find(template: Template, context: str) -> Iterator[tuple[str, int, int]]:
    """The subject, and start and end of the answer, of every sentence that has a template's form."""
    for offset, sentence in sentences(context):
        match = template.form.search(sentence)
        if match is None or not is_subject(match["subject"]) or not is_span(match["answer"]):
            continue
        if not LIST.match(sentence, match.end("answer")):  # else it ends within an enumeration
            yield match["subject"], offset + match.start("answer"), offset + match.end("answer")


def is_subject(words: str) -> bool:
    """Whether words can be a sentence's subject: one pronoun, or a few words of which none is one."""
    more = words.lower().split()
    return not NO_SUBJECT.search(words) and (len(more) == 1 or not PRONOUN & set(more[1:]))


def is_span(answer: str) -> bool:
    """Whether an answer stands by itself: not too long, and no bracket or quotation mark is torn from its mate."""
    whole = answer.count("(") == answer.count(")") and answer.count('"') % 2 == 0
    if POINTER.match(answer) or not whole:
        return False
    return len(answer.split()) <= LONGEST and (answer[-1].isalnum() or answer[-1] in "+#")


def subject_of(context: str) -> str:
    """What a description is about, as its first sentence names it, else `this package`."""
    _, first = next(sentences(context))
    match = re.match(rf"{SUBJECT} (?:is|are|provides|allows|contains|implements|supports|offers)\b", first)
    if not match or not is_subject(match["subject"]) or match["subject"].lower() in PRONOUN:
        return "this package"
    return referred(match["subject"], "this package")


def referred(subject: str, name: str) -> str:
    """A sentence's subject as a question refers to it: what a pronoun stands for, or an article in lower case."""
    if subject.lower() in PRONOUN:
        return name
    return subject[0].lower() + subject[1:] if ARTICLE.match(subject) else subject


def acronyms(context: str) -> Iterator[Question]:
    """Asks for the one acronym that is explained: `Domain Name System (DNS)` or `DNS (Domain Name System)`."""
    found = {short: span for short in dict.fromkeys(SHORT.findall(context)) if (span := explained(short, context))}
    if len(found) == 1:
        ((short, (start, end)),) = found.items()
        yield Question("acronym", choose(ACRONYM_QUESTIONS, context).format(short), start, end)


def explained(short: str, context: str) -> tuple[int, int] | None:
    """Where a text has the words whose first letters make an acronym, beside it in or before brackets."""
    words = r"[\s-]+".join(rf"{letter}[\w'/]*" for letter in short)
    match = re.search(rf"\b(?P<words>{words})\s+\({short}\)|\b{short}\s+\((?P<more>{words})\)", context, re.IGNORECASE)
    if match is None:
        return None
    return match.span("words" if match["words"] else "more")


def choose(questions: tuple[str, ...], context: str) -> str:
    """One of the ways to ask, settled by the context alone."""
    return questions[len(context) % len(questions)]
