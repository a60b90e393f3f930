"""A chat template ends in time and writes texts of bounded size, in any thread, and as any other does else."""

import threading
import time

import pytest

from tuneport.serving.chat_template import ChatTemplate, Turns
from tuneport.serving.template_sandbox import TemplateLimit, TemplateSandbox

TURNS = [{"role": "user", "content": "who?"}]
ENDLESS = [
    "{% set r = range(99999) %}{% for i in r %}{% for j in r %}{% endfor %}{% endfor %}",
    "{% set s = 'a' * 99999 %}{% for i in s %}{% for j in s %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for i in range(99999) %}{% for t in messages | map(attribute='role') | list * 9999 %}{% endfor %}{% endfor %}",
]
TOO_MUCH = [
    "{{ 'a' * 10**10 }}",
    "{{ 10**10 * 'a' }}",
    "{{ [0] * 10**10 }}",
    "{{ messages * 10**10 }}",
    "{{ 'a' | center(10**10) }}",
    "{{ 'a' | indent(width=10**10) }}",
    "{{ 'a'.ljust(10**10) }}",
    "{{ 'a'.zfill(10**10) }}",
    "{{ '%9999999999d' % 1 }}",
    "{{ '%*d' % (10**10, 1) }}",
    "{{ '%9999999999d' | format(1) }}",
    "{{ '{:>9999999999}'.format(1) }}",
    "{{ messages | tojson(indent=10**10) }}",
    "{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% set x %}{% for i in range(99999) %}{{ 'a' * 999 }}{% endfor %}{% endset %}{{ x }}",
    "{% for i in range(99999) %}{{ 'a' * 999 }}{% endfor %}",
]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TemplateSandbox, "seconds", 0.05)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("template", ENDLESS)
def test_a_template_that_does_not_end_is_ended(template: str) -> None:
    started = time.process_time()
    with pytest.raises(TemplateLimit, match="runs for more than"):
        ChatTemplate(template, {})(TURNS)
    assert time.process_time() - started < 2


@pytest.mark.parametrize("template", TOO_MUCH)
def test_a_template_that_writes_too_much_is_ended(template: str) -> None:
    with pytest.raises(TemplateLimit, match="a chat template that writes too much"):
        ChatTemplate(template, {})(TURNS)


@pytest.mark.parametrize("template", ["{% for i in range(10**9) %}{% endfor %}", "{{ lipsum(n=10**9) }}"])
def test_what_jinja_itself_refuses_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match="turns that the chat template does not take"):
        ChatTemplate(template, {})(TURNS)


@pytest.mark.parametrize("template", ["{{ 9**(9**9) }}", "{{ (10**9999) * (10**19999) }}", "{{ 1 | round(10**9) }}"])
def test_no_number_of_a_million_digits_is_computed(template: str) -> None:
    with pytest.raises(TemplateLimit, match=r"chat template that (computes a number|writes too much)"):
        ChatTemplate(template, {})(TURNS)


@pytest.mark.parametrize("template", ["{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "{% if a %}" * 3000, "{% for %}"])
def test_a_template_that_no_compiler_takes_is_one_message(template: str) -> None:
    with pytest.raises(ValueError, match="a chat template that is no Jinja template"):
        ChatTemplate(template, {})


@pytest.mark.usefixtures("hasty")
def test_the_limits_hold_in_a_thread() -> None:
    found: list[BaseException] = []

    def render() -> None:
        try:
            ChatTemplate(ENDLESS[0], {})(TURNS)
        except TemplateLimit as e:
            found.append(e)

    thread = threading.Thread(target=render)
    thread.start()
    thread.join(30)
    assert found


def test_loops_and_names_are_what_they_are_in_jinja() -> None:
    template = (
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}{% else %}none{% endfor %}"
        "{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}{% for x in nothing %}{% endfor %}"
        "{% for i in range(3) if i != 1 %}{{ i }}{% endfor %}{% set a, b = 1, 2 %}{{ a + b }}"
        "{% for x in [[1, [2]]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}"
        "{% set t | upper %}text{% endset %}{{ t }}{{ '%s-%d' % ('x', 3) }}{{ 'ab' * 2 }}{{ 2 ** 3 }}"
    )
    assert ChatTemplate(template, {})([*TURNS, *TURNS]) == "1/2,2/2a10231TEXTx-3abab8".replace("31T", "312T")


def test_json_nested_too_deep_in_a_cell_is_no_list_of_turns() -> None:
    for text in ("[" * 100_000, "[" * 500 + "]" * 500):
        with pytest.raises(ValueError, match=r"not JSON|nested deeper than 100"):
            Turns()(text)
