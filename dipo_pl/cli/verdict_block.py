"""What is printed at the end of an unlearning run: the verdict, its reasons, and the commands that come next."""

import shlex
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

import yaml

from dipo_pl.callbacks.advice import gentler, stronger
from dipo_pl.evaluation.verdict import RANKS, TITLES
from dipo_pl.evaluation.verdict_rules import MEASURES
from dipo_pl.storage.run_folder import RunFolder
from dipo_pl.storage.text import load_yaml

# Exit code where the verdict is less than --require asks for.
LESS_THAN_REQUIRED = 3


def verdict_block(run: RunFolder) -> str:
    """Return the verdict of a run as lines for the terminal; empty if it has none, such as a fine-tuning run."""
    manifest = run.read_manifest()
    if (name := manifest.get("verdict")) not in RANKS:
        return ""
    reasons: list[dict[str, Any]] = manifest.get("verdict_reasons") or []
    width = shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else 1000
    step = manifest.get("verdict_step")
    lines = [f"verdict: {TITLES[name]} ({'' if step is None else f'step {step}, '}{run.path})"]
    for each in reasons:
        if not _is_untested(each):
            status = "warning" if each["rule"] == "warnings" else each["status"].replace("_", " ")
            lines += _line(status, each["text"], width)
    untested = [each["rule"].replace("_", " ") for each in reasons if _is_untested(each)]
    if untested:
        lines += _line("not tested", ", ".join(untested), width)
    lines += [line for each in _next(run, name, reasons) for line in _line("next", each, width)]
    return "\n".join(lines)


def _next(run: RunFolder, name: str, reasons: Sequence[dict[str, Any]]) -> list[str]:
    """Return what to do next: the command or the option that helps most, and the report."""
    path = shlex.quote(str(run.path))
    status = {each["rule"]: each["status"] for each in reasons}
    lost = any(status.get(each) in ("missed", "partly") for each in ("collapse", "utility", "fluency"))
    stays = any(status.get(each) in ("missed", "partly") for each in MEASURES)
    advice = []
    if name == "forgotten" or (name == "partly" and not lost and not stays):
        advice = [f"dipo-pl audit {path} (whether the rows are gone or only hidden)"]
    elif lost:
        advice = [f"{gentler(_learning_rate(run))} and another --name"]
    elif stays:
        advice = [f"{stronger(_learning_rate(run))} and another --name"]
    elif name == "cannot_tell" and any(
        each["rule"] == "membership" and _is_untested(each) for each in reasons
    ):
        advice = [
            "give --data.holdout FILE, rows of the same form that no model has seen, and another --name"
        ]
    return [*advice, f"dipo-pl report {path}"]


def _learning_rate(run: RunFolder) -> float | None:
    """Return the learning rate of a run's config; None if it has none that can be read."""
    try:
        config = load_yaml(run.config.read_text(encoding="utf-8"))
        return float(config["model"]["init_args"]["optimizer"]["init_args"]["lr"])
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return None


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
