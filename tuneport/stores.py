"""An object store that an address names, opened by fsspec; which of its errors pass, and what the others mean.

Credentials are those that the store's own library finds: in the environment, its files, or the machine's identity.
"""

from __future__ import annotations

import typing as t
from collections.abc import Iterator
from contextlib import contextmanager

from tuneport.address import EXTRAS, Address
from tuneport.errors import UserError, causes
from tuneport.secrets import masked

# Where a store's library looks for credentials, by the extra that installs it.
PLACES = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws, or the machine's role",
    "gcs": "GOOGLE_APPLICATION_CREDENTIALS, gcloud's login, or the machine's service account",
    "azure": "AZURE_STORAGE_ACCOUNT_NAME with a key or SAS token, `az login`, or the machine's managed identity",
    "": "the address itself, or a token in HF_TOKEN for hf://",
}


def store(address: Address) -> tuple[t.Any, str]:
    """The filesystem that an address names, and its path there.

    Raises ImportError where a package is not installed, `UserError` for a scheme that is not known.
    """
    if address.scheme not in EXTRAS:
        raise UserError(
            f"{address}: no data can be read from there; expected a path, or an address with {', '.join(EXTRAS)}."
        )
    from fsspec.core import url_to_fs

    fs, path = url_to_fs(address.text)
    return fs, path


def is_passing(error: BaseException) -> bool:
    """Whether an error may be gone at the next try."""
    if isinstance(error, FileNotFoundError | PermissionError | UserError | ImportError):
        return False
    if "credentials" in str(error).lower():  # botocore's, where it found none
        return False
    status = _status(error)
    return status is None or status >= 500 or status in (408, 425, 429)


def _status(error: BaseException) -> int | None:
    """The HTTP status of an error, where its library left it: aiohttp, gcsfs and Azure's each do so elsewhere."""
    if str(error).startswith("Forbidden: "):  # gcsfs, which leaves none
        return 403
    found = (getattr(error, name, None) for name in ("status", "code", "status_code"))
    return next((int(status) for status in map(str, found) if status.isdecimal()), None)


@contextmanager
def said(address: Address, doing: str = "read") -> Iterator[None]:
    """Say in the user's words why an address cannot be read, or whatever is done there. Raises `UserError`."""
    extra = EXTRAS.get(address.scheme, "")
    try:
        yield
    except UserError:
        raise
    except ImportError as e:
        how = f"pip install 'tuneport[{extra}]'" if extra else f"pip install {e.name or 'fsspec'}"
        raise UserError(f"{address}: {address.scheme}:// needs a package that is not installed ({e}): {how}.") from None
    except FileNotFoundError as e:
        raise UserError(f"{address}: not found ({words(e)}). Check the address.") from None
    except Exception as e:  # each store's library has errors of its own
        if (
            isinstance(e, PermissionError)
            or {401, 403} & set(map(_status, causes(e)))
            or "credentials" in str(e).lower()
        ):
            raise UserError(
                f"{address}: access was refused ({words(e)}). Tried: {_tried(extra)}. Credentials are taken from "
                f"{PLACES[extra]}."
            ) from None
        raise UserError(f"{address}: cannot be {doing} ({words(e)}). Check the address and the network.") from None


def _tried(extra: str) -> str:
    """Which credential the store's library found."""
    if extra != "s3":
        return "what the store's library found"
    try:
        from botocore.session import Session

        found = Session().get_credentials()
    except Exception:  # of a file that cannot be read, or a role that is not there
        found = None
    return f"the key {found.access_key[:4]}… (from {found.method})" if found and found.access_key else "no credential"


def words(error: BaseException | None) -> str:
    """What an error says, in one line, without secrets."""
    text = " ".join(masked(str(error)).split())
    return text if error is None or text else type(error).__name__
