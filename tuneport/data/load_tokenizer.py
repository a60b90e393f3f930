"""Open a model folder's tokenizer, without transformers, and settle the longest sequence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneport import json_yaml
from tuneport.errors import UserError
from tuneport.limits import MAX_TEMPLATE_BYTES, read_bytes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

UNLIMITED = 1_000_000  # tokenizers that know no limit write 1e30 or so as model_max_length
# Models whose positions start after the padding index, so that the last ones of max_position_embeddings are not usable.
OFFSET_POSITIONS = frozenset(
    [
        *("camembert", "data2vec-text", "esm", "ibert", "longformer", "luke", "mpnet", "roberta"),
        *("roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
    ]
)


def read_json(model: Path, name: str) -> dict[str, Any]:
    """A JSON file of a model folder.

    Raises `UserError` where it is absent or no JSON object.
    """
    try:
        value = json_yaml.read_json(model / name)
    except OSError as e:
        raise UserError(
            f"{model / name}: cannot be read ({e.strerror}); expected a model folder as model_import writes it."
        ) from None
    except ValueError as e:
        raise UserError(f"{model / name}: is not JSON ({e}). Run model_import again.") from None
    if not isinstance(value, dict):
        raise UserError(f"{model / name}: is not a JSON object. Run model_import again.")
    return value


def chat_template(model: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """A model's own chat template: its file, else what its tokenizer's configuration holds, of several the default.

    Raises `UserError` where the file is too large or no text.
    """
    file = model / "chat_template.jinja"
    if file.is_file():
        try:
            return read_bytes(file, MAX_TEMPLATE_BYTES).decode("utf-8")
        except ValueError as e:
            raise UserError(f"{file}: is no chat template ({e}). Put a Jinja template there.") from None
    found = tokenizer_config.get("chat_template")
    if isinstance(found, list):
        named = {entry["name"]: entry["template"] for entry in found}
        found = named.get("default")
    return found if isinstance(found, str) else None


def longest_input(config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]) -> int | None:
    """The most tokens a model takes, by its tokenizer's and its own configuration; None where neither says."""
    limits = []
    limit = tokenizer_config.get("model_max_length")
    if isinstance(limit, (int, float)) and 0 < limit < UNLIMITED:
        limits.append(int(limit))
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    if isinstance(positions, int) and positions > 0:
        offset = int(config.get("pad_token_id") or 0) + 1 if config.get("model_type") in OFFSET_POSITIONS else 0
        limits.append(positions - offset)
    return min(limits, default=None)


def resolve_length(max_seq_length: int, max_positions: int | None) -> int:
    """The longest sequence in tokens; ``max_seq_length`` -1 means what the model takes.

    Raises `UserError` where it is more than the model takes, or -1 and the model does not say.
    """
    if max_seq_length == -1:
        if max_positions is None:
            raise UserError(
                "max_seq_length=-1: the model's configuration names no maximum; set max_seq_length, e.g. 512."
            )
        return max_positions
    if max_positions is not None and max_seq_length > max_positions:
        raise UserError(
            f"max_seq_length={max_seq_length}: the model takes at most {max_positions} tokens; "
            f"expected <= {max_positions}, or -1."
        )
    return max_seq_length


def load_tokenizer(model: Path, tokenizer_config: Mapping[str, Any], max_seq_length: int) -> Tokenizer:
    """The tokenizer of a model folder, cutting at ``max_seq_length`` tokens and padding nothing.

    Raises `UserError` where it is absent or damaged, or the special tokens alone fill ``max_seq_length``.
    """
    from tokenizers import Tokenizer

    path = model / "tokenizer.json"
    if not path.is_file():
        raise UserError(
            f"{path}: not found; expected a model folder as model_import writes it. Run model_import on the model."
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as e:  # the library raises nothing narrower
        raise UserError(f"{path}: is damaged or of a newer format ({e}). Run model_import again.") from None
    special = tokenizer.num_special_tokens_to_add(is_pair=True)
    if max_seq_length <= special:
        raise UserError(
            f"max_seq_length={max_seq_length}: leaves no room for text beside {special} special tokens; "
            f"expected > {special}, or -1."
        )
    tokenizer.enable_truncation(max_seq_length, direction=str(tokenizer_config.get("truncation_side") or "right"))
    tokenizer.no_padding()
    return tokenizer
