"""Text that a language model writes after prompts: decoders and encoder–decoders, in batches sorted by length."""

from __future__ import annotations

import typing as t

from tuneport.serving.device_loader import DeviceLoader
from tuneport.serving.token_batches import TokenBatches


class Generator:
    """Completes prompts of token ids. Self-contained: exported with the models that it serves.

    ``settings``: ``encoder_decoder``; ``stop``, ids after which a text ends; ``forced_bos``, an id that it begins with,
    or None; ``decoder_start``, the id that the decoder starts with, where that is not the model's own; ``params``,
    transformers' generation parameters: max_new_tokens, num_beams, temperature (0: the likeliest token each time),
    top_p, top_k, repetition_penalty, no_repeat_ngram_size, length_penalty.
    """

    def __init__(self, folder: str, settings: dict[str, t.Any], model: t.Any = None) -> None:
        from pathlib import Path

        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(Path(folder, "tokenizer.json")))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.settings = settings
        self.encoder_decoder = settings["encoder_decoder"]
        load = DeviceLoader("AutoModelForSeq2SeqLM" if self.encoder_decoder else "AutoModelForCausalLM")
        self.model = (model or load(folder)).eval()

    def __call__(self, prompts: list[list[int]], batch_size: int | None, params: dict[str, t.Any]) -> list[str]:
        """Return the text written after each prompt, without special tokens and white space around it.

        As many are written at once as memory allows, and no more than ``batch_size``, where that is given.
        """
        return [text for text, _, _ in self.write(prompts, batch_size, params)]

    def write(
        self, prompts: list[list[int]], batch_size: int | None, params: dict[str, t.Any]
    ) -> list[tuple[str, int, bool]]:
        """The same, as (text, how many tokens were written, whether the last of them is one that ends a text)."""
        import torch

        self._check(params)
        # Of a Trainer's model under training, and of one with generation settings of its own, neither may stay.
        own, training = self.model.generation_config, self.model.training
        self.model.eval()
        self.model.generation_config = self._config(params)
        batches = TokenBatches.of_generation(self.model, batch_size, params.get("num_beams", 1))

        def write(picked: list[int]) -> list[list[int]]:
            with torch.inference_mode():
                return self._generate([prompts[i] for i in picked])

        try:
            written = batches([len(prompt) + params["max_new_tokens"] for prompt in prompts], write)
        finally:
            self.model.generation_config = own
            self.model.train(training)
        return [
            (self.tokenizer.decode(self._ended(ids), skip_special_tokens=True).strip(), *self._counted(ids))
            for ids in written
        ]

    def _generate(self, prompts: list[list[int]]) -> list[list[int]]:
        import torch

        width = max(map(len, prompts))
        fill = self.model.generation_config.pad_token_id

        def padded(ids: list[int], value: int) -> list[int]:
            gap = [value] * (width - len(ids))
            return [*ids, *gap] if self.encoder_decoder else [*gap, *ids]

        batch = {
            "input_ids": torch.tensor([padded(ids, fill) for ids in prompts]),
            "attention_mask": torch.tensor([padded([1] * len(ids), 0) for ids in prompts]),
        }
        written = self.model.generate(**{k: v.to(TokenBatches.device_of(self.model)) for k, v in batch.items()})
        return t.cast(list[list[int]], written[:, 0 if self.encoder_decoder else width :].tolist())

    def _ended(self, ids: list[int]) -> list[int]:
        """Without the token that ends a text, which need not be a special one; an encoder–decoder may begin with it."""
        if self.encoder_decoder:
            return ids
        return ids[: next((n for n, token in enumerate(ids) if token in self.settings["stop"]), None)]

    def _counted(self, ids: list[int]) -> tuple[int, bool]:
        """How many of the ids the model wrote, its stop token among them, and whether it wrote one; padding follows."""
        own = ids[1:] if self.encoder_decoder else ids  # the first is the decoder's start
        ends = [n for n, token in enumerate(own, 1) if token in self.settings["stop"]]
        return (ends[0], True) if ends else (len(own), False)

    def _config(self, params: dict[str, t.Any]) -> t.Any:
        """The settings as transformers' GenerationConfig; of the model's own only the decoder's start stays."""
        from transformers import GenerationConfig

        names = ("max_new_tokens", "num_beams", "repetition_penalty", "no_repeat_ngram_size")
        chosen = {name: params[name] for name in names if name in params}
        if params.get("num_beams", 1) > 1:
            chosen["length_penalty"] = params.get("length_penalty", 1.0)
        if params.get("temperature", 0.0) > 0:
            chosen |= {"do_sample": True, "temperature": params["temperature"]}
            chosen |= {"top_p": params.get("top_p", 1.0), "top_k": params.get("top_k", 0)}
        config = self.model.config
        stop = self.settings["stop"]
        start = self.settings.get("decoder_start")
        if start is None:
            start = getattr(config, "decoder_start_token_id", None)
        if start is None and self.model.generation_config is not None:
            start = self.model.generation_config.decoder_start_token_id
        pad = config.pad_token_id
        if pad is None:
            pad = stop[0] if stop else 0
        return GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=chosen.pop("do_sample", False),
            eos_token_id=stop or None,
            pad_token_id=pad,
            decoder_start_token_id=start,
            forced_bos_token_id=self.settings.get("forced_bos"),
            **chosen,
        )

    def _check(self, params: dict[str, t.Any]) -> None:
        least = {"max_new_tokens": 1, "num_beams": 1, "temperature": 0, "top_k": 0, "no_repeat_ngram_size": 0}
        for name, value in least.items():
            if name in params and params[name] < value:
                raise ValueError(f"params: {name}={params[name]} is not valid; expected a number >= {value}")
        for name in ("top_p", "repetition_penalty"):
            if name in params and params[name] <= 0:
                raise ValueError(f"params: {name}={params[name]} is not valid; expected a number > 0")
        if params.get("top_p", 1.0) > 1:
            raise ValueError(f"params: top_p={params['top_p']} is not valid; expected a number <= 1")
