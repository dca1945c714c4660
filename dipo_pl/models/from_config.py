"""Source of a model with random weights, made from a configuration."""

import json
from collections.abc import Iterable
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dipo_pl.errors import InputError, short_message
from dipo_pl.models.lora import LoRA
from dipo_pl.models.pretrained import Pretrained
from dipo_pl.models.source import AttentionKernel, ModelSource
from dipo_pl.models.tokenizer import train_tokenizer
from dipo_pl.storage.text import read_text


class FromConfig(ModelSource):
    """Source of a model with random weights, for training from scratch, with a tokenizer trained on the rows of the data.

    Args:
        config: a configuration of transformers as a mapping with `model_type` (llama, gpt2, phi, gemma2, qwen2, ...),
            or the path of a config.json.
        vocab_size: tokens of the byte-level BPE tokenizer that is trained; fewer if the texts are short.
        tokenizer: hub id or folder of a tokenizer that is used instead.
        seed: seed of the weights; null takes seed_everything on the command line, else 0.
        attention: attention kernel; null is the choice of transformers for the architecture.
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a third more time.
        adapter: adapters that are trained in place of the weights of the model; null trains these weights.
        compile: have torch.compile compile the decoder layers for training, on one device; takes seconds to minutes, and a
            C++ compiler.
    """

    def __init__(
        self,
        config: dict[str, Any] | str,
        vocab_size: int = 2048,
        tokenizer: str | None = None,
        seed: int | None = None,
        attention: AttentionKernel | None = None,
        gradient_checkpointing: bool = False,
        adapter: LoRA | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__(attention, gradient_checkpointing, adapter, compile)
        self.config = config
        self.vocab_size = vocab_size
        self.tokenizer_source = tokenizer
        self.seed = seed or 0

    @property
    def source(self) -> str:
        """Type of the model, or the path of its configuration."""
        kind = self.config if isinstance(self.config, str) else self.config.get("model_type")
        return f"a random {kind}"

    def _load_tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerBase:
        if self.tokenizer_source is not None:
            return Pretrained(self.tokenizer_source).tokenizer()
        return train_tokenizer(texts, self.vocab_size)

    def configuration(self) -> PreTrainedConfig:
        """Return the configuration as given; vocabulary and special tokens follow from the tokenizer.

        Raises:
            InputError: the configuration cannot be read, or is not one of a model.
        """
        values = dict(self._values())
        model_type = values.pop("model_type")
        if isinstance(self.config, str):
            # The dtype is that of a checkpoint beside the file; these weights are new, and are trained.
            values = {name: value for name, value in values.items() if name not in ("dtype", "torch_dtype")}
        try:
            config, known = AutoConfig.for_model(model_type, **values), AutoConfig.for_model(model_type)
        except Exception as error:
            raise InputError(
                f"model.policy.config is not a model configuration: {short_message(error)}"
            ) from error
        # A mistyped name would become an attribute that nothing reads. (Published files have such attributes too.)
        for name in values if isinstance(self.config, dict) else ():
            if hasattr(config, name) and not hasattr(known, name):
                raise InputError(f"model.policy.config: a {model_type} configuration has no {name!r}")
        return config

    def _load_model(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        config = self.configuration()
        text_config = config.get_text_config()
        text_config.vocab_size = len(tokenizer)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(text_config, name, getattr(tokenizer, name))
        # The weights depend on this seed only, not on the global generator.
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            try:
                model: PreTrainedModel = AutoModelForCausalLM.from_config(
                    config, trust_remote_code=False, attn_implementation=self.attention
                )
            except Exception as error:
                raise InputError(f"cannot create {self.source}: {short_message(error)}") from error
        return model

    def _values(self) -> dict[str, Any]:
        if isinstance(self.config, dict):
            values: dict[str, Any] = self.config
        else:
            try:
                values = json.loads(read_text(self.config))
            except (OSError, ValueError) as error:
                raise InputError(f"cannot read the model configuration {self.config}: {error}") from error
        if "model_type" not in values:
            raise InputError("model.policy.config needs 'model_type' (llama, gpt2, phi, ...)")
        return values
