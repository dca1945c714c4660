"""Writes the model that a rule makes, tensor by tensor, out of two model folders."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from dipo_pl.commands.arithmetic.model_folder import ModelFolder
from dipo_pl.errors import InputError
from dipo_pl.storage.files import replacing, write_text
from dipo_pl.version import __version__

NOTE = "dipo_pl.json"

Rule = Callable[[Tensor, Tensor], Tensor]


def combine(models: Mapping[str, str], output: str, rule: Rule, command: str, **settings: float) -> None:
    """Writes a model folder whose tensors are rule(first, second), whole or not at all.

    Computed in float32 (where either tensor is float64, in that) and written in the dtype of the first model,
    which also gives the shards, the config, the tokenizer and all tensors that are not of floating point.
    dipo_pl.json in it tells what was done: SHA-256 of each model's tensors by name, dtype, shape and bytes,
    whatever their shards.

    Args:
        models: two folders by what they are called, such as `target` and `reinforced`.
        command, settings: for that note.

    Raises:
        InputError: a model cannot be had, the two are not alike or are the same, the output is not free, or the
            result is not finite.
    """
    first, second = (ModelFolder.read(given) for given in models.values())
    target = Path(output).resolve()
    for given, folder in zip(models.values(), (first, second), strict=True):
        if target in (Path(given).resolve(), folder.path.resolve()):
            raise InputError(f"--output {output} is one of the models: give another folder")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(f"--output {output} is there already: give another folder, or remove it")
    first.refuse_unlike(second)
    digests: list[dict[str, str]] = [{}, {}, {}]
    with _new_folder(target) as temporary:
        bar = tqdm(total=len(first.files), unit="tensor", desc=command, disable=None)
        for file, names in first.shards.items():
            shard = {}
            for name in names:
                tensors = first.tensor(name), second.tensor(name)
                shard[name] = _combined(name, *tensors, rule, (first, second), settings)
                for digest, tensor in zip(digests, (*tensors, shard[name]), strict=True):
                    digest[name] = _digest(tensor)
                bar.update()
            with replacing(temporary / file) as part:
                save_file(shard, part, metadata={"format": "pt"})
        bar.close()
        of_first, of_second, made = map(_fingerprint, digests)
        if of_first == of_second:
            raise InputError(
                f"{first.path} and {second.path} hold the same weights: {command} needs two models"
            )
        for each in first.companions:
            with replacing(temporary / each.name) as part:
                shutil.copyfile(each, part)
        sources = zip(models.items(), (of_first, of_second), strict=True)
        note: dict[str, Any] = {"command": command, **settings}
        note |= {role: {"path": given, "weights": weights} for (role, given), weights in sources}
        note |= {"weights": made, "dipo_pl": __version__}
        write_text(temporary / NOTE, json.dumps(note, indent=2) + "\n")
    print(
        f"the model is in {output}: measure it with dipo-pl validate --config ... --model.policy.path {output}"
    )


def _combined(
    name: str,
    first: Tensor,
    second: Tensor,
    rule: Rule,
    folders: tuple[ModelFolder, ModelFolder],
    settings: Mapping[str, float],
) -> Tensor:
    if not first.is_floating_point():
        return first
    precision = torch.float64 if torch.float64 in (first.dtype, second.dtype) else torch.float32
    result = rule(first.to(precision), second.to(precision)).to(first.dtype).contiguous()
    if not _finite(result):
        for tensor, folder in zip((first, second), folders, strict=True):
            if not _finite(tensor):
                raise InputError(f"{name} of {folder.path} is not finite: give another model")
        made_by = ", ".join(f"{key} {value:g}" for key, value in settings.items())
        raise InputError(f"{name} is not finite in {first.dtype} with {made_by}: give a smaller one")
    return result


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _digest(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _fingerprint(digests: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """Gives a temporary folder beside; on success it becomes `path`, which holds nothing, else nothing stays."""
    missing = [each for each in path.parents if not each.exists()]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for each in missing:
            with suppress(OSError):
                each.rmdir()
        raise
