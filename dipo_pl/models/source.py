"""Base of the sources of a model and its tokenizer."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from dipo_pl.errors import InputError, check_objects, short_message
from dipo_pl.models.head import check_head
from dipo_pl.models.lora import LoRA
from dipo_pl.models.quantization import Quantization

AttentionKernel = Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"]


class ModelSource(ABC):
    """Base of model sources: loads a tokenizer, once, and models.

    Args:
        attention: attention kernel; null is the choice of transformers for the architecture.
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a third more time.
        adapter: adapters that are trained in place of the weights of the model; null trains these weights.
        compile: have torch.compile compile the decoder layers for training, on one device; takes seconds to minutes, and a
            C++ compiler.

    Attributes:
        quantization: number of bits of a model that can be measured but not trained, or None.
        stored_dtype: data type of the weights in the checkpoint that was loaded, or None.
    """

    quantization: Quantization | None = None
    stored_dtype: torch.dtype | None = None

    def __init__(
        self,
        attention: AttentionKernel | None = None,
        gradient_checkpointing: bool = False,
        adapter: LoRA | None = None,
        compile: bool = False,
    ) -> None:
        check_objects("policy", adapter=adapter)
        self.attention = attention
        self.gradient_checkpointing = gradient_checkpointing
        self.adapter = adapter
        self.compile = compile
        self._tokenizer: PreTrainedTokenizerBase | None = None

    @property
    @abstractmethod
    def source(self) -> str:
        """Short description of the source, for manifests and messages."""

    @abstractmethod
    def _load_tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerBase: ...

    @abstractmethod
    def _load_model(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel: ...

    def configuration(self) -> PreTrainedConfig:
        """Return the configuration of the model, without loading weights.

        Raises:
            InputError: the configuration cannot be loaded.
        """
        raise InputError(f"{type(self).__name__} has no configuration without loading the model")

    def copy_companions(  # noqa: B027
        self, folder: Path
    ) -> None:
        """Copy what belongs to the model beside weights and tokenizer to a folder that lacks it; nothing by default."""

    def tokenizer(self, texts: Iterable[str] = ()) -> PreTrainedTokenizerBase:
        """Return the tokenizer; a source without one trains it on `texts`.

        Raises:
            InputError: the tokenizer cannot be loaded, or gives no character offsets.
        """
        if self._tokenizer is None:
            self._tokenizer = self._load_tokenizer(texts)
            if not self._tokenizer.is_fast:
                raise InputError(
                    f"the tokenizer of {self.source} gives no character offsets, which are needed to find answers: "
                    "use its fast version (a tokenizer.json)"
                )
        return self._tokenizer

    def model(self) -> PreTrainedModel:
        """Return a new model in train mode, with its adapters.

        Raises:
            InputError: the model cannot be loaded, does not fit the tokenizer, or cannot get these adapters.
        """
        return self.prepare(self.load())

    def load(self) -> PreTrainedModel:
        """Return a new model with its adapters, before `prepare`, so that it can be sent to other ranks.

        Raises:
            InputError: the model cannot be loaded, does not fit the tokenizer, or cannot get these adapters.
        """
        tokenizer = self.tokenizer()
        model = self._load_model(tokenizer)
        rows = model.get_input_embeddings().weight.shape[0]
        if len(tokenizer) > rows:
            raise InputError(
                f"the tokenizer of {self.source} has {len(tokenizer)} tokens and the model embeds {rows}: "
                "they do not belong together; resize the model's embeddings or give the right tokenizer"
            )
        try:
            check_head(model)
        except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError) as error:
            raise InputError(
                f"a forward pass of {type(model).__name__} without its output head fails, which training needs: "
                f"{short_message(error)}"
            ) from error
        if self.adapter is not None:
            self.adapter.apply(model)
        return model

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        """Return the model in train mode, with gradient checkpointing where that is asked for."""
        if self.gradient_checkpointing:
            # Reentrant checkpointing fails under DDP and skips layers whose inputs need no gradient.
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return model.train()
