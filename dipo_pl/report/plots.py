"""The plots of a report: what each shows, in a picture and in words, and what it takes to have it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from dipo_pl.errors import InputError
from dipo_pl.report import drawing
from dipo_pl.report.columns import AUC_SCALE, MEMBERSHIP_SCORES, column_of
from dipo_pl.report.compare import attacked_run, retain_only_of
from dipo_pl.report.contents import Report
from dipo_pl.report.drawing import Curve, Plot
from dipo_pl.report.run import FORGET, Kind, Run
from dipo_pl.report.sequences import TITLE, RequestSequence

_RATIO = "log_truth_ratio"
_RELEARNING = (
    "forget_probability",
    "forget_rouge_l_recall",
    "held_back_probability",
    "held_back_rouge_l_recall",
    "forget_quality_log10_p",
)
_STAGES = "requests processed (0: before the first)"


@dataclass(frozen=True)
class PlotGroup:
    """Plots of one subject; without any, `missing` says how to get them."""

    name: str
    title: str
    plots: tuple[Plot, ...]
    missing: str = ""


def all_plots(report: Report) -> list[PlotGroup]:
    """Return the plots of all subjects."""
    return [trajectory(report), truth_ratios(report), membership(report), relearning(report), continual(report)]


def trajectory(report: Report) -> PlotGroup:
    """Return the plot of Forget Quality against Model Utility, for evaluations whose utility has the same parts."""
    title, needed = "Forget Quality against Model Utility", {"forget_quality_log10_p", "model_utility"}
    curves, epochs = [], []
    for run in report.of_kind(Kind.UNLEARNED):
        parts = run.chosen.utility_parts
        known = [each for each in run.evaluations if each.utility_parts == parts and needed <= each.metrics.keys()]
        if known:
            utility, log10_p = ([each.metrics[key] for each in known] for key in sorted(needed, reverse=True))
            curves.append(Curve(run.name, utility, log10_p, _style(report, run)))
            epochs.append([each.epoch or 0.0 for each in known])
    if not curves:
        return PlotGroup("trajectory", title, (), _no_trajectory(report))
    utility_there = (each.metrics.get("model_utility") for each in report.results.rows if each.kind is Kind.RETAIN_ONLY)
    retain_only = next(utility_there, None)
    described = [
        f"{each.name} goes from log10 p {each.y[0]:.2f} and utility {each.x[0]:.3f} at epoch {known[0]:g} to "
        f"{each.y[-1]:.2f} and {each.x[-1]:.3f} at epoch {known[-1]:g}"
        for each, known in zip(curves, epochs, strict=True)
    ]
    if retain_only is not None:
        described.append(f"the retain-only model has utility {retain_only:.3f}")
    plot = Plot(
        "trajectory",
        f"{title}, by epoch",
        "One point for each evaluation, its epoch beside it. Up and to the right is better. In the shaded band the test "
        "does not tell the model from one that never saw the forget set (p > 0.05).",
        _sentence(described),
        "Model Utility (right: keeps more)",
        "log10 of Forget Quality (up: forgot better)",
        partial(drawing.draw_trajectory, curves=curves, epochs=epochs, retain_only=retain_only),
    )
    return PlotGroup("trajectory", title, (plot,))


def truth_ratios(report: Report) -> PlotGroup:
    """Return the plots of the distributions of truth ratios, one for each retain-only model."""
    by_reference: dict[str, tuple[Run, list[Run]]] = {}
    for run in report.runs:
        reference = retain_only_of(run, report.runs)
        if run.kind.competes and reference and run.scores(_RATIO) and reference.scores(_RATIO):
            by_reference.setdefault(reference.name, (reference, []))[1].append(run)
    plots = []
    for number, (reference, runs) in enumerate(by_reference.values(), start=1):
        expected = np.array(reference.scores(_RATIO)) / math.log(10)
        curves, gaps, described = [], [], []
        for run in runs:
            values = np.array(run.scores(_RATIO)) / math.log(10)
            place, one, other = largest_gap(values, expected)
            size = abs(one - other)
            curves.append(Curve(f"{run.name} (D = {size:.3f})", values, (), _style(report, run)))
            gaps.append((place, one, other))
            described.append(
                f"{run.name}: largest gap D = {size:.3f}, where {one:.0%} of its rows and {other:.0%} of the retain-only "
                "model's are at or below"
            )
        curves.append(Curve(_with_kind(reference), expected, (), None))
        plots.append(
            Plot(
                "truth_ratio" if number == 1 else f"truth_ratio_{number}",
                f"Truth ratios on the forget set, against {reference.name}",
                "Share of rows at or below each truth ratio (probability of wrong answers over that of the true one). "
                "Dotted: the largest gap to the retain-only model, D; Forget Quality is its p-value.",
                _sentence(described),
                "log10 of truth ratio R (left: true answer more probable)",
                "share of forget rows with R at most this",
                partial(drawing.draw_distributions, curves=curves, gaps=gaps),
            )
        )
    return PlotGroup(
        "truth-ratio",
        "Truth ratios",
        tuple(plots),
        "Needs a model and a retain-only model that were measured on forget rows with perturbed answers: add the "
        "retain-only run, or name it with --retain-only.",
    )


def membership(report: Report) -> PlotGroup:
    """Return the ROC curves of membership inference attacks, a plot for each score."""
    plots = []
    for score, title in MEMBERSHIP_SCORES.items():
        curves, described = [], []
        for run in report.runs:
            forget, holdout = run.scores(score, FORGET), run.scores(score, "holdout")
            if not run.probe and forget and holdout:
                x, y, auc = roc(forget, holdout)
                style = None if run.kind is Kind.RETAIN_ONLY else _style(report, run)
                curves.append(Curve(f"{run.name} (AUC = {auc:.3f})", x, y, style))
                described.append(f"{run.name}: AUC = {auc:.3f}")
        if curves:
            plots.append(
                Plot(
                    f"membership_{score}",
                    f"Membership inference by {title}",
                    f"For each threshold on the score ({title}): share of forget rows and of holdout rows that are taken "
                    f"for training data. AUC is the area below the curve ({AUC_SCALE}).",
                    _sentence(described),
                    "share of holdout rows taken for training data",
                    "share of forget rows taken for training data",
                    partial(drawing.draw_roc, curves=curves),
                )
            )
    missing = "Needs a holdout set, rows that no model has seen, among the evaluation sets (data.evaluate)."
    return PlotGroup("membership", "Membership inference", tuple(plots), missing)


def relearning(report: Report) -> PlotGroup:
    """Return the plots of relearning attacks, one for each metric that shows recovery."""
    plots = []
    for key in _RELEARNING:
        column, curves = column_of(key), []
        for probe in report.of_kind(Kind.RELEARNED):
            known = [each for each in probe.evaluations if key in each.metrics and each.step is not None]
            attacked = attacked_run(probe, report.runs)
            style = None if attacked and attacked.kind is Kind.RETAIN_ONLY else _style(report, attacked or probe)
            if len(known) > 1:
                steps, values = [each.step or 0 for each in known], [each.metrics[key] for each in known]
                curves.append(Curve(_with_kind(attacked) if attacked else probe.name, steps, values, style))
        if curves:
            plots.append(
                Plot(
                    f"relearning_{key}",
                    f"Relearning: {column.title}",
                    f"{column.title} ({column.meaning}) by steps of fine-tuning on a share of the forget set. A model that "
                    "forgot recovers no faster than the retain-only model.",
                    _sentence([f"{each.name}: {_ends(each)}" for each in curves]),
                    "steps of fine-tuning on a share of the forget set",
                    column.title,
                    partial(drawing.draw_curves, curves=curves),
                )
            )
    missing = "Relearning was not tested: run `dipo-pl relearn` on the unlearned and the retain-only run, and add the runs it writes."
    return PlotGroup("relearning", "Relearning", tuple(plots), missing)


def continual(report: Report) -> PlotGroup:
    """Return the plots of sequences of requests: utility of all, and the requests of each."""
    plots = _utility_plot(report.sequences, report.utility_metric)
    for number, each in enumerate(report.sequences, start=1):
        plots += _request_plot(each, "sequence_requests" if number == 1 else f"sequence_requests_{number}")
    missing = (
        "The stages have no metric of utility in common, and none of single requests."
        if report.sequences
        else "No run is a stage of a sequence: run `dipo-pl sequence`, and add its folder."
    )
    return PlotGroup("continual", TITLE, tuple(plots), missing)


def plots_of_sequence(sequence: RequestSequence, utility: str | None) -> list[Plot]:
    """Return the plots of utility and of the requests of one sequence, as far as they were measured.

    Raises:
        InputError: nothing was measured that can be drawn.
    """
    plots = [*_utility_plot([sequence], utility), *_request_plot(sequence, "sequence_requests")]
    if not plots:
        raise InputError(
            f"{sequence.name} cannot be drawn: its stages have no metric of utility in common and none of requests"
        )
    return plots


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


def _no_trajectory(report: Report) -> str:
    if not any(each.scores(_RATIO) for each in report.runs):
        return "Forget Quality compares truth ratios, and no forget row has perturbed answers (as in MUSE)."
    return (
        "No unlearning run has both metrics. Fit a retain-only model (a fine-tuning config with --config retain_only.yaml), "
        "and give its run folder to the unlearning run as --forget_quality.retain_result."
    )


def _utility_plot(sequences: Sequence[RequestSequence], utility: str | None) -> list[Plot]:
    if utility is None:
        return []
    column, curves = column_of(utility), []
    references: dict[tuple[tuple[int, ...], tuple[float, ...]], str] = {}
    for style, sequence in enumerate(sequences):
        known = [each for each in sequence.stages if utility in each.metrics]
        numbers, values = [each.number for each in known], [each.metrics[utility] for each in known]
        curves.append(Curve(sequence.title, numbers, values, style))
        if there := {each.number: each.retain_only[utility] for each in sequence.stages if utility in each.retain_only}:
            # Methods and modes may have been measured against the same models.
            references.setdefault((tuple(there), tuple(there.values())), sequence.title)
    for (stages, reference), title in references.items():
        name = "retain-only" if len(references) == 1 else f"retain-only of {title}"
        curves.append(Curve(name, stages, reference, None))
    return [
        Plot(
            "sequence_utility",
            f"{column.title} by stage",
            f"{column.title} ({column.meaning}) after each request. A method that keeps what it should stays at the value of "
            "stage 0, or near the retain-only model.",
            _sentence([f"{each.name}: {_by_stage(each)}" for each in curves]),
            _STAGES,
            f"{column.title} (up: keeps more)",
            partial(drawing.draw_curves, curves=curves, stages=True),
        )
    ]


def _request_plot(sequence: RequestSequence, name: str) -> list[Plot]:
    curves = [
        Curve(f"{place}: {sequence.requests[place - 1][-24:]}", list(known), list(known.values()), place - 1)
        for place, known in sequence.by_request().items()
    ]
    if not curves:
        return []
    title = column_of(f"forget_{sequence.request_metric}").title.replace("forget", "each request")
    return [
        Plot(
            name,
            f"Requests by stage: {sequence.title}",
            f"One line for each request: {sequence.request_meaning}. The ring marks the stage of the request, the dotted "
            "line what was before. A line that rises after its ring means that forgotten rows come back.",
            _sentence([f"{each.name}: {_by_stage(each)}" for each in curves]),
            _STAGES,
            f"{title} (down: forgot more)",
            partial(drawing.draw_requests, curves=curves),
        )
    ]


def _style(report: Report, run: Run) -> int:
    """Return the number of a run's style, the same in all plots."""
    names = [each.name for each in report.runs if not each.probe and each.kind is not Kind.RETAIN_ONLY]
    return names.index(run.name) if run.name in names else len(names)


def _with_kind(run: Run) -> str:
    named = run.kind is Kind.RETAIN_ONLY and run.name != run.kind
    return f"{run.name} (retain-only)" if named else run.name


def _ends(curve: Curve) -> str:
    return f"{curve.y[0]:.3f} at step {curve.x[0]:g}, {curve.y[-1]:.3f} at step {curve.x[-1]:g}"


def _by_stage(curve: Curve) -> str:
    return ", ".join(f"{value:.3f} at stage {stage:g}" for stage, value in zip(curve.x, curve.y, strict=True))


def _sentence(parts: Sequence[str]) -> str:
    return f"{'; '.join(parts)}."
