"""The plots of a report, by subject: the values that each shows, also in words for people who do not see them."""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from dipo_pl.report import drawing
from dipo_pl.report.audits import MODELS, Audit
from dipo_pl.report.columns import MEMBERSHIP_SCORES, column_of
from dipo_pl.report.compare import attacked_run, retain_only_of
from dipo_pl.report.contents import Report
from dipo_pl.report.drawing import Curve, Plot
from dipo_pl.report.run import FORGET, Kind, Run
from dipo_pl.report.sequences import RequestSequence

_RATIO = "log_truth_ratio"
_RELEARNING = (
    *(f"{rows}_{part}" for rows in ("forget", "held_back") for part in ("probability", "rouge_l_recall")),
    "forget_quality_log10_p",
)
# What an audit's curves are drawn against.
_AGAINST = {"k": "answers sampled", "layer": "layer", "step": "steps of fine-tuning"}
_STAGES = "requests processed (0: before the first)"


def all_plots(report: Report) -> dict[str, list[Plot]]:
    """Return the plots of each subject; a subject that was not measured has none."""
    return {
        "trajectory": trajectory(report),
        "truth_ratio": truth_ratios(report),
        "membership": membership(report),
        "relearning": relearning(report),
        "audits": audit_curves(report.audits),
        "utility_by_stage": utility_by_stage(report.sequences, report.utility_metric),
        "requests_by_stage": [
            plot
            for number, each in enumerate(report.sequences, start=1)
            for plot in requests_by_stage(each, number)
        ],
    }


def trajectory(report: Report) -> list[Plot]:
    """Return Forget Quality against Model Utility, at the evaluations whose utility has the parts of the last one."""
    needed = {"forget_quality_log10_p", "model_utility"}
    curves, epochs, described = [], [], []
    for run in report.of_kind(Kind.UNLEARNING):
        parts = run.chosen.utility_parts
        known = [
            each for each in run.evaluations if each.utility_parts == parts and needed <= each.metrics.keys()
        ]
        if known:
            x = [each.metrics["model_utility"] for each in known]
            y = [each.metrics["forget_quality_log10_p"] for each in known]
            epochs.append([each.epoch or 0.0 for each in known])
            curves.append(Curve(run.name, x, y, style_of(report, run)))
            described.append(
                f"{run.name} goes from log10 p {y[0]:.2f} and utility {x[0]:.3f} at epoch {epochs[-1][0]:g} to {y[-1]:.2f} "
                f"and {x[-1]:.3f} at epoch {epochs[-1][-1]:g}"
            )
    if not curves:
        return []
    references = (row for row in report.results.rows if row.kind is Kind.RETAIN_ONLY)
    utility = next((row.metrics.get("model_utility") for row in references), None)
    if utility is not None:
        described.append(f"the retain-only model has utility {utility:.3f}")
    return [
        Plot(
            "trajectory",
            "Forget Quality against Model Utility, by epoch",
            described,
            "Model Utility (right: keeps more)",
            "log10 of Forget Quality (up: forgot better)",
            partial(drawing.draw_trajectory, curves=curves, epochs=epochs, retain_only=utility),
        )
    ]


def truth_ratios(report: Report) -> list[Plot]:
    """Return the distributions of truth ratios on the forget set, one plot for each retain-only model."""
    by_reference: dict[str, tuple[Run, list[Run]]] = {}
    for run in report.runs:
        reference = retain_only_of(run, report.runs)
        if run.kind.competes and reference and run.scores(_RATIO) and reference.scores(_RATIO):
            by_reference.setdefault(reference.name, (reference, []))[1].append(run)
    plots = []
    for number, (reference, runs) in enumerate(by_reference.values(), start=1):
        expected = _log10(reference.scores(_RATIO))
        curves, gaps, described = [], [], []
        for run in runs:
            values = _log10(run.scores(_RATIO))
            place, one, other = largest_gap(values, expected)
            gaps.append((place, one, other))
            size = f"D = {abs(one - other):.3f}"
            curves.append(Curve(f"{run.name} ({size})", values, (), style_of(report, run)))
            described.append(
                f"{run.name}: largest gap {size}, where {one:.0%} of its rows and {other:.0%} of the retain-only model's "
                "are at or below"
            )
        curves.append(Curve(_with_kind(reference), expected, (), None))
        plots.append(
            Plot(
                "truth_ratio" if number == 1 else f"truth_ratio_{number}",
                f"Truth ratios on the forget set, against {reference.name}",
                described,
                "log10 of truth ratio R (left: true answer more probable)",
                "share of forget rows with R at most this",
                partial(drawing.draw_distributions, curves=curves, gaps=gaps),
            )
        )
    return plots


def membership(report: Report) -> list[Plot]:
    """Return the ROC curves of membership inference attacks, a plot for each score."""
    plots = []
    # The attack that PrivLeak uses comes first.
    for score, title in sorted(MEMBERSHIP_SCORES.items(), key=lambda each: each[0] != "min_k"):
        curves = []
        for run in report.runs:
            forget, holdout = run.scores(score, FORGET), run.scores(score, "holdout")
            if not run.probe and forget and holdout:
                x, y, auc = roc(forget, holdout)
                curves.append(Curve(f"{run.name} (AUC = {auc:.3f})", x, y, style_of(report, run)))
        if curves:
            plots.append(
                Plot(
                    f"membership_{score}",
                    f"Membership inference by {title}",
                    [each.name for each in curves],
                    "holdout rows taken for training data",
                    "forget rows taken for training data",
                    partial(drawing.draw_roc, curves=curves),
                )
            )
    return plots


def relearning(report: Report) -> list[Plot]:
    """Return the recovery of metrics during relearning attacks, a plot for each metric."""
    plots = []
    for key in _RELEARNING:
        curves = []
        for probe in report.of_kind(Kind.RELEARNED):
            attacked = attacked_run(probe, report.runs)
            name = _with_kind(attacked) if attacked else probe.name
            known = {each.step or 0: each.metrics[key] for each in probe.evaluations if key in each.metrics}
            if len(known) > 1:
                curves.append(Curve(name, list(known), list(known.values()), style_of(report, probe)))
        if curves:
            title = column_of(key).title
            plots.append(
                Plot(
                    f"relearning_{key}",
                    f"Relearning: {title}",
                    [
                        f"{each.name}: {each.y[0]:.3f} at step {each.x[0]:g}, {each.y[-1]:.3f} at step {each.x[-1]:g}"
                        for each in curves
                    ],
                    "steps of fine-tuning on a share of the forget set",
                    title,
                    partial(
                        drawing.draw_curves, curves=curves, whole_steps=True, least_span=_least_span(key)
                    ),
                )
            )
    return plots


def audit_curves(audits: Sequence[Audit]) -> list[Plot]:
    """Return the curves of each audit's attacks: by tries, layers or steps, one for each model."""
    plots = []
    for number, audit in enumerate(audits, start=1):
        for attack in audit.attacks:
            against = next((each for each in _AGAINST if each in attack.series), None)
            if against is None:
                continue
            x = attack.series[against]
            named = {"gone": "gone from the unlearned model's layers"} | MODELS
            curves = [
                Curve(named[key], x, y, None if key == "retain_only" else style)
                for style, (key, y) in enumerate(attack.series.items())
                if key in named and len(y) == len(x) > 1
            ]
            if curves:
                plots.append(
                    Plot(
                        f"audit_{number}_{attack.name}",
                        f"{attack.name}: {audit.name}",
                        [
                            f"{each.name}: {each.y[0]:.3f} at {each.x[0]:g}, {each.y[-1]:.3f} at {each.x[-1]:g}"
                            for each in curves
                        ],
                        _AGAINST[against],
                        "share gone (up: forgot more)" if "gone" in attack.series else "up: knows more",
                        partial(drawing.draw_curves, curves=curves, whole_steps=True, least_span=0.2),
                    )
                )
    return plots


def utility_by_stage(sequences: Sequence[RequestSequence], utility: str | None) -> list[Plot]:
    """Return the utility of all stages of all sequences, and of the retain-only models."""
    if utility is None:
        return []
    title, curves = column_of(utility).title, []
    references: dict[str, Curve] = {}
    for style, each in enumerate(sequences):
        known = {stage.number: stage.metrics[utility] for stage in each.stages if utility in stage.metrics}
        curves.append(Curve(each.title, list(known), list(known.values()), style))
        there = {
            stage.number: stage.retain_only[utility] for stage in each.stages if utility in stage.retain_only
        }
        if there:
            # Methods and modes are often measured against the same models, which are drawn once.
            curve = Curve(f"retain-only of {each.title}", list(there), list(there.values()), None)
            references.setdefault(repr(there), curve)
    if len(references) == 1:
        references = {key: Curve("retain-only", each.x, each.y, None) for key, each in references.items()}
    curves += references.values()
    return [
        Plot(
            "sequence_utility",
            f"{title} by stage",
            [_by_stage(each) for each in curves],
            _STAGES,
            f"{title} (up: keeps more)",
            partial(drawing.draw_curves, curves=curves, whole_steps=True, least_span=_least_span(utility)),
        )
    ]


def requests_by_stage(sequence: RequestSequence, number: int = 1) -> list[Plot]:
    """Return the metric of each request of a sequence at all stages, if it was measured.

    Args:
        sequence: the sequence.
        number: its place among the sequences of the report.
    """
    curves = [
        Curve(f"{place}: {sequence.requests[place - 1][-24:]}", list(known), list(known.values()), place - 1)
        for place, known in sequence.by_request().items()
    ]
    title = column_of(f"forget_{sequence.request_metric}").title.replace("forget", "each request")
    plot = Plot(
        "sequence_requests" if number == 1 else f"sequence_requests_{number}",
        f"Requests by stage: {sequence.title}",
        [_by_stage(each) for each in curves],
        _STAGES,
        f"{title} (down: forgot more)",
        partial(drawing.draw_requests, curves=curves),
    )
    return [plot] if curves else []


def largest_gap(one: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """Return where two cumulative distributions are furthest apart, and the two shares there."""
    from scipy.stats import ks_2samp  # takes a second to import

    place = float(ks_2samp(one, other, method="asymp").statistic_location)
    return place, float(np.mean(np.asarray(one) <= place)), float(np.mean(np.asarray(other) <= place))


def roc(forget: Sequence[float], holdout: Sequence[float]) -> tuple[list[float], list[float], float]:
    """Return false and true positive rates at all thresholds on a membership score, and the area below them.

    A row is taken for training data if its score is at most the threshold. The area is P(holdout score > forget
    score) + P(equal) / 2.
    """
    thresholds = np.unique([*forget, *holdout])
    true, false = (
        np.concatenate([[0.0], np.searchsorted(np.sort(each), thresholds, side="right") / len(each)])
        for each in (forget, holdout)
    )
    return false.tolist(), true.tolist(), float(np.trapezoid(true, false))


def _log10(natural: Sequence[float]) -> list[float]:
    return [each / math.log(10) for each in natural]


def style_of(report: Report, run: Run) -> int | None:
    """Return the number of a run's style, the same in all plots; None for the retain-only model."""
    run = attacked_run(run, report.runs) or run if run.probe else run
    if run.kind is Kind.RETAIN_ONLY:
        return None
    # Models to choose between come first, since the first colors differ most.
    order = sorted(report.runs, key=lambda each: (bool(each.probe), not each.kind.competes))
    return [each.name for each in order if each.kind is not Kind.RETAIN_ONLY].index(run.name)


def _least_span(key: str) -> float:
    """Return what the axis of a metric spans at least, so that noise does not fill it."""
    return 2.0 if key.endswith("log10_p") else 0.2


def _with_kind(run: Run) -> str:
    named = run.kind is Kind.RETAIN_ONLY and run.name != run.kind
    return f"{run.name} (retain-only)" if named else run.name


def _by_stage(curve: Curve) -> str:
    values = (f"{value:.3f} at stage {stage:g}" for stage, value in zip(curve.x, curve.y, strict=True))
    return f"{curve.name}: {', '.join(values)}"
