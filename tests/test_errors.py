"""Messages stay readable, whatever a user's value is."""

from tuneport.errors import LONGEST_LINE, UserError


def test_a_message_is_kept_as_it_is_and_a_very_long_line_is_cut_in_its_middle() -> None:
    assert str(UserError("a: is not b.\n" + "c" * LONGEST_LINE)) == "a: is not b.\n" + "c" * LONGEST_LINE
    message = str(UserError(f"text holds {'x' * 1_000_000}; expected text. Mend it."))
    assert message.startswith("text holds xxx") and message.endswith("xxx; expected text. Mend it.")
    assert "characters more" in message and len(message) < LONGEST_LINE + 50
