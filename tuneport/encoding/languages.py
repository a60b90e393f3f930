"""Language codes that are tokens of a model, as of mBART, mBART-50, NLLB and M2M-100."""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass

from tuneport.encoding.prompts import around, decoder_start, end_of_text
from tuneport.errors import UserError, did_you_mean

if t.TYPE_CHECKING:
    from tokenizers import Tokenizer

    from tuneport.encoding.base_model import BaseModel

# en_XX of mBART, eng_Latn of NLLB, __en__ of M2M-100
CODE = re.compile(r"[a-z]{2}_[A-Z]{2}|[a-z]{3}_[A-Z][a-z]{3}|__[a-z]{2,3}__")
TYPES = ("mbart", "m2m_100")


@dataclass(frozen=True)
class Languages:
    """The language tokens of a model, by code, and where they stand."""

    ids: dict[str, int]
    after_end: bool  # as mBART has it: text, end, code; else: code, text, end
    default: str | None  # the code that the tokenizer puts by itself

    def id(self, code: str, option: str) -> int:
        """The token of a language; ``option`` is the parameter that named it, for the message.

        Raises `UserError` for a language that the model does not know.
        """
        found = self.ids.get(code, self.ids.get(f"__{code}__"))
        if found is None:
            raise UserError(
                f"{option}='{code}': the base model knows no such language code; expected one of "
                f"{', '.join(sorted(self.ids))}.{did_you_mean(code, list(self.ids))}"
            )
        return found


def languages(base: BaseModel) -> Languages | None:
    """The language tokens of a model; None where it has none."""
    if base.config.get("model_type") not in TYPES:
        return None
    ids = {token.content: id_ for id_, token in base.tokenizer.get_added_tokens_decoder().items()}
    ids = {code: id_ for code, id_ in sorted(ids.items()) if CODE.fullmatch(code)}
    if not ids:
        return None
    before, after = (_code(found, base.tokenizer, ids) for found in around(base.tokenizer))
    return Languages(ids, _after_end(base, after is not None), before or after)


def _code(around_text: list[int], tokenizer: Tokenizer, ids: dict[str, int]) -> str | None:
    return next((token for id_ in around_text if (token := tokenizer.id_to_token(id_)) in ids), None)


def _after_end(base: BaseModel, found_there: bool) -> bool:
    """Of one type, mBART has the code last and mBART-50 first; NLLB's older tokenizers have it last in sources only."""
    if base.config.get("model_type") != "mbart":
        return False
    named = str(base.tokenizer_config.get("tokenizer_class"))
    if "MBart50" in named:
        return False
    return found_there or "MBart" in named


def language_specials(base: BaseModel, known: Languages, source: int, target: int) -> dict[str, t.Any]:
    """The special tokens around a source and a target of these languages, as `tuneport.encoding.prompts` names them."""
    end = end_of_text(base)[:1]
    if known.after_end:
        return {
            "prompt_prefix": [],
            "prompt_suffix": [*end, source],
            "target_prefix": [],
            "target_suffix": [*end, target],
            "decoder_start": target,
            "forced_bos": None,
            "always_ends": True,
        }
    mbart = base.config.get("model_type") == "mbart"
    start = decoder_start(base)
    return {
        "prompt_prefix": [source],
        "prompt_suffix": end,
        "target_prefix": [target],
        "target_suffix": end,
        "decoder_start": end[0] if mbart and end else start,
        "forced_bos": target,
        "always_ends": mbart,  # in training its decoder starts with the last token of a target
    }
