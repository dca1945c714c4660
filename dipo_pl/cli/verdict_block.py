"""What is printed at the end of an unlearning run: the verdict, its reasons, and the commands that come next."""

import shlex
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from dipo_pl.evaluation.verdict import RANKS, TITLES
from dipo_pl.storage.run_folder import RunFolder

# Exit code where the verdict is less than --require asks for.
LESS_THAN_REQUIRED = 3


def verdict_block(run: RunFolder) -> str:
    """Return the verdict of a run as lines for the terminal; empty if it has none, such as a fine-tuning run."""
    manifest = run.read_manifest()
    if (name := manifest.get("verdict")) not in RANKS:
        return ""
    reasons: list[dict[str, Any]] = manifest.get("verdict_reasons") or []
    width = shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else 1000
    lines = [f"verdict: {TITLES[name]} (step {manifest.get('verdict_step')}, {run.path})"]
    for each in reasons:
        if not _is_untested(each):
            status = "warning" if each["rule"] == "warnings" else each["status"].replace("_", " ")
            lines += _line(status, each["text"], width)
    untested = [each["rule"].replace("_", " ") for each in reasons if _is_untested(each)]
    if untested:
        lines += _line("not tested", ", ".join(untested), width)
    lines += [f"  next: {each}" for each in next_commands(run)]
    return "\n".join(lines)


def next_commands(run: RunFolder) -> list[str]:
    """Return the commands that come next."""
    path = shlex.quote(str(run.path))
    return [f"dipo-pl report {path}"]


def is_less(run: RunFolder, required: str | None) -> bool:
    """Return whether the verdict of a run is less than what is required; a run without one has less than any."""
    return required is not None and RANKS.get(run.read_manifest().get("verdict", ""), -1) < RANKS[required]


def _is_untested(reason: dict[str, Any]) -> bool:
    return bool(reason["status"] == "not_tested" and reason["evidence"] == "none")


def _line(status: str, text: str, width: int) -> Sequence[str]:
    return textwrap.wrap(
        text,
        max(width, 40),
        initial_indent=f"  {status:<11}",
        subsequent_indent=" " * 13,
        break_on_hyphens=False,
    )
