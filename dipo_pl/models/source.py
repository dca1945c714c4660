"""Where the policy comes from: a published checkpoint or a folder, or a configuration with random weights."""

import json
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dipo_pl.errors import InputError
from dipo_pl.models.head import check_head
from dipo_pl.models.lora import LoRA
from dipo_pl.models.quantization import Quantization, quantize
from dipo_pl.models.tokenizer import train_tokenizer

AttentionKernel = Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"]
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "tekken.json")


class Policy(ABC):
    """Gives a tokenizer and a model; loads each once.

    Args:
        attention: attention kernel; null is transformers' own choice for the architecture.
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a third
            more time.
        adapter: what is trained in place of the model's own weights; null trains these.
    """

    # A quantised policy is measured, never trained.
    quantization: Quantization | None = None

    def __init__(
        self,
        attention: AttentionKernel | None = None,
        gradient_checkpointing: bool = False,
        adapter: LoRA | None = None,
    ) -> None:
        self.attention = attention
        self.gradient_checkpointing = gradient_checkpointing
        self.adapter = adapter
        self._tokenizer: PreTrainedTokenizerBase | None = None

    @abstractmethod
    def _load_tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerBase: ...

    @abstractmethod
    def _load_model(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel: ...

    @property
    @abstractmethod
    def source(self) -> str:
        """What the policy was made from, in a word or two, for manifests and messages."""

    def configuration(self) -> PreTrainedConfig:
        """Of the model, without its weights.

        Raises:
            InputError: it cannot be had.
        """
        raise InputError(
            f"{type(self).__name__} cannot tell its model's configuration without making the model"
        )

    def tokenizer(self, texts: Iterable[str] = ()) -> PreTrainedTokenizerBase:
        """The tokenizer; `texts` are what one that does not exist yet is trained on.

        Raises:
            InputError: it cannot be had, or gives no character offsets.
        """
        if self._tokenizer is None:
            self._tokenizer = self._load_tokenizer(texts)
            if not self._tokenizer.is_fast:
                raise InputError(
                    f"the tokenizer of {self.source} gives no character offsets, which answers are found by: "
                    "use its fast version (a tokenizer.json)"
                )
        return self._tokenizer

    def model(self) -> PreTrainedModel:
        """A fresh model in train mode, its head checked, with its adapters.

        Raises:
            InputError: it cannot be had, disagrees with the tokenizer, or cannot be adapted as asked.
        """
        return self.prepared(self.loaded())

    def loaded(self) -> PreTrainedModel:
        """The same before it is `prepared`, as it may be sent to another process."""
        tokenizer = self.tokenizer()
        model = self._load_model(tokenizer)
        rows = model.get_input_embeddings().weight.shape[0]
        if len(tokenizer) > rows:
            raise InputError(
                f"the tokenizer of {self.source} has {len(tokenizer)} tokens and the model embeds {rows}: "
                "they do not belong together; resize the model's embeddings or give the right tokenizer"
            )
        check_head(model)
        if self.adapter is not None:
            self.adapter.apply(model)
        return model

    def prepared(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model in train mode."""
        if self.gradient_checkpointing:
            # The reentrant kind fails under DDP and skips layers whose inputs need no gradient.
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return model.train()


class Pretrained(Policy):
    """A causal language model of the Hugging Face hub, or a folder in the same format.

    Args:
        path: hub id or folder.
        revision: branch, tag or commit on the hub.
        tokenizer: a folder or hub id whose tokenizer is used, for a model that comes without one.
        dtype: of the weights; `auto` is the checkpoint's own.
        trust_remote_code: run code that comes with the model; only if you have read it.
        quantization: round the weights of its linear layers but the output head to integers of 8 or 4 bits, to
            measure what that brings back; such a model cannot be trained. Needs torchao: pip install
            'dipo-pl[quantize]'.
        attention, gradient_checkpointing, adapter: see Policy.
    """

    def __init__(
        self,
        path: str,
        revision: str | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        attention: AttentionKernel | None = None,
        gradient_checkpointing: bool = False,
        trust_remote_code: bool = False,
        adapter: LoRA | None = None,
        quantization: Quantization | None = None,
        tokenizer: str | None = None,
    ) -> None:
        super().__init__(attention, gradient_checkpointing, adapter)
        if quantization is not None and adapter is not None:
            raise InputError(
                "model.policy.quantization is for measuring alone, and model.policy.adapter for training: give one"
            )
        self.quantization = quantization
        self.path = path
        self.revision = revision
        self.tokenizer_source = tokenizer
        self.dtype = dtype
        self.trust_remote_code = trust_remote_code

    @property
    def source(self) -> str:
        return self.path

    def _load_tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerBase:
        if self.tokenizer_source is not None:
            return Pretrained(self.tokenizer_source).tokenizer()
        self.refuse_unusable_folder()
        folder = Path(self.path)
        if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES):
            # Some versions of transformers would make an empty one, of special tokens alone.
            raise InputError(
                f"no tokenizer in the folder {self.path}: put its tokenizer.json there, or set model.policy.tokenizer"
            )
        try:
            return AutoTokenizer.from_pretrained(
                self.path, revision=self.revision or "main", trust_remote_code=self.trust_remote_code
            )
        except Exception as error:
            raise self._not_loaded("tokenizer", error) from error

    def configuration(self) -> PreTrainedConfig:
        self.refuse_unusable_folder()
        try:
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                self.path, revision=self.revision or "main", trust_remote_code=self.trust_remote_code
            )
        except Exception as error:
            raise self._not_loaded("configuration", error) from error
        return config

    def _load_model(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        self.refuse_unusable_folder()
        options: dict[str, Any] = {"attn_implementation": self.attention} if self.attention else {}
        try:
            model: PreTrainedModel
            model, info = AutoModelForCausalLM.from_pretrained(
                self.path,
                revision=self.revision or "main",
                dtype=self.dtype,
                use_safetensors=True,
                trust_remote_code=self.trust_remote_code,
                output_loading_info=True,
                **options,
            )
        except Exception as error:
            raise self._not_loaded("model", error) from error
        if missing := sorted(info["missing_keys"]):
            # transformers would only warn, and begin with random weights in these places.
            raise InputError(
                f"the checkpoint of {self.path!r} lacks {len(missing)} weights of {type(model).__name__} "
                f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}): give a whole causal "
                "language model"
            )
        if hasattr(model, "peft_config"):
            raise self._is_adapter()
        if self.quantization is not None:
            quantize(model, self.quantization)
        return model

    def refuse_unusable_folder(self) -> None:
        """
        Raises:
            InputError: the path looks like that of a folder here, and there is none, or it holds no model of its own.
        """
        # Without this a mistyped folder is looked for on the hub, and the error speaks of the hub.
        path = Path(self.path)
        looks_like_folder = (
            self.path.startswith((".", "/", "~"))
            or self.path.count("/") > 1
            or (len(path.parts) > 1 and path.parent.is_dir())
        )
        if looks_like_folder and not path.is_dir():
            raise InputError(
                f"no model folder {self.path}: give a folder with config.json and *.safetensors, or a hub id. "
                "A folder under runs/ is written by the run that makes that model"
            )
        if (path / "adapter_config.json").is_file():
            raise self._is_adapter()
        pickled = sorted(each.name for each in path.glob("*.bin"))
        if pickled and not any(path.glob("*.safetensors*")):
            raise InputError(
                f"{self.path} has no *.safetensors, only {pickled[0]}, which can run code as it is read: if you trust it, "
                "load it with transformers and save it with save_pretrained"
            )

    def _is_adapter(self) -> InputError:
        return InputError(
            f"{self.path} holds an adapter, not a whole model: give the one that it was made for, or merge them "
            "(a run of dipo-pl does so with export.adapter false)"
        )

    def _not_loaded(self, what: str, error: Exception) -> InputError:
        if "trust_remote_code" in str(error):
            return InputError(
                f"the {what} of {self.path!r} comes with code of its own, which is not run unless "
                "model.policy.trust_remote_code is set: read it first"
            )
        return InputError(f"cannot load the {what} of {self.path!r}: {_short(error)}")


class FromConfig(Policy):
    """A model with random weights, for training from scratch, and a tokenizer trained on the data's rows.

    Args:
        config: a transformers configuration as a mapping with `model_type` (llama, gpt2, phi, gemma2,
            qwen2, ...), or the path of a config.json.
        vocab_size: tokens of the byte-level BPE tokenizer that is trained; fewer if the texts are short.
        tokenizer: a folder or hub id whose tokenizer is used instead.
        seed: of the weights; null takes seed_everything on the command line, else 0.
        attention, gradient_checkpointing, adapter: see Policy.
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
    ) -> None:
        super().__init__(attention, gradient_checkpointing, adapter)
        self.config = config
        self.vocab_size = vocab_size
        self.tokenizer_source = tokenizer
        self.seed = seed or 0

    @property
    def source(self) -> str:
        kind = self.config if isinstance(self.config, str) else self.config.get("model_type")
        return f"a random {kind}"

    def _load_tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerBase:
        if self.tokenizer_source is not None:
            return Pretrained(self.tokenizer_source).tokenizer()
        return train_tokenizer(texts, self.vocab_size)

    def configuration(self) -> PreTrainedConfig:
        """As given, but for what the tokenizer decides: the vocabulary and its special tokens."""
        values = dict(self._values())
        model_type = values.pop("model_type")
        try:
            config, known = AutoConfig.for_model(model_type, **values), AutoConfig.for_model(model_type)
        except Exception as error:
            raise InputError(f"model.policy.config is not a model configuration: {_short(error)}") from error
        # A mistyped name would be kept as an attribute that nothing reads. (Published files hold such, too.)
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
        options: dict[str, Any] = {"attn_implementation": self.attention} if self.attention else {}
        # Apart from the global generator: the weights depend on this seed alone.
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            try:
                model: PreTrainedModel = AutoModelForCausalLM.from_config(
                    config, trust_remote_code=False, **options
                )
            except Exception as error:
                raise InputError(f"cannot make {self.source}: {_short(error)}") from error
        return model

    def _values(self) -> dict[str, Any]:
        if isinstance(self.config, dict):
            values: dict[str, Any] = self.config
        else:
            try:
                values = json.loads(Path(self.config).read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise InputError(f"cannot read the model configuration {self.config}: {error}") from error
        if "model_type" not in values:
            raise InputError("model.policy.config needs 'model_type' (llama, gpt2, phi, ...)")
        return values


def _short(error: Exception) -> str:
    """A library's message on one line, without its longest lists."""
    return textwrap.shorten(f"{error}", 400, placeholder=" ...") or type(error).__name__
