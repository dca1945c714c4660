"""Combination of two model folders, tensor by tensor, into a new one."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from dipo_pl.commands.arithmetic.model_folder import ModelFolder
from dipo_pl.errors import InputError
from dipo_pl.storage.files import replacing_folder, write_text
from dipo_pl.version import __version__

NOTE = "dipo_pl.json"

Rule = Callable[[Tensor, Tensor], Tensor]


def combine(models: Mapping[str, str], output: str, rule: Rule, command: str, **settings: float) -> None:
    """Write a model folder whose tensors are rule(first, second), complete or not at all.

    The rule is computed in float32, or in float64 if either tensor is float64. The result has the dtype of the first
    model, which also gives shards, config, tokenizer and all tensors that are not floating-point. dipo_pl.json records
    the command and the SHA-256 of each model's tensors by name, dtype, shape and bytes, independent of their shards.

    Args:
        models: two folders by role, such as `target` and `reinforced`.
        output: folder to write; it must be absent or empty.
        rule: function of a tensor of the first model and that of the same name of the second.
        command: name of the command, for messages and the record, as the parameters of the rule in `settings`.
        **settings: see `command`.


    Raises:
        InputError: a model cannot be read, the two do not match or are the same, the output exists, or the result is
            not finite.
        WriteError: the output cannot be written.
    """
    first, second = (ModelFolder.read(given) for given in models.values())
    target = Path(output).resolve()
    if target in {each.resolve() for each in (*map(Path, models.values()), first.path, second.path)}:
        raise InputError(f"--output {output} is one of the models: give another folder")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(f"--output {output} exists already: give another folder, or remove it")
    first.refuse_unlike(second)
    digests: list[dict[str, str]] = [{}, {}, {}]
    with (
        replacing_folder(target) as temporary,
        tqdm(total=len(first.files), unit="tensor", desc=command, disable=None) as bar,
    ):
        for file, names in first.shards.items():
            shard = {}
            for name in names:
                tensors = first.tensor(name), second.tensor(name)
                shard[name] = _combined(name, tensors, (first, second), rule, settings)
                for digest, tensor in zip(digests, (*tensors, shard[name]), strict=True):
                    digest[name] = _digest(tensor)
                bar.update()
            save_file(shard, temporary / file, metadata={"format": "pt"})
        of_first, of_second, of_result = map(_fingerprint, digests)
        if of_first == of_second:
            both = f"{first.path} and {second.path}"
            raise InputError(f"{both} have equal weights: {command} needs two different models")
        for each in first.companions:
            (temporary / each).parent.mkdir(exist_ok=True)
            shutil.copyfile(first.path / each, temporary / each)
        note: dict[str, Any] = {"command": command, **settings}
        for (role, given), weights in zip(models.items(), (of_first, of_second), strict=True):
            note[role] = {"path": given, "weights": weights}
        note |= {"weights": of_result, "dipo_pl": __version__}
        write_text(temporary / NOTE, json.dumps(note, indent=2) + "\n")
    evaluate = f"dipo-pl validate --config ... --model.policy.path {output}"
    print(f"the model is in {output}: evaluate it with {evaluate}")


def _combined(
    name: str,
    tensors: tuple[Tensor, Tensor],
    folders: tuple[ModelFolder, ModelFolder],
    rule: Rule,
    settings: Mapping[str, float],
) -> Tensor:
    first, second = tensors
    if not first.is_floating_point():
        return first
    precision = torch.float64 if torch.float64 in (first.dtype, second.dtype) else torch.float32
    result = rule(first.to(precision), second.to(precision)).to(first.dtype).contiguous()
    if not result.isfinite().all():
        for tensor, folder in zip(tensors, folders, strict=True):
            if not tensor.isfinite().all():
                raise InputError(f"{name} of {folder.path} is not finite: give another model")
        stated = ", ".join(f"{key} {value:g}" for key, value in settings.items())
        raise InputError(f"{name} is not finite in {first.dtype} with {stated}: give a smaller one")
    return result


def _digest(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _fingerprint(digests: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()
