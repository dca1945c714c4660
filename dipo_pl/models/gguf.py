"""Models in GGUF files: checks of a file before it is read, and what transformers reads from it as an ordinary model."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import transformers
from huggingface_hub import hf_hub_download
from lightning.pytorch.utilities import rank_zero_warn
from packaging.version import Version
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dipo_pl.errors import InputError, short_message
from dipo_pl.private_names import attention_implementation
from dipo_pl.storage.files import refuse_lfs_pointer

# transformers reads GGUF files by these.
NEEDED = ("gguf", "accelerate")
# Version 5.0 makes a tokenizer of another kind of byte-level vocabularies, unsaid.
OLDEST_TRANSFORMERS = "5.23"
INSTALL = "pip install 'dipo-pl[gguf]'"
MAGIC = b"GGUF"
# Entries of a configuration that are of the file and would be wrong in a model folder.
OF_THE_FILE = ("quantization_config", "_name_or_path", "_model_name_or_path")


def missing_packages() -> list[str]:
    """Return the packages that reading a GGUF file needs and that are not installed, or too old."""
    missing = [each for each in NEEDED if find_spec(each) is None]
    is_old = Version(transformers.__version__) < Version(OLDEST_TRANSFORMERS)
    return [*missing, f"transformers {OLDEST_TRANSFORMERS} or later"] if is_old else missing


@dataclass(frozen=True)
class GGUF:
    """GGUF file that can be read.

    Attributes:
        file: its path.
        weights: number of weights that it holds.
        tokens: number of tokens of its tokenizer.
    """

    file: Path
    weights: int
    tokens: int

    @classmethod
    def read(cls, file: Path) -> Self:
        """Return a file whose whole structure has been checked.

        Raises:
            InputError: a package is missing, or the file is no GGUF file, is cut or damaged, is one part of several, or
                holds weights of a type that cannot be dequantized.
        """
        if missing := missing_packages():
            raise InputError(
                f"{file} is a GGUF file, and reading it needs {' and '.join(missing)}: {INSTALL}"
            )
        try:
            with file.open("rb") as opened:
                begin = opened.read(len(MAGIC))
        except OSError as error:
            raise InputError(f"cannot read {file} ({error.strerror}): change its permissions") from error
        refuse_lfs_pointer(file)
        if begin != MAGIC:
            raise InputError(f"{file} is not a GGUF file: it begins with {begin!r}, not with {MAGIC!r}")
        # Imported here because it belongs to an extra, and is slow to import.
        from gguf import GGUFReader

        try:
            reader = GGUFReader(file)
            parts = reader.get_field("split.count")
            count = 1 if parts is None else int(parts.contents())
            tokens = reader.get_field("tokenizer.ggml.tokens")
        except Exception as error:
            if number := re.search(r"(\d+)\)? is not a valid GGMLQuantizationType", str(error)):
                raise _not_dequantized(file, f"number {number[1]}") from error
            raise InputError(
                f"{file} is cut or damaged ({short_message(error)}): copy or download it again"
            ) from error
        if count > 1:
            raise InputError(
                f"{file} is one of {count} parts of a model: merge them first (llama-gguf-split --merge)"
            )
        _refuse_types(file, reader.tensors)
        if tokens is None:
            raise InputError(f"{file} holds no tokenizer: give the GGUF file of a whole language model")
        return cls(file, sum(int(each.n_elements) for each in reader.tensors), len(tokens.data))

    def own_tokens(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        """Return what transformers has made of the tokenizer without tokens that it added, which the model cannot embed.

        It adds GPT-2's <|endoftext|> to all byte-level vocabularies, such as that of Llama 3, which has none.
        """
        if len(tokenizer) <= self.tokens:
            return tokenizer
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        content["added_tokens"] = [each for each in content["added_tokens"] if each["id"] < self.tokens]
        return PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(json.dumps(content)),
            chat_template=tokenizer.chat_template,
            clean_up_tokenization_spaces=False,
            **tokenizer.special_tokens_map,
        )

    def plain(self, model: PreTrainedModel, path: str) -> PreTrainedModel:
        """Return the model that transformers has dequantized as one that can be trained and saved, on the same memory.

        A model that comes from a GGUF file is marked as quantized, which transformers refuses to save.

        Args:
            model: what transformers returns.
            path: its new `name_or_path`.
        """
        config = model.config.to_dict()
        made: PreTrainedModel = type(model).from_pretrained(
            None,
            config=type(model.config).from_dict(
                {key: value for key, value in config.items() if key not in OF_THE_FILE}
            ),
            state_dict=model.state_dict(),
            dtype=model.dtype,
            attn_implementation=attention_implementation(model.config),
        )
        made.config.name_or_path = path
        left = self.weights - sum(each.numel() for each in made.parameters())
        if left > 0:
            rank_zero_warn(
                f"{self.file} holds {left:,} more weights than transformers reads into {type(model).__name__}, such as the "
                "rope_freqs of Llama 3.1: the model differs from the original"
            )
        return made


def load_options() -> dict[str, Any]:
    """Return options of `from_pretrained` that have all weights dequantized, also where a kernel could take blocks."""
    return {"quantization_config": transformers.GgufConfig(dequantize=True)}


def downloaded(repository: str, name: str, revision: str | None) -> Path:
    """Return a file of the hub in the local cache.

    Raises:
        InputError: it cannot be downloaded.
    """
    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except Exception as error:
        raise InputError(f"cannot load the file {name} of {repository!r}: {short_message(error)}") from error


def _refuse_types(file: Path, tensors: Iterable[Any]) -> None:
    from gguf import dequantize

    for kind, tensor in {each.tensor_type: each for each in tensors}.items():
        try:
            dequantize(tensor.data[:1], kind)
        except NotImplementedError as error:
            raise _not_dequantized(file, kind.name) from error


def _not_dequantized(file: Path, kind: str) -> InputError:
    return InputError(
        f"{file} holds weights of the type {kind}, which the installed gguf cannot dequantize: give another "
        "quantization of the model, such as Q4_K_M, Q8_0 or F16"
    )
