"""A Hugging Face model folder, read tensor by tensor, so that models larger than the memory can be combined."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dipo_pl.errors import InputError
from dipo_pl.models.pretrained import TOKENIZER_FILES, Pretrained
from dipo_pl.storage.run_folder import RunFolder

T = TypeVar("T")

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Beside the weights; code and whatever else training left there is not of the model.
KEPT = (
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template*",
    "LICENSE*",
    "NOTICE*",
    *TOKENIZER_FILES,
)
NEVER_KEPT = (".py", ".bin", ".pt", ".pth", ".safetensors")


@dataclass(frozen=True)
class ModelFolder:
    """A whole causal language model.

    Attributes:
        path: of the folder.
        config: its config.json.
        files: of each tensor, the name of the file that holds it.
    """

    path: Path
    config: dict[str, Any]
    files: dict[str, str]

    @classmethod
    def read(cls, given: str) -> Self:
        """The model of a folder, or of a run folder, the one that the run exported.

        Raises:
            InputError: there is no such folder, or it holds no whole model in safetensors files.
        """
        path = Path(given)
        if not path.is_dir():
            raise InputError(
                f"no model folder {given}: give a folder with config.json and *.safetensors, or that of a finished "
                f"run (a model of the hub first: hf download {given} --local-dir FOLDER)"
            )
        run = RunFolder(path)
        if run.manifest.is_file() and not (path / "config.json").is_file():
            if not run.hf.is_dir():
                raise InputError(
                    f"{given} has no exported model (no {run.hf}): train it again with export.enabled true"
                )
            path = run.hf
        if (path / "adapter_config.json").is_file():
            raise InputError(
                f"{path} holds an adapter, not a whole model: merge it into the model that it was made for (a run "
                "does so with export.adapter false)"
            )
        config = _read_json(path / "config.json", "a model folder has one")
        if "quantization_config" in config:
            raise InputError(f"{path} holds quantised weights: give the model as it was before")
        return cls(path, config, _files(path))

    @cached_property
    def shards(self) -> dict[str, list[str]]:
        """Names of the tensors that each file holds."""
        shards: dict[str, list[str]] = {}
        for name, file in self.files.items():
            shards.setdefault(file, []).append(name)
        return shards

    @cached_property
    def signatures(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Of each tensor: dtype, as safetensors writes it, and shape."""
        signatures: dict[str, tuple[str, tuple[int, ...]]] = {}
        for file, names in self.shards.items():
            parts = _look(self.path / file, lambda opened, of=tuple(names): [*map(opened.get_slice, of)])  # type: ignore[misc]
            for name, part in zip(names, parts, strict=True):
                signatures[name] = (part.get_dtype(), tuple(part.get_shape()))
        return signatures

    @cached_property
    def tokens(self) -> tuple[dict[str, int], Any]:
        """Ids of its tokens, and the merges of those that are made by merging."""
        tokenizer = Pretrained(str(self.path)).tokenizer()
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        return tokenizer.get_vocab(), backend["model"].get("merges")

    @property
    def companions(self) -> list[Path]:
        """Config, generation settings, tokenizer and licence: what makes a model of the weights."""
        found = {each for pattern in KEPT for each in self.path.glob(pattern)}
        kept = [each for each in found if each.is_file() and each.suffix not in NEVER_KEPT]
        return sorted([*kept, *self.path.glob(INDEX)] if SINGLE not in self.shards else kept)

    def tensor(self, name: str) -> Tensor:
        """
        Raises:
            InputError: the file that should hold it does not, or is damaged.
        """
        tensor: Tensor = _look(self.path / self.files[name], lambda opened: opened.get_tensor(name))
        return tensor

    def refuse_unlike(self, other: "ModelFolder") -> None:
        """
        Raises:
            InputError: the two are not of one architecture, with the same tokens and tensors.
        """
        both = f"{self.path} and {other.path}"
        needs = "arithmetic needs two models of one architecture, fine-tuned from the same one"
        for key in ("model_type", "architectures", "vocab_size"):
            mine, others = (_text_value(each.config, key) for each in (self, other))
            if mine != others:
                raise InputError(f"{both} differ in {key} ({mine}, {others}): {needs}")
        for name in (*self.signatures, *other.signatures):
            described = [each.signatures.get(name) for each in (self, other)]
            if None in described:
                where, lacking = (self, other) if described[1] is None else (other, self)
                raise InputError(f"{where.path} has a tensor {name}, which {lacking.path} lacks: {needs}")
            (kind, shape), (others_kind, others_shape) = (each for each in described if each is not None)
            if shape != others_shape:
                raise InputError(
                    f"{both} differ in the shape of {name} ({[*shape]}, {[*others_shape]}): {needs}"
                )
            if ("F" in kind) != ("F" in others_kind):
                raise InputError(f"{both} differ in the kind of {name} ({kind}, {others_kind}): {needs}")
        (ids, merges), (others_ids, others_merges) = self.tokens, other.tokens
        for token in (*ids, *others_ids):
            if ids.get(token) != others_ids.get(token):
                raise InputError(
                    f"the tokenizers of {both} differ ({token!r} is {ids.get(token)}, {others_ids.get(token)}): {needs}"
                )
        if merges != others_merges:
            raise InputError(f"the tokenizers of {both} differ in their merges: {needs}")


def _look(path: Path, look: Callable[[Any], T]) -> T:
    try:
        with safe_open(path, framework="pt") as opened:
            return look(opened)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"cannot read {path} ({' '.join(str(error).split())[:200]}): copy or export that model again"
        ) from error


def _files(path: Path) -> dict[str, str]:
    """The file of each tensor: of the single one where there is one, which transformers prefers, too."""
    single, index = path / SINGLE, path / INDEX
    if single.is_file():
        return _look(single, lambda opened: dict.fromkeys(opened.keys(), SINGLE))
    if not index.is_file():
        others = sorted(each.name for each in path.glob("*.bin"))
        raise InputError(
            f"{path} has no {SINGLE} and no {INDEX}{f', only {others[0]}' if others else ''}: load the model with "
            "transformers and save it with save_pretrained"
        )
    places = _read_json(index, "it must be an index of shards").get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"{index} has no weight_map: copy or export that model again")
    for file in dict.fromkeys(places.values()):
        # A name with a folder in it would be written elsewhere.
        if not isinstance(file, str) or Path(file).name != file or not (path / file).is_file():
            raise InputError(f"{index} names {file}, which is not in that folder: copy that model again")
    return places


def _read_json(path: Path, expected: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path} ({' '.join(str(error).split())}): {expected}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a mapping: {expected}")
    return content


def _text_value(config: dict[str, Any], key: str) -> Any:
    """Of a model of several kinds of input, the configuration of text lies one level deeper."""
    return config.get(key, (config.get("text_config") or {}).get(key))
