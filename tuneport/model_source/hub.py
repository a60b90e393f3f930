"""Models from a hub by their id, through huggingface_hub: its cache, its mirrors and its token."""

from __future__ import annotations

import fnmatch
import logging
import re
from pathlib import Path

from tuneport.errors import UserError
from tuneport.model_source.folder import DOCUMENTS, check_contents, model_folders
from tuneport.model_source.gguf import is_part_of_a_model
from tuneport.model_source.model_files import (
    PICKLE_INDEX,
    PICKLES,
    TOKENIZER_FILES,
    WEIGHTS,
    WEIGHTS_INDEX,
    indexed_files,
)

log = logging.getLogger("tuneport.model_import")

COMMIT = re.compile(r"[0-9a-f]{40}")
REVISION = re.compile(r"(?!/)(?!.*\.\.)[\w./+-]+")  # a branch, a tag or a commit
FILES = ("config.json", "generation_config.json", *TOKENIZER_FILES, *DOCUMENTS)
SAFETENSORS = (WEIGHTS, WEIGHTS_INDEX, "model-*.safetensors")
ELSEWHERE = ["*/*"]  # other formats of the same weights stand in sub-folders
TIMEOUT = 10.0  # seconds, of the one question what a branch points to


def check_id(model: str, revision: str | None) -> None:
    """Raise `UserError` for what cannot be the id of a hub model; asks no hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    wanted = "expected the id of a hub model, as in organisation/name"
    if url := re.fullmatch(r"https?://[^/]+/([^/]+/[^/]+)(/.*)?", model):
        raise UserError(f"huggingface_id='{model}': is an address; {wanted}. Set huggingface_id={url[1]}.")
    if model.startswith((".", "/", "~")) or model.count("/") > 1 or Path(model, "config.json").is_file():
        raise UserError(f"huggingface_id='{model}': is a path; {wanted}. Pass a folder as pytorch_model_path.")
    try:
        validate_repo_id(model)
    except HFValidationError as e:
        raise UserError(f"huggingface_id='{model}': not valid; {wanted}. {e}") from None
    if revision is not None and not REVISION.fullmatch(revision):
        raise UserError(f"huggingface_revision='{revision}': not valid; expected a branch, a tag or a commit.")


def is_commit(revision: str | None) -> bool:
    """Whether a revision names one version for ever."""
    return revision is not None and COMMIT.fullmatch(revision) is not None


def commit_of(model: str, revision: str | None) -> str | None:
    """The commit that a revision of a model stands for now: the hub's answer, else the cache's; None where neither
    knows."""
    if is_commit(revision):
        return revision
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        HTTPError,
        LocalEntryNotFoundError,
    )

    try:
        return HfApi().model_info(model, revision=revision, timeout=TIMEOUT).sha
    except (HTTPError, OSError):  # no network, no such model, no right to read it
        pass
    try:
        cached = snapshot_download(model, revision=revision, allow_patterns="config.json", local_files_only=True)
    except LocalEntryNotFoundError:
        return None
    return Path(cached).name


def download(model: str, revision: str | None, gguf_file: str | None = None) -> Path:
    """The folder of the hub's cache that holds a model; its name is the commit.

    Only what is imported is fetched: safetensors before pickles, and no weights in other formats. Raises `UserError`
    where the model is unknown, not to be read, or neither cached nor within reach.
    """
    if gguf_file:
        return _fetch(model, revision, [*FILES, gguf_file])
    folder = _fetch(model, revision, [*FILES, *SAFETENSORS])
    commit = folder.name
    if (folder / WEIGHTS_INDEX).is_file() and not (folder / WEIGHTS).is_file():
        if missing := [n for n in indexed_files(folder / WEIGHTS_INDEX) if not (folder / n).is_file()]:
            _fetch(model, commit, missing)
    elif not (folder / WEIGHTS).is_file():
        _fetch(model, commit, [PICKLE_INDEX, PICKLES])
        if not any(folder.glob(PICKLES)):
            _fetch_gguf(model, commit, folder)
    return folder


def download_settings(model: str, revision: str | None) -> Path:
    """As `download`, but without the weights."""
    return _fetch(model, revision, [*FILES])


def weights_by_type(model: str, revision: str | None) -> dict[str, int]:
    """How many weights of each type the safetensors of a model have, as the hub says; empty where it does not."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, NotASafetensorsRepoError, SafetensorsParsingError

    try:
        found = HfApi().get_safetensors_metadata(model, revision=revision).parameter_count
    except (HTTPError, OSError, NotASafetensorsRepoError, SafetensorsParsingError):
        return {}
    return {str(name): count for name, count in found.items()}


def _fetch_gguf(model: str, commit: str, folder: Path) -> None:
    """Fetch a model's only GGUF file; of several none, as their sizes differ and the user is to choose."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        listed = [f.path for f in get_cached_repo_tree(model, revision=commit)]
    except CachedRepoTreeNotFoundError:  # filled by other means than `snapshot_download`
        return
    found = sorted(n for n in listed if fnmatch.fnmatch(n, "*.gguf") and is_part_of_a_model(n))
    if len(found) > 1:
        raise UserError(
            f"huggingface_id={model}: has several GGUF files: {', '.join(found)}. Choose one with gguf_file."
        )
    if found:
        _fetch(model, commit, found)
    log.debug("%s has no weights but %s", folder, found)


def _fetch(model: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HTTPError,
        IncompleteSnapshotError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    nested = [p for p in patterns if "/" in p]
    try:
        return Path(
            snapshot_download(
                model, revision=revision, allow_patterns=patterns, ignore_patterns=None if nested else ELSEWHERE
            )
        )
    except GatedRepoError:
        raise UserError(_gated(model)) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"huggingface_id={model}: {_endpoint()} has no such model that you may read. Check the spelling "
            "(organisation/name, as on the model's page), set HF_TOKEN if it is private, and HF_ENDPOINT if it stands "
            "on another hub."
        ) from None
    except RevisionNotFoundError:
        raise UserError(
            f"huggingface_revision={revision}: {model} has no such branch, tag or commit. Leave it out for the "
            "newest version, or look up the right one on the model's page."
        ) from None
    except IncompleteSnapshotError as e:
        return _complete_enough(model, Path(e.snapshot_path))
    except LocalEntryNotFoundError as e:
        if isinstance(e.__cause__, HfHubHTTPError):
            raise UserError(_refused(model, e.__cause__)) from None
        raise UserError(_out_of_reach(model)) from None
    except HfHubHTTPError as e:
        raise UserError(_refused(model, e)) from None
    except HTTPError as e:  # a broken connection or proxy
        raise UserError(_out_of_reach(model, str(e))) from None


def _complete_enough(model: str, folder: Path) -> Path:
    """A cached model that lacks files we would take, such as a licence, but none that we need."""
    try:
        check_contents(model_folders(folder))
    except UserError as e:
        raise UserError(f"{_out_of_reach(model)} The cache holds only a part of it: {e}") from None
    return folder


def _refused(model: str, error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return _gated(model)
    return f"huggingface_id={model}: {_endpoint()} answered {status}, and the model is not cached. Try again later."


def _gated(model: str) -> str:
    return (
        f"huggingface_id={model}: {_endpoint()} gives it only to those who accepted its terms. Accept them on the "
        "model's page, then set HF_TOKEN to a token of that account that may read it."
    )


def _out_of_reach(model: str, reason: str = "") -> str:
    from huggingface_hub import constants

    why = (
        "HF_HUB_OFFLINE is set"
        if constants.is_offline_mode()
        else f"{_endpoint()} cannot be reached{f' ({reason})' if reason else ''}"
    )
    return (
        f"huggingface_id={model}: is not in the cache {constants.HF_HUB_CACHE}, and {why}. Set HF_ENDPOINT to a mirror "
        f"within reach; or run `hf download {model}` where there is a network and point HF_HOME to that cache; or "
        "pass a folder as pytorch_model_path."
    )


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)
