"""Cards that answer what one asks of an unlearned model first: is it forgotten, at what cost, how sure, reversibly?"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from dipo_pl.report.columns import column_of
from dipo_pl.report.compare import attacked_run, retain_only_of
from dipo_pl.report.contents import Report
from dipo_pl.report.plots import style_of
from dipo_pl.report.run import FORGET, Kind, Run
from dipo_pl.report.verdicts import Reason, Verdict

_COST = ("utility", "fluency", "collapse")
_ATTACKS = {"relearning": Kind.RELEARNED, "quantization": Kind.QUANTIZED}
_FORGOTTEN = ("forget_probability", "forget_rouge_l_recall", "forget_knowledge", "forget_verbatim")
_KEPT = ("model_utility", "retain_knowledge", "retain_probability", "retain_rouge_l_recall")
_SHOWN = 2  # metrics of each question, where no rule says more
# What brings forgotten rows back shows in these.
_RECOVERY = ("held_back_probability", "forget_probability", "forget_knowledge", "forget_verbatim")


class Point(NamedTuple):
    """Part of an answer; `status` is that of a rule, `warning`, or empty."""

    status: str
    text: str


@dataclass(frozen=True)
class Card:
    """Answers about one unlearning run.

    Attributes:
        style: number of the run's color in plots.
        answers: points by question.
        not_tested: what its rules could not test.
    """

    run: Run
    verdict: Verdict
    style: int | None
    answers: dict[str, list[Point]]
    not_tested: list[str]


def cards(report: Report) -> list[Card]:
    """Return a card for each unlearning run."""
    return [_card(report, row.run, row.verdict) for row in report.results.rows if row.verdict is not None]


def _card(report: Report, run: Run, verdict: Verdict) -> Card:
    of_rules = [each for each in verdict.reasons if each.status != "not_tested"]
    forgotten = [each for each in of_rules if each.rule not in (*_COST, *_ATTACKS, "warnings")]
    cost = [each for each in of_rules if each.rule in _COST]
    reference = retain_only_of(run, report.runs)
    attacks = _attacks(report, run)
    answers = {
        "Was it forgotten?": _points(forgotten) or _changes(run, reference, _FORGOTTEN),
        "What did it cost?": _points(cost) or _changes(run, reference, _KEPT),
        "How sure is this?": _certainty(report, run, verdict, reference),
        "Is it reversible?": [
            *_points(each for each in verdict.reasons if each.rule in _ATTACKS and each.rule not in attacks),
            *attacks.values(),
        ]
        or [Point("not_tested", "Neither relearning nor quantization was tried.")],
    }
    untested = [each for each in verdict.of_status("not_tested") if each.rule not in _ATTACKS]
    return Card(run, verdict, style_of(report, run), answers, [each.text for each in _points(untested)])


def _points(reasons: Iterable[Reason]) -> list[Point]:
    return [Point(each.status, _sentence(each.text)) for each in reasons]


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def _changes(run: Run, reference: Run | None, keys: Iterable[str]) -> list[Point]:
    """Return how metrics changed, where no rule tells."""
    before = run.evaluations[0].metrics if run.first is not None else {}
    expected = reference.metrics if reference else {}
    found = []
    for key in [key for key in keys if key in run.metrics][:_SHOWN]:
        column = column_of(key)
        start = f"{column.text(before[key])} \N{RIGHTWARDS ARROW} " if key in before else ""
        end = f" (retain-only model {column.text(expected[key])})" if key in expected else ""
        found.append(Point("", f"{column.title} {start}{column.text(run.metrics[key])}{end}."))
    return found or [Point("not_tested", "Not measured.")]


def _certainty(report: Report, run: Run, verdict: Verdict, reference: Run | None) -> list[Point]:
    evidence = dict.fromkeys(each.evidence for each in verdict.reasons if each.status != "not_tested")
    known = [each for each in evidence if each not in ("none", "this run", "target")]
    against = known or ([reference.name] if reference and not verdict.reasons else [])
    rows = run.result.sets[FORGET].rows if FORGET in run.result.sets else []
    group = next((each for each in report.seeds if run.name in [one.name for one in each.runs]), None)
    found = [
        Point("", f"Compared with: {', '.join(against)}.")
        if against
        else Point("not_tested", "Nothing tells what a model says that never saw the rows.")
    ]
    seeds = f"{len(group.seeds)} seeds (see Several seeds)" if group else "one seed"
    found.append(Point("", f"{len(rows)} forget rows, {seeds}."))
    return found + [
        Point("warning", _sentence(each.text)) for each in verdict.reasons if each.rule == "warnings"
    ]


def _attacks(report: Report, run: Run) -> dict[str, Point]:
    """Return what each attack on a run did, the strongest of its kind."""
    found: dict[str, Point] = {}
    for rule, kind in _ATTACKS.items():
        for probe in report.of_kind(kind):
            if attacked_run(probe, report.runs) is not run:
                continue
            key = next((each for each in _RECOVERY if each in probe.metrics), None)
            if key is None:
                continue
            start = probe.evaluations[0].metrics if kind is Kind.RELEARNED else run.metrics
            column = column_of(key)
            before = f"{column.text(start[key])} \N{RIGHTWARDS ARROW} " if key in start else ""
            how = (
                f"{probe.chosen.step} steps of relearning"
                if probe.bits == 0
                else f"rounding to {probe.rounding}"
            )
            found[rule] = Point("", f"After {how}: {column.title} {before}{column.text(probe.metrics[key])}.")
    return found
