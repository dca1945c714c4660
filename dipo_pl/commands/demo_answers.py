"""Answers of the models of `dipo-pl demo-smollm2` before and after, and how fast they relearn, read from run folders."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from dipo_pl.evaluation.verdict import TITLES
from dipo_pl.evaluation.verdict_rules import Thresholds
from dipo_pl.metrics.result import EvaluationResult, SetResult
from dipo_pl.report.table import Table, terminal_width
from dipo_pl.storage.run_folder import RunFolder

TARGET = "demo_people_target"
RETAIN_ONLY = f"{TARGET}-retain_only"
UNLEARNED = "demo_people"
RELEARNED = (f"{UNLEARNED}-relearn", f"{RETAIN_ONLY}-relearn")

# Title of each evaluation set, and places of the rows whose answers are shown. The places are fixed, whatever the models
# answer; different questions are among them.
SETS = {
    "forget": ("people to forget", (0, 3, 6)),
    "retain": ("people to keep", (0, 7)),
    "holdout": ("people no model saw", ()),
    "world_facts": ("general knowledge", (0, 1, 2)),
}


def answers(folder: Path) -> str:
    """Return the answers of all models side by side, a table of all rows, the verdict, and what relearning brings back.

    Args:
        folder: folder of the finished runs of the demo.
    """
    unlearned = RunFolder(folder / UNLEARNED)
    models = {
        "as it came": _result(folder / TARGET, 0),
        "before": _result(folder / UNLEARNED, 0),
        "after": _result(folder / UNLEARNED),
        "never saw": _result(folder / RETAIN_ONLY),
    }
    width = terminal_width() or 100
    parts = [_shown(name, models, width) for name, (_, places) in SETS.items() if places]
    parts.append(_table(models).to_text(width))
    verdict = str(unlearned.read_manifest().get("verdict"))
    parts.append(f"verdict: {TITLES.get(verdict, verdict)} (its reasons: {unlearned.manifest})")
    parts.append(_relearned(folder, models, width))
    return "\n\n".join(each.rstrip() for each in parts)


def _result(run: Path, step: int | None = None) -> EvaluationResult:
    """Return the evaluation of a run at a step, by default the one that counts for it."""
    folder = RunFolder(run)
    at = folder.final_step if step is None else step
    return EvaluationResult.read(folder.evaluation_file(at or 0))


def _shown(name: str, models: Mapping[str, EvaluationResult], width: int) -> str:
    title, places = SETS[name]
    lines = [f"== {title.capitalize()}"]
    for place in places:
        rows = {model: result.sets[name].rows[place] for model, result in models.items()}
        texts = {"question": rows["before"]["question"], "truth": rows["before"]["answers"][0]}
        texts |= {model: row["generation"] for model, row in rows.items()}
        lines += ["", *(line for label, text in texts.items() for line in _wrapped(label, text, width))]
    return "\n".join(lines)


def _wrapped(name: str, text: str, width: int) -> Sequence[str]:
    first, rest = f"  {name:<12}", " " * 14
    return textwrap.wrap(
        " ".join(text.split()) or "-", max(width, 40), initial_indent=first, subsequent_indent=rest
    )


def _table(models: Mapping[str, EvaluationResult]) -> Table:
    rows = [
        [title, *(_cell(result.sets[name]) for result in models.values())]
        for name, (title, _) in SETS.items()
    ]
    caption = "How many answers have every word of the true one, and the mean probability per token of the true ones."
    return Table("All rows", caption, ["rows", *models], rows)


def _cell(found: SetResult) -> str:
    said = sum(each["rouge_l_recall"] == 1 for each in found.rows)
    return f"{said} of {len(found.rows)}, {found.metrics['probability']:.3f}"


def _relearned(folder: Path, models: Mapping[str, EvaluationResult], width: int) -> str:
    """Return the curves of relearning, and in words whether the facts that were not taught again come back."""
    curves = [RunFolder(folder / name).read_metrics() for name in RELEARNED]
    names = [f"{part}_probability" for part in ("relearned", "held_back")]
    rows = [
        [str(records[0]["step"]), *(f"{each[name]:.3f}" for each in records for name in names)]
        for records in zip(*curves, strict=True)
    ]
    head = ["steps", "after: taught", "after: others", "never saw: taught", "never saw: others"]
    taught = "P of the facts of forgotten people that are taught again, and of the others, which are not."
    hidden, unknown = ([each[names[1]] for each in records] for records in curves)
    before = models["before"].metrics["forget_probability"]
    stays_away = before - hidden[-1] >= Thresholds().removed * (before - unknown[-1])
    verdict = (
        "They stay away: relearning brings back hardly more than a model learns that never saw them."
        if stays_away
        else "They come back at least in part: DiPO hid them in this model and did not remove them."
    )
    words = (
        f"P of the facts that were not taught again goes from {hidden[0]:.3f} to {hidden[-1]:.3f} in the model that forgot "
        f"them, and from {unknown[0]:.3f} to {unknown[-1]:.3f} in the one that never saw them; before, P of all was "
        f"{before:.3f}. {verdict}"
    )
    return f"{Table('Relearning', taught, head, rows).to_text(width)}\n{textwrap.fill(words, width)}"
