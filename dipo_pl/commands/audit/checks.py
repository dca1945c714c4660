"""Checks that the rows and models of an audit are those of its run: others would be judged under the run's name."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PreTrainedModel

from dipo_pl.attacks.subject import CALLED, RETAIN_ONLY, TARGET
from dipo_pl.commands.probes.finished_run import FinishedRun
from dipo_pl.data_modules.forget_retain import ForgetRetain
from dipo_pl.errors import InputError
from dipo_pl.models.pretrained import Pretrained
from dipo_pl.report.run import lookup
from dipo_pl.rows import Row
from dipo_pl.storage.fingerprints import rows_fingerprint, weights_fingerprint
from dipo_pl.storage.run_folder import RunFolder
from dipo_pl.storage.text import load_yaml, read_text


def check_rows(run: FinishedRun, data: ForgetRetain) -> None:
    """Refuse rows that are not those that the run was trained and measured on, where its manifest says which.

    Raises:
        InputError: there are such rows.
    """
    sets: list[tuple[str, tuple[str, ...], Sequence[Row]]]
    sets = [("forget rows", ("forget",), data.row_sets.forget)]
    sets += [
        (f"{each.name} rows measured", ("evaluation", each.name), each.rows) for each in data.evaluation_sets
    ]
    for called, keys, rows in sets:
        before = lookup(run.manifest, "data", *keys)
        if before is not None and before.get("fingerprint") != rows_fingerprint(rows):
            raise InputError(
                f"the {called} are not those of {run.path} ({before.get('rows')} rows then, {len(rows)} now): put the data "
                "back as they were for that run"
            )


def check_never_saw(run: FinishedRun, sources: Mapping[str, Pretrained]) -> None:
    """Refuse a retain-only model whose run was trained on the forget rows; warn where that run had other forget rows.

    Raises:
        InputError: it was trained on them.
    """
    if RETAIN_ONLY not in sources:
        return
    folder = _run_of(sources[RETAIN_ONLY])
    manifest = folder.read_manifest()
    ours, theirs = (lookup(each, "data", "forget", "fingerprint") for each in (run.manifest, manifest))
    if ours is None or theirs is None:
        return
    if ours != theirs:
        print(
            f"dipo-pl: warning: {folder.path} has other forget rows than {run.path}: make sure that its model never saw "
            "those of the latter",
            file=sys.stderr,
        )
    elif manifest.get("command") == "fit" and (train_on := _train_on(folder)) in ("all", "forget", "pairs"):
        raise InputError(
            f"the retain-only model {sources[RETAIN_ONLY].source} was trained with the forget rows of {run.path} "
            f"(data.train_on {train_on}): give one that never saw them by --against"
        )


def check_weights(
    run: FinishedRun, sources: Mapping[str, Pretrained], target_is_given: bool
) -> dict[str, str]:
    """Return the fingerprint of each model's weights, in float32.

    Args:
        run: the audited run.
        sources: where the models come from, by name.
        target_is_given: the user has named the target, so that it need not be what the run started from.

    Raises:
        InputError: the retain-only model is one of the others, or the target is no longer what the run started from.
    """
    found: dict[str, str] = {}
    for name, source in sources.items():
        model = source.load().float()
        found[name] = weights_fingerprint(model)
        if name == TARGET and not target_is_given and not _is_start(run, source, model):
            raise InputError(
                f"the target {source.source} is no longer the model that {run.path} started from: give that one by --target"
            )
    for name, weights in found.items():
        if name != RETAIN_ONLY and weights == found.get(RETAIN_ONLY):
            raise InputError(
                f"the retain-only model {sources[RETAIN_ONLY].source} is the {CALLED[name]} {sources[name].source}: their "
                "weights are the same; give a model that never saw the forget rows by --against"
            )
    return found


def _is_start(run: FinishedRun, source: Pretrained, model: PreTrainedModel) -> bool:
    """Return whether a model is the one that a run started from, as far as the run's manifest says."""
    policy: dict[str, Any] = run.manifest.get("policy") or {}
    if policy.get("frozen_weights"):
        # The fingerprint is of the trained weights alone, which the target does not have.
        ended, started = _run_of(source).read_manifest().get("ended"), run.manifest.get("started")
        return ended is None or started is None or ended <= started
    if (start := policy.get("weights_at_start")) is None:
        return True
    dtype = getattr(torch, str(policy.get("dtype")).removeprefix("torch."), torch.float32)
    same: bool = weights_fingerprint(model.to(dtype)) == start
    return same


def _run_of(source: Pretrained) -> RunFolder:
    """Return the folder of the run that has exported a model; that of no run where none has."""
    path = Path(source.path)
    return RunFolder(path.parent if path.name == "hf" else path)


def _train_on(run: RunFolder) -> str | None:
    with suppress(OSError, ValueError, yaml.YAMLError):
        found: str | None = lookup(load_yaml(read_text(run.config)), "data", "init_args", "train_on")
        return found
    return None
