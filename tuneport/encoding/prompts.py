"""Prompts and completions as token ids, for decoders and encoder–decoders."""

from __future__ import annotations

import typing as t
from collections.abc import Mapping
from dataclasses import dataclass

from tuneport.errors import UserError

if t.TYPE_CHECKING:
    from tokenizers import Tokenizer

    from tuneport.encoding.base_model import BaseModel

PLACEHOLDER = "{text}"
# Encoders: transformers would load them as language models, too, and they would write nothing that makes sense.
ENCODERS = frozenset(
    [
        *("albert", "bert", "big_bird", "camembert", "convbert", "deberta", "deberta-v2", "distilbert", "electra"),
        *("ernie", "eurobert", "flaubert", "fnet", "funnel", "ibert", "layoutlm", "longformer", "luke", "mobilebert"),
        *("modernbert", "mpnet", "mra", "nystromformer", "rembert", "roberta", "roberta-prelayernorm", "roformer"),
        *("squeezebert", "xlm-roberta", "xlm-roberta-xl", "xmod", "yoso"),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Specials:
    """The special tokens that stand around prompts and completions of a model, as ids."""

    encoder_decoder: bool
    prompt_prefix: list[int]
    prompt_suffix: list[int]
    target_prefix: list[int]
    target_suffix: list[int]  # its end, where the model has a token for that
    stop: list[int]  # generation ends after any of these


def specials(base: BaseModel) -> Specials:
    """Read off the tokenizer and the configuration which special tokens a model expects.

    Raises `UserError` for a model that writes no text.
    """
    config = base.config
    kind = config.get("model_type")
    if kind in ENCODERS:
        raise UserError(
            f"the base model is of type '{kind}', an encoder, which writes no text; expected a decoder (such as GPT-2, "
            "Llama, Qwen, Mistral, Gemma or Phi) or an encoder–decoder (such as T5, BART, mBART or NLLB). "
            "Choose another base model."
        )
    encoder_decoder = bool(config.get("is_encoder_decoder"))
    prefix, suffix = around(base.tokenizer)
    end = end_of_text(base)
    closing = [i for i in end if i in base.tokenizer.get_added_tokens_decoder() or i == _of_tokenizer(base)][:1]
    if not encoder_decoder:
        return Specials(
            encoder_decoder=False,
            prompt_prefix=prefix,
            prompt_suffix=[],
            target_prefix=[],
            target_suffix=closing,
            stop=end,
        )
    if decoder_start(base) is None and kind != "mbart":  # mBART's starts with what its targets end with
        raise UserError(
            "the base model's config.json names no decoder_start_token_id, so it is not known what its decoder starts "
            "with. Add it: for T5 the id of <pad>, for BART that of </s>."
        )
    return Specials(
        encoder_decoder=True,
        prompt_prefix=prefix,
        prompt_suffix=suffix,
        target_prefix=prefix,
        target_suffix=suffix or closing,
        stop=end,
    )


def around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and after a text."""
    encoding = tokenizer.encode("a")
    places = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
    return encoding.ids[: places[0]], encoding.ids[places[-1] + 1 :]


def check_end(target_suffix: list[int]) -> None:
    """Raise `UserError` where no token ends what is to be learnt."""
    if not target_suffix:
        raise UserError(
            "the base model names no token that ends a text, so a model could not learn where to stop. Name one that "
            "its tokenizer has as eos_token in the base model's tokenizer_config.json, and run model_import again."
        )


def _of_tokenizer(base: BaseModel) -> int | None:
    token = base.tokenizer_config.get("eos_token")
    content = token.get("content") if isinstance(token, Mapping) else token
    return base.tokenizer.token_to_id(content) if isinstance(content, str) else None


def end_of_text(base: BaseModel) -> list[int]:
    """The ids that end a text: the tokenizer's end-of-sequence token first, then those of the configurations."""
    found = [] if (of_tokenizer := _of_tokenizer(base)) is None else [of_tokenizer]
    for config in (base.generation_config, base.config):
        ids = config.get("eos_token_id")
        found += [ids] if isinstance(ids, int) else list(ids or ())
    return list(dict.fromkeys(found))


def vocabulary_size(base: BaseModel) -> int:
    """How many tokens the model knows: its output may have more places than the tokenizer has tokens."""
    return max(int(base.config.get("vocab_size") or 0), base.tokenizer.get_vocab_size())


def decoder_start(base: BaseModel) -> int | None:
    """The id that an encoder–decoder's decoder starts with; None where nothing names it."""
    for config in (base.config, base.generation_config):
        if isinstance(found := config.get("decoder_start_token_id"), int):
            return found
    return None


def joined(prompt: str, completion: str) -> str:
    """A completion as it follows a prompt: after a space, unless white space stands at the seam already."""
    seam = prompt[-1:].isspace() or completion[:1].isspace() or not prompt
    return completion if seam else " " + completion
