"""The models of an audit: the run's own, its target, and one that never knew."""

import sys
from pathlib import Path
from typing import Any

from dipo_pl.attacks.subject import CALLED, RETAIN_ONLY, TARGET, UNLEARNED
from dipo_pl.commands.probes.finished_run import FinishedRun
from dipo_pl.errors import InputError
from dipo_pl.models.companions import model_folder
from dipo_pl.models.gguf_path import weight_files
from dipo_pl.models.pretrained import Pretrained
from dipo_pl.models.source import ModelSource
from dipo_pl.storage.fingerprints import tokenizer_fingerprint
from dipo_pl.storage.run_folder import RunFolder

# Arguments of a pretrained model that say how it is trained, not what it is.
OF_TRAINING = ("adapter", "gradient_checkpointing", "compile")


def sources_of(run: FinishedRun, target: str | None, against: str | None) -> dict[str, Pretrained]:
    """Return where the models come from, by name; a model that is not known is left out.

    Args:
        run: the unlearned model's.
        target: run folder, model folder or hub id; None takes what the run started from, if it is a pretrained model.
        against: run folder, model folder or hub id of the retain-only model; None takes the run whose result the run was
            compared with, if its model is there.

    Raises:
        InputError: a given run or model cannot be used.
    """
    found = {UNLEARNED: Pretrained(**run.policy)}
    started = run.config["model"]["init_args"]["policy"]
    if target is not None:
        found[TARGET] = _named(target, "--target")
    elif started["class_path"].split(".")[-1] == "Pretrained" and run.manifest.get("command") == "fit":
        own = {key: value for key, value in started["init_args"].items() if value is not None}
        known = Pretrained(**{key: own[key] for key in own if key not in OF_TRAINING})
        try:
            known.configuration()
        except InputError as error:
            print(f"dipo-pl: warning: no target, give one by --target: {error}", file=sys.stderr)
        else:
            found[TARGET] = known
    compared = (run.config.get("forget_quality") or {}).get("retain_result")
    if against is not None:
        found[RETAIN_ONLY] = _named(against, "--against")
    elif isinstance(compared, str) and (RunFolder(compared).hf / "config.json").is_file():
        found[RETAIN_ONLY] = Pretrained(str(RunFolder(compared).hf))
    return found


def check_tokenizers(sources: dict[str, ModelSource]) -> None:
    """Refuse models that split texts differently, whose values could not be compared.

    Raises:
        InputError: there are such models, or a tokenizer cannot be loaded.
    """
    ours = tokenizer_fingerprint(sources[UNLEARNED].tokenizer())
    for name, source in sources.items():
        if tokenizer_fingerprint(source.tokenizer()) != ours:
            raise InputError(
                f"the {CALLED[name]} {source.source} has another tokenizer than the {CALLED[UNLEARNED]} "
                f"{sources[UNLEARNED].source}: give a model of the same family"
            )


def identity_of(source: Any) -> list[Any]:
    """Return what tells a model from others, without loading it.

    This is its path, of a hub id the commit in the cache, how it is loaded, and its files' sizes and times.
    """
    files = weight_files(source.path, source.gguf_file)
    folder = model_folder(source.path, source.revision, source.gguf_file or "config.json")
    return [
        source.path,
        source.revision,
        # A folder of the hub's cache is named after the commit.
        None if folder is None else folder.name,
        source.gguf_file,
        source.dtype,
        source.quantization,
        source.tokenizer_source,
        *([each.name, each.stat().st_size, each.stat().st_mtime_ns] for each in files),
    ]


def _named(given: str, option: str) -> Pretrained:
    if (Path(given) / "manifest.json").is_file():
        try:
            return Pretrained(**FinishedRun.read(given).policy)
        except InputError as error:
            raise InputError(f"{option}: {error}") from None
    source = Pretrained(given)
    try:
        source.configuration()
    except InputError as error:
        raise InputError(f"{option}: {error}") from None
    return source
