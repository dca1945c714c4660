"""What a person at the terminal sees of libraries' chatter and of errors."""

import logging
import os
import sys
import tempfile
import threading
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from dipo_pl.errors import InputError, WriteError, causes
from dipo_pl.storage.files import write_text
from dipo_pl.storage.secrets import redact

LONGEST_LINE = 600


def cause_of(error: Exception) -> tuple[str, bool]:
    """One line that says what happened, and whether it is what the user gave."""
    # jsonargparse wraps what a constructor raises into its own account of it.
    stated = next((each for each in causes(error) if isinstance(each, InputError)), None)
    line = redact(" ".join(str(stated or error).split())) or type(error).__name__
    return (line if len(line) <= LONGEST_LINE else line[:LONGEST_LINE] + "..."), stated is not None


def write_traceback(error: Exception, log: Path) -> Path | None:
    """Writes to `log`, or where that cannot be, to the temporary folder; returns where."""
    text = redact("".join(traceback.format_exception(error)))
    with suppress(OSError, WriteError):
        write_text(log, text)
        return log
    with suppress(OSError):
        # Of a name that nobody else can have laid there.
        descriptor, path = tempfile.mkstemp(prefix="dipo-pl-error-", suffix=".log")
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        return Path(path)
    return None


def quieten() -> None:
    """Leaves out what the libraries say of themselves rather than of the run; warnings take one line."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"dipo-pl: warning: {' '.join(str(message).split())}", file=sys.stderr)

    warnings.showwarning = show
    threading.excepthook = _leave_to_the_main_thread
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    class _NoTips(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            return "💡 Tip" not in record.getMessage() and "litlogger" not in record.getMessage().lower()

    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_NoTips())
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*num_workers.*")
    # The data module says itself where it goes on.
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before")
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter.*")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|torch")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _leave_to_the_main_thread(failed: threading.ExceptHookArgs) -> None:
    """TensorBoard's writer raises there again what it could not write."""
    if not (
        type(failed.thread).__module__.startswith("tensorboard.") and isinstance(failed.exc_value, OSError)
    ):
        threading.__excepthook__(failed)
