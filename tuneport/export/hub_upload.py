"""Upload of a model folder to Hugging Face's hub, as one commit, through huggingface_hub and by its own token."""

from __future__ import annotations

import dataclasses as dc
import fnmatch
import logging
import typing as t
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuneport.artifacts import files
from tuneport.errors import UserError, excerpt
from tuneport.export.mlflow_model import NOT_SERVED
from tuneport.serving.adapter_sum import LoraAdapter
from tuneport.tracking import reason

log = logging.getLogger("tuneport.model_upload")

WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json")  # of which none of another model stays


@dc.dataclass(frozen=True, kw_only=True)
class Upload:
    """Where a model is on the hub; ``is_new``: whether it took a commit, so that anything was not there yet."""

    repo_id: str
    commit: str
    url: str
    is_new: bool
    files: tuple[str, ...]
    deleted: tuple[str, ...]


def check_id(repo_id: str) -> None:
    """Raise `UserError` for what cannot be the id of a model on the hub; asks no hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    wanted = "expected NAME, or ORGANISATION/NAME, as of a model on the hub"
    kind, _, rest = repo_id.partition("/")
    if kind in ("datasets", "spaces") and "/" in rest:
        raise UserError(f"hub_model_id={excerpt(repo_id)}: is a repository of {kind}; {wanted}.")
    if "://" in repo_id:
        raise UserError(f"hub_model_id={excerpt(repo_id)}: is an address; {wanted}. HF_ENDPOINT says which hub.")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as e:
        raise UserError(f"hub_model_id={excerpt(repo_id)}: not valid; {wanted}. {e}") from None


def check_access(repo_id: str) -> None:
    """Ask the hub whether the token here may write to a repository, as far as it says.

    Raises `UserError` where there is no token, the hub does not know it or is not within reach, and where the token may
    not write, or not for the owner that ``repo_id`` names.
    """
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise UserError(
            f"hub_model_id={repo_id}: there is no token to write to {_endpoint()} with. Set HF_TOKEN to one that may "
            "write, or run `hf auth login`; on a cluster, let a Secret set HF_TOKEN."
        )
    with _explained(repo_id):
        account = HfApi().whoami()
    token = (account.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise UserError(
            f"hub_model_id={repo_id}: the token '{token.get('displayName', '')}' of {account['name']} may only read. "
            "Make one that may write in the settings of the account, and set HF_TOKEN to it."
        )
    owner = repo_id.rpartition("/")[0]
    owners = [account["name"], *(organisation["name"] for organisation in account.get("orgs") or ())]
    if owner and owner.casefold() not in (name.casefold() for name in owners):
        raise UserError(
            f"hub_model_id={repo_id}: the token is of {account['name']}, who is not a member of {owner}. Expected one "
            f"of {', '.join(owners)} before the '/', or another token in HF_TOKEN."
        )


def upload(folder: Path, repo_id: str, *, private: bool, message: str) -> Upload:
    """Upload a model folder, without what only this program reads, as one commit; none where all of it is there.

    Of an adapter beside its base model the adapter goes up. The repository is made where there is none, ``private`` or
    not; weights of another model that it holds are deleted in the same commit, as a loader might take those. Raises
    `UserError` where the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    with _explained(repo_id):
        repo_id = str(api.create_repo(repo_id, private=private, repo_type="model", exist_ok=True).repo_id)
        info = api.model_info(repo_id)
        if bool(info.private) != private:
            log.warning(
                "hub_private_repo=%s: %s is %s already, and stays so; the hub's page of it changes that",
                str(private).lower(),
                repo_id,
                "private" if info.private else "public",
            )
        added = {path.relative_to(folder).as_posix(): path for path in files(folder)}
        left_out = {*NOT_SERVED, LoraAdapter.BASE}
        added = {name: path for name, path in added.items() if name.partition("/")[0] not in left_out}
        there = api.list_repo_files(repo_id, revision=info.sha)
        loaded = [name for name in there if "/" not in name and any(fnmatch.fnmatch(name, w) for w in WEIGHTS)]
        deleted = [name for name in loaded if name not in added]
        done = api.create_commit(
            repo_id,
            [
                *(CommitOperationDelete(name) for name in deleted),
                *(CommitOperationAdd(name, path) for name, path in added.items()),
            ],
            commit_message=message,
            parent_commit=info.sha,
        )
    return Upload(
        repo_id=repo_id,
        commit=str(done.oid),
        url=f"{_endpoint()}/{repo_id}",
        is_new=done.oid != info.sha,
        files=tuple(added),
        deleted=tuple(deleted),
    )


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """While entered, what the hub answers, or the network, becomes a `UserError`."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    named = f"hub_model_id={repo_id}:"
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of the card's metadata
            yield
    except OfflineModeIsEnabled:
        raise UserError(f"{named} HF_HUB_OFFLINE is set, so nothing is uploaded. Unset it.") from None
    except HfHubHTTPError as e:
        raise UserError(f"{named} {_answer(e)}") from None
    except (HTTPError, OSError) as e:
        raise UserError(
            f"{named} {constants.ENDPOINT} cannot be reached ({reason(e)}). Set HF_ENDPOINT to a hub within reach."
        ) from None
    except (RuntimeError, ValueError) as e:  # of the store of large files, which is not the hub itself
        said = reason(e.__cause__ if isinstance(e.__cause__, Exception) else e)
        raise UserError(f"{named} the files could not be sent ({said}). Run this stage again later.") from None


def _answer(error: t.Any) -> str:
    """What the hub answered, and what to do."""
    status = error.response.status_code
    said = f"{_endpoint()} answered {status} ({reason(getattr(error, 'server_message', None) or error)})."
    remedies = {
        401: "It does not know the token: set HF_TOKEN to one that is valid, or run `hf auth login`.",
        403: "The token may not write there: give it the right to, or name a repository of the account's own.",
        404: "Check the name, and HF_ENDPOINT if it stands on another hub.",
        409: "Something else changes the repository: run this stage again.",
        412: "Something else was committed there meanwhile: run this stage again.",
        429: "Wait until it takes requests again.",
    }
    return f"{said} {remedies.get(status, 'Run this stage again later.')}"


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)
