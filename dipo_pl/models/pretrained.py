"""Source of a pretrained model: the Hugging Face hub or a folder."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dipo_pl.errors import InputError, short_message
from dipo_pl.models.companions import companions, model_folder
from dipo_pl.models.lora import LoRA
from dipo_pl.models.quantization import Quantization, quantize
from dipo_pl.models.source import AttentionKernel, ModelSource
from dipo_pl.paths import expanded

TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "tekken.json")


class Pretrained(ModelSource):
    """Source of a pretrained causal language model: the Hugging Face hub, or a folder in the same format.

    Args:
        path: hub id or folder.
        revision: branch, tag or commit on the hub.
        dtype: data type of the weights; `auto` is float32 where they are trained, since a small step changes few weights of
            half precision, and that of the checkpoint where they are frozen (under an adapter) or quantized.
        attention: attention kernel; null is the choice of transformers for the architecture.
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a third more time.
        trust_remote_code: run code that comes with the model; set it only if you have read that code.
        adapter: adapters that are trained in place of the weights of the model; null trains these weights.
        quantization: round the weights of all linear layers except the output head to 8 or 4 bits, to measure
            whether that brings back what was forgotten; such a model cannot be trained. Needs torchao:
            pip install 'dipo-pl[quantize]'.
        tokenizer: hub id or folder of the tokenizer, for a model that comes without one.

    Raises:
        InputError: both `quantization` and `adapter` are given.
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
                "model.policy.quantization is only for measuring and model.policy.adapter is for training: set one of them"
            )
        self.quantization = quantization
        self.path = expanded(path)
        self.revision = revision
        self.tokenizer_source = tokenizer
        self.dtype = dtype
        self.trust_remote_code = trust_remote_code

    @property
    def source(self) -> str:
        """Hub id or folder."""
        return self.path

    @property
    def weights_dtype(self) -> str:
        """Data type in which the weights are loaded; `auto` is that of the checkpoint."""
        trained = self.adapter is None and self.quantization is None
        return "float32" if self.dtype == "auto" and trained else self.dtype

    def _load_tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerBase:
        if self.tokenizer_source is not None:
            return Pretrained(self.tokenizer_source).tokenizer()
        self.refuse_unusable_folder()
        folder = Path(self.path)
        if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES):
            # Some versions of transformers would make a tokenizer of special tokens only.
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
        """Return the configuration of the model, without loading weights.

        Raises:
            InputError: the configuration cannot be loaded.
        """
        self.refuse_unusable_folder()
        try:
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                self.path, revision=self.revision or "main", trust_remote_code=self.trust_remote_code
            )
        except Exception as error:
            raise self._not_loaded("configuration", error) from error
        return config

    def copy_companions(self, folder: Path) -> None:
        """Copy the files of the model's folder beside its weights to a folder that lacks them: processors, licenses, ...

        The model's own code is copied if it is trusted.
        """
        source = model_folder(self.path, self.revision)
        if source is None:
            return
        for name in companions(source, code=self.trust_remote_code):
            # Of another tokenizer than the one in use.
            is_foreign = self.tokenizer_source is not None and any(map(name.match, TOKENIZER_FILES))
            if not (folder / name).exists() and not is_foreign:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, folder / name)

    def _load_model(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        self.refuse_unusable_folder()
        try:
            model: PreTrainedModel
            model, info = AutoModelForCausalLM.from_pretrained(
                self.path,
                revision=self.revision or "main",
                dtype=self.weights_dtype,
                use_safetensors=True,
                trust_remote_code=self.trust_remote_code,
                output_loading_info=True,
                attn_implementation=self.attention,
            )
        except Exception as error:
            raise self._not_loaded("model", error) from error
        if missing := sorted(info["missing_keys"]):
            # transformers would only warn and initialize them randomly.
            raise InputError(
                f"the checkpoint of {self.path!r} lacks {len(missing)} weights of {type(model).__name__} "
                f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}): give a complete causal "
                "language model"
            )
        if hasattr(model, "peft_config"):
            raise self._is_adapter()
        if self.quantization is not None:
            quantize(model, self.quantization)
        self.stored_dtype = self.configuration().dtype
        return model

    def refuse_unusable_folder(self) -> None:
        """Refuse a path to a folder that does not exist or holds no complete model in safetensors files.

        Raises:
            InputError: the path is such a path.
        """
        # Otherwise a mistyped folder is looked for on the hub, and the error is about the hub.
        path = Path(self.path)
        looks_like_folder = (
            self.path.startswith((".", "/", "~"))
            or self.path.count("/") > 1
            or (len(path.parts) > 1 and path.parent.is_dir())
        )
        if looks_like_folder and not path.is_dir():
            raise InputError(
                f"no model folder {self.path}: give a folder with config.json and *.safetensors, or a hub id; a folder "
                "under runs/ is written by the run that trains that model"
            )
        if (path / "adapter_config.json").is_file():
            raise self._is_adapter()
        pickled = sorted(each.name for each in path.glob("*.bin"))
        if pickled and not any(path.glob("*.safetensors*")):
            raise InputError(
                f"{self.path} has no *.safetensors, only {pickled[0]}, a pickle, which can run code when it is read: if you "
                "trust it, load it with transformers and save it with save_pretrained"
            )

    def _is_adapter(self) -> InputError:
        return InputError(
            f"{self.path} holds an adapter, not a complete model: give its base model, or merge the two (a run of dipo-pl "
            "merges them with export.adapter false)"
        )

    def _not_loaded(self, what: str, error: Exception) -> InputError:
        if "trust_remote_code" in str(error):
            return InputError(
                f"the {what} of {self.path!r} comes with its own code: read that code, then set "
                "model.policy.trust_remote_code to true"
            )
        return InputError(f"cannot load the {what} of {self.path!r}: {short_message(error)}")
