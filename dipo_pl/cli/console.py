"""Output on the terminal: one-line errors, tracebacks in files, and libraries' messages left out."""

import logging
import os
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from dipo_pl.errors import InputError, WriteError, causes
from dipo_pl.storage.files import write_text
from dipo_pl.storage.secrets import redact

LONGEST_LINE = 600
SILENCED_WARNINGS = (
    ".*does not have many workers.*",
    ".*num_workers.*",
    # The data module logs where it resumes.
    "You're resuming from a checkpoint that ended before",
    "LightningCLI's args parameter.*",
    "Checkpoint directory .* exists and is not empty",
    ".*isinstance.treespec, LeafSpec.*",
)
# Their modules log by themselves; those that log on the first rank alone share two loggers with everyone who does.
LIGHTNING_LOGGERS = (
    "lightning.fabric.utilities",
    "lightning.fabric.strategies",
    "lightning.pytorch.accelerators",
    "lightning.pytorch.trainer",
)
RANK_ZERO_LOGGERS = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero")
# Folders of Lightning whose messages somebody has asked for by an option.
ASKED_FOR = ("callbacks", "profilers", "tuner")


def say(kind: str, text: str) -> None:
    """Print a line of `dipo-pl` on standard error; `kind` is error, failed or warning."""
    print(f"dipo-pl: {kind}: {text}", file=sys.stderr, flush=True)


def near(name: str, known: Sequence[str], least: float = 0.6) -> str:
    """Return ` (did you mean ...?)` if one of the known names is like the given one, by a ratio of `least`, else nothing."""
    matches = get_close_matches(name, known, n=1, cutoff=least)
    return f" (did you mean {matches[0]}?)" if matches else ""


def cause_of(error: Exception) -> tuple[str, bool]:
    """Return one line on what happened, and whether it is an InputError."""
    # jsonargparse wraps what a constructor raises into its own message.
    stated = next((each for each in causes(error) if isinstance(each, InputError)), None)
    line = redact(" ".join(str(stated or error).split())) or type(error).__name__
    return (line if len(line) <= LONGEST_LINE else line[:LONGEST_LINE] + "..."), stated is not None


def report_error(error: Exception, debug: bool) -> int:
    """Print an error as one line, with `debug` after its traceback; return 2 for an InputError, 1 for another."""
    if debug:
        traceback.print_exception(error)
    cause, is_input = cause_of(error)
    say("error" if is_input else "failed", cause if is_input else f"{type(error).__name__}: {cause}")
    return 2 if is_input else 1


def write_traceback(error: Exception, log: Path) -> Path | None:
    """Write a traceback to `log`, or if that fails to the temporary folder; return the path that was written."""
    text = redact("".join(traceback.format_exception(error)))
    with suppress(OSError, WriteError):
        write_text(log, text)
        return log
    with suppress(OSError):
        # mkstemp: with a fixed name, somebody else could have placed a link there.
        descriptor, path = tempfile.mkstemp(prefix="dipo-pl-error-", suffix=".log")
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        return Path(path)
    return None


def quieten() -> None:
    """Silence libraries' messages that do not concern the run, and print each warning on one line."""
    warnings.showwarning = _show_warning
    threading.excepthook = _thread_failed
    for message in SILENCED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|torch")
    # transformers imports torchao wherever it is installed, which then logs what it lacks on this machine.
    for name in ("huggingface_hub", "torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Lightning tells what it is doing; what went wrong it raises, or warns of.
    for name in LIGHTNING_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in RANK_ZERO_LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO)
        logging.getLogger(name).addFilter(_concerns_the_run)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # That is read when transformers is imported, which another program may have done already.
    if (imported := sys.modules.get("transformers.utils.logging")) is not None:
        imported.disable_progress_bar()


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    say("warning", " ".join(str(message).split()))


def _concerns_the_run(record: logging.LogRecord) -> bool:
    """Return whether a message is not one in which Lightning tells, unasked, what it is doing."""
    package, source = sys.modules.get("lightning"), Path(record.pathname)
    if record.levelno > logging.INFO or package is None:
        return True
    folder = Path(str(package.__file__)).parent
    return not source.is_relative_to(folder) or any(each in source.parts for each in ASKED_FOR)


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    # TensorBoard's writer thread raises a write error that the main thread raises too.
    is_writer = type(failed.thread).__module__.startswith("tensorboard.")
    if not (is_writer and isinstance(failed.exc_value, OSError)):
        threading.__excepthook__(failed)
