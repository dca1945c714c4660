"""Model folder in the format of Hugging Face, read one tensor at a time so that models larger than memory are possible."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dipo_pl.errors import InputError
from dipo_pl.models.companions import companions
from dipo_pl.models.gguf_path import local_gguf
from dipo_pl.models.pretrained import Pretrained
from dipo_pl.storage.run_folder import RunFolder

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class ModelFolder:
    """Complete causal language model in safetensors files.

    Attributes:
        path: the folder.
        config: content of config.json.
        files: name of the file that holds each tensor.
    """

    path: Path
    config: dict[str, Any]
    files: dict[str, str]

    @classmethod
    def read(cls, given: str) -> Self:
        """Return the model in a folder; for a run folder, the model that the run exported.

        Raises:
            InputError: the folder does not exist or holds no complete model in safetensors files.
        """
        path = Path(given)
        if (gguf := local_gguf(given)) is not None:
            raise InputError(
                f"{gguf} is a GGUF file: make a folder of it first (dipo-pl pretrained {gguf} --output FOLDER)"
            )
        if not path.is_dir():
            raise InputError(
                f"no model folder {given}: give a folder with config.json and *.safetensors, or that of a finished "
                f"run (download a model of the hub first: hf download {given} --local-dir FOLDER)"
            )
        run = RunFolder(path)
        if run.manifest.is_file() and not (path / "config.json").is_file():
            if not run.hf.is_dir():
                lacks = f"{given} has no exported model (no {run.hf})"
                raise InputError(f"{lacks}: train it again with export.enabled true")
            path = run.hf
        Pretrained(str(path)).refuse_unusable_folder()
        config = _read_json(path / "config.json")
        if "quantization_config" in config:
            raise InputError(f"{path} holds quantized weights: give the model before quantization")
        return cls(path, config, _files(path))

    @cached_property
    def shards(self) -> dict[str, list[str]]:
        """Names of the tensors in each file."""
        shards: dict[str, list[str]] = {}
        for name, file in self.files.items():
            shards.setdefault(file, []).append(name)
        return shards

    @cached_property
    def signatures(self) -> dict[str, str]:
        """Kind and shape of each tensor."""
        signatures = {}
        for file, names in self.shards.items():
            with _opened(self.path / file) as tensors:
                for name in names:
                    part = tensors.get_slice(name)
                    kind = "floating-point" if "F" in part.get_dtype() else "not floating-point"
                    signatures[name] = f"{kind} {part.get_shape()}"
        return signatures

    @cached_property
    def tokens(self) -> tuple[dict[str, int], list[Any]]:
        """Ids of the tokens, and the merges of a BPE tokenizer."""
        tokenizer = Pretrained(str(self.path)).tokenizer()
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        return tokenizer.get_vocab(), backend["model"].get("merges") or []

    @property
    def companions(self) -> list[Path]:
        """Files to copy beside the weights, within the folder: config, tokenizer, license, ..., index of shards."""
        index = [] if SINGLE in self.shards else [Path(INDEX)]
        return sorted([*companions(self.path), *index])

    def tensor(self, name: str) -> Tensor:
        """Return a tensor; an InputError if the file does not hold it or is damaged."""
        with _opened(self.path / self.files[name]) as tensors:
            tensor: Tensor = tensors.get_tensor(name)
        return tensor

    def refuse_unlike(self, other: "ModelFolder") -> None:
        """Refuse a model whose tensors do not correspond to this one's.

        Raises:
            InputError: architecture, tokens or tensors differ.
        """

        def refuse_different(what: str, mine: Any, others: Any) -> None:
            if mine != others:
                raise InputError(
                    f"{self.path} and {other.path} differ in {what} ({mine}, {others}): give two models of one "
                    "architecture, fine-tuned from the same one"
                )

        for key in ("model_type", "architectures", "vocab_size"):
            refuse_different(key, *(_text_value(each.config, key) for each in (self, other)))
        for name in (*self.signatures, *other.signatures):
            mine, others = (each.signatures.get(name, "absent") for each in (self, other))
            refuse_different(f"the tensor {name}", mine, others)
        (ids, merges), (others_ids, others_merges) = self.tokens, other.tokens
        for token in (*ids, *others_ids):
            refuse_different(f"the id of the token {token!r}", ids.get(token), others_ids.get(token))
        for rank, (mine, others) in enumerate(zip_longest(merges, others_merges)):
            refuse_different(f"merge {rank} of the tokenizer", mine, others)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as tensors:
            yield tensors
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"cannot read {path} ({' '.join(str(error).split())[:200]}): copy or export that model again"
        ) from error


def _files(path: Path) -> dict[str, str]:
    """Return the file of each tensor; where there is a single file, that one, as transformers does."""
    single, index = path / SINGLE, path / INDEX
    if single.is_file():
        with _opened(single) as tensors:
            return dict.fromkeys(tensors.keys(), SINGLE)
    if not index.is_file():
        raise InputError(
            f"{path} has no {SINGLE} and no {INDEX}: load the model with transformers and save it with save_pretrained"
        )
    files = _read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise InputError(f"{index} has no weight_map: copy or export that model again")
    for file in dict.fromkeys(files.values()):
        # A name with a folder in it would be written outside of the output folder.
        if not isinstance(file, str) or Path(file).name != file or not (path / file).is_file():
            raise InputError(f"{index} names {file}, which is not in that folder: copy that model again")
    return files


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read {path} ({' '.join(str(error).split())}): copy or export that model again"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object: copy or export that model again")
    return content


def _text_value(config: dict[str, Any], key: str) -> Any:
    # A multimodal model has the configuration of its text model one level deeper.
    return config.get(key, (config.get("text_config") or {}).get(key))
