"""What the errors of stores' libraries mean: asked again, or refused with where credentials are looked for."""

import pytest

from tuneport.address import Address
from tuneport.errors import UserError
from tuneport.stores import is_passing, said


class HttpError(Exception):
    """Stands for gcsfs's, which is not installed for the tests: its status is its code, as a number or as text."""

    def __init__(self, code: int | str) -> None:
        super().__init__(f"status {code}")
        self.code = code


FORBIDDEN = OSError("Forbidden: https://storage.googleapis.com/storage/v1/b/runs/o\nno access")  # as gcsfs says it


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (FORBIDDEN, False),
        (HttpError(401), False),
        (HttpError("403"), False),
        (HttpError(503), True),
        (HttpError("429"), True),
        (OSError("Connection reset by peer"), True),
        (PermissionError("Access Denied"), False),
    ],
)
def test_a_refusal_of_any_store_is_not_asked_again(error: Exception, passing: bool) -> None:
    assert is_passing(error) == passing


@pytest.mark.parametrize("error", [FORBIDDEN, HttpError(401)])
def test_a_refusal_of_google_s_store_says_where_credentials_are_taken_from(error: Exception) -> None:
    with (
        pytest.raises(UserError, match=r"gs://runs/a: access was refused .* GOOGLE_APPLICATION_CREDENTIALS"),
        said(Address("gs://runs/a")),
    ):
        raise error
