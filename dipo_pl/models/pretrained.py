"""Source of a pretrained model: the Hugging Face hub, a folder or a GGUF file."""

import shutil
from collections.abc import Iterable
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dipo_pl.errors import InputError, short_message
from dipo_pl.models.companions import companions, licenses, model_folder
from dipo_pl.models.gguf import GGUF, downloaded, load_options
from dipo_pl.models.gguf_path import local_gguf
from dipo_pl.models.lora import LoRA
from dipo_pl.models.quantization import Quantization, quantize
from dipo_pl.models.source import AttentionKernel, ModelSource
from dipo_pl.paths import expanded
from dipo_pl.private_names import bar_of_dequantization
from dipo_pl.storage.files import refuse_lfs_pointer

TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "tekken.json")


class Pretrained(ModelSource):
    """Source of a pretrained causal language model: the Hugging Face hub, a folder in the same format, or a GGUF file.

    The weights of a GGUF file are dequantized, and its own tokenizer is used. The model is then one like any other. Needs
    gguf: pip install 'dipo-pl[gguf]'.

    Args:
        path: hub id, folder, or GGUF file. Of a folder without safetensors files, its only GGUF file is taken.
        revision: branch, tag or commit on the hub.
        dtype: data type of the weights; `auto` is float32 where they are trained, since a small step changes few weights of
            half precision, and that of the checkpoint where they are frozen (under an adapter) or quantized; of a GGUF
            file, float32.
        attention: attention kernel; null is the choice of transformers for the architecture.
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a third more time.
        trust_remote_code: run code that comes with the model; set it only if you have read that code.
        adapter: adapters that are trained in place of the weights of the model; null trains these weights.
        quantization: round the weights of all linear layers except the output head to 8 or 4 bits, to measure
            whether that brings back what was forgotten; such a model cannot be trained. Needs torchao:
            pip install 'dipo-pl[quantize]'.
        tokenizer: hub id or folder of the tokenizer, for a model that comes without one.
        gguf_file: name of a GGUF file in that folder or on the hub.
        compile: have torch.compile compile the decoder layers for training, on one device; takes seconds to minutes, and a
            C++ compiler.

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
        gguf_file: str | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__(attention, gradient_checkpointing, adapter, compile)
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
        self.gguf_file = gguf_file

    @property
    def source(self) -> str:
        """Hub id, folder or GGUF file."""
        file = local_gguf(self.path, self.gguf_file)
        return str(file or (self.path if self.gguf_file is None else f"{self.path}/{self.gguf_file}"))

    @property
    def weights_dtype(self) -> str:
        """Data type in which the weights are loaded; `auto` is that of the checkpoint."""
        trained = self.adapter is None and self.quantization is None
        return "float32" if self.dtype == "auto" and (trained or self._is_gguf) else self.dtype

    @property
    def _is_gguf(self) -> bool:
        return self.gguf_file is not None or local_gguf(self.path) is not None

    @cached_property
    def _gguf(self) -> GGUF | None:
        """GGUF file that the model is loaded from, downloaded and checked."""
        file = local_gguf(self.path, self.gguf_file)
        if file is None and self.gguf_file is not None:
            file = downloaded(self.path, self.gguf_file, self.revision)
        if file is None:
            return None
        found = GGUF.read(file)
        if self.gguf_file is None and Path(self.path).is_dir():
            rank_zero_info(f"{self.path} has no *.safetensors: its model is {file.name}")
        return found

    @property
    def _place(self) -> tuple[str, dict[str, Any]]:
        """Where transformers is to load from, and the options that belong to it."""
        if self._gguf is not None:
            return str(self._gguf.file.parent), {"gguf_file": self._gguf.file.name}
        return self.path, {"revision": self.revision or "main", "trust_remote_code": self.trust_remote_code}

    def _load_tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerBase:
        if self.tokenizer_source is not None:
            return Pretrained(self.tokenizer_source).tokenizer()
        self.refuse_unusable_folder()
        place, options = self._place
        folder = Path(place)
        has_own = self._gguf is not None or any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES)
        if folder.is_dir() and not has_own:
            # Some versions of transformers would make a tokenizer of special tokens only.
            raise InputError(
                f"no tokenizer in the folder {self.path}: put its tokenizer.json there, or set model.policy.tokenizer"
            )
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place, **options)
            return tokenizer if self._gguf is None else self._gguf.own_tokens(tokenizer)
        except Exception as error:
            raise self._not_loaded("tokenizer", error) from error

    def configuration(self) -> PreTrainedConfig:
        """Return the configuration of the model, without loading weights.

        Raises:
            InputError: the configuration cannot be loaded.
        """
        self.refuse_unusable_folder()
        place, options = self._place
        try:
            config: PreTrainedConfig = AutoConfig.from_pretrained(place, **options)
        except Exception as error:
            raise self._not_loaded("configuration", error) from error
        return config

    def copy_companions(self, folder: Path) -> None:
        """Copy the files of the model's folder beside its weights to a folder that lacks them: processors, licenses, ...

        The model's own code is copied if it is trusted. A GGUF file holds all else, so that only licenses are copied.
        """
        source = model_folder(self.path, self.revision, self.gguf_file or "config.json")
        if source is None:
            return
        is_gguf, code = self._is_gguf, self.trust_remote_code
        for name in licenses(source) if is_gguf else companions(source, code):
            # The file's tokenizer is not the one in use.
            is_foreign = self.tokenizer_source is not None and any(map(name.match, TOKENIZER_FILES))
            if not (folder / name).exists() and not is_foreign:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, folder / name)

    def _load_model(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        self.refuse_unusable_folder()
        place, options = self._place
        gguf = self._gguf
        options |= {} if gguf is None else load_options()
        try:
            model: PreTrainedModel
            with nullcontext() if gguf is None else bar_of_dequantization():
                model, info = AutoModelForCausalLM.from_pretrained(
                    place,
                    dtype=self.weights_dtype,
                    use_safetensors=True,
                    output_loading_info=True,
                    attn_implementation=self.attention,
                    **options,
                )
        except Exception as error:
            raise self._not_loaded("model", error) from error
        if missing := sorted(info["missing_keys"]):
            # transformers would only warn and initialize them randomly.
            raise InputError(
                f"the checkpoint of {self.source!r} lacks {len(missing)} weights of {type(model).__name__} "
                f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}): give a complete causal "
                "language model"
            )
        if hasattr(model, "peft_config"):
            raise self._is_adapter()
        if gguf is not None:
            model = gguf.plain(model, self.source)
        if self.quantization is not None:
            quantize(model, self.quantization)
        self.stored_dtype = self.configuration().dtype if gguf is None else torch.float32
        return model

    def refuse_unusable_folder(self) -> None:
        """Refuse a path to a folder that does not exist or holds no complete model in safetensors files or a GGUF file.

        Raises:
            InputError: the path is such a path.
        """
        gguf = local_gguf(self.path, self.gguf_file)
        # Otherwise a mistyped folder is looked for on the hub, and the error is about the hub.
        path = Path(self.path)
        looks_like_folder = (
            self.path.startswith((".", "/", "~"))
            or self.path.count("/") > 1
            or (len(path.parts) > 1 and path.parent.is_dir())
        )
        if looks_like_folder and not path.is_dir() and gguf is None:
            raise InputError(
                f"no model folder {self.path}: give a folder with config.json and *.safetensors, or a hub id; a folder "
                "under runs/ is written by the run that trains that model, and a study removes those of its runs unless its "
                "file has keep_weights: true"
            )
        for file in (*path.glob("*.safetensors"), *path.glob("*.json")):
            refuse_lfs_pointer(file)
        if (path / "adapter_config.json").is_file():
            raise self._is_adapter()
        pickled = sorted(each.name for each in path.glob("*.bin"))
        if pickled and gguf is None and not any(path.glob("*.safetensors*")):
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
        named = self._gguf is None and "gguf" in self.path.lower()
        hint = "; of a repository of GGUF files, name one by model.policy.gguf_file" if named else ""
        return InputError(f"cannot load the {what} of {self.source!r}: {short_message(error)}{hint}")
