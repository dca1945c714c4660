"""Which pictures a report has, what each says in words, and why one may be missing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from dipo_pl.errors import InputError
from dipo_pl.report import figures
from dipo_pl.report.columns import COLUMNS, MEMBERSHIP_DIRECTION, MEMBERSHIP_SCORES, columns_of
from dipo_pl.report.contents import Report
from dipo_pl.report.curves import ks_gap, roc
from dipo_pl.report.runs import FORGET, Kind, Run, scores
from dipo_pl.report.sequences import TITLE, RequestSequence, shortened
from dipo_pl.storage.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HOW_TO_GET_PICTURES = "pictures need matplotlib: pip install 'dipo-pl[plots]'"


@dataclass(frozen=True)
class Picture:
    """A picture that can be drawn.

    Attributes:
        name: of its file.
        caption: how to read it.
        description: what it shows, for those who do not see it.
    """

    name: str
    title: str
    caption: str
    description: str
    draw: Callable[[], "Figure"]


@dataclass(frozen=True)
class Pictures:
    """Those of one subject; where there are none, `missing` says what it takes to have some."""

    name: str
    title: str
    pictures: tuple[Picture, ...]
    missing: str = ""


def all_pictures(report: Report) -> list[Pictures]:
    return [
        trajectory(report),
        _truth_ratios(report),
        _membership(report),
        _relearning(report),
        _sequences(report),
    ]


def drawable() -> bool:
    return find_spec("matplotlib") is not None


def write_png(picture: Picture, path: Path) -> None:
    """Raises: ImportError: matplotlib is not installed."""
    with figures.plain_text(), replacing(path) as temporary:
        picture.draw().savefig(temporary, dpi=150, format="png")


def trajectory(report: Report) -> Pictures:
    """Of every unlearning run, at the evaluations whose Model Utility is made of the same parts as the last one's."""
    known = []
    for run in report.runs:
        parts = run.chosen.utility_parts
        points = [
            each
            for each in run.points
            if each.utility_parts == parts
            and {"forget_quality_log10_p", "model_utility"} <= each.metrics.keys()
        ]
        if run.kind is Kind.UNLEARNED and points:
            known.append(
                figures.Trajectory(
                    run.name,
                    [each.epoch if each.epoch is not None else 0.0 for each in points],
                    [each.metrics["model_utility"] for each in points],
                    [each.metrics["forget_quality_log10_p"] for each in points],
                )
            )
    title = "Forget Quality against Model Utility"
    if not known and all(not _ratios(each) for each in report.runs):
        return Pictures(
            "trajectory", title, (),
            "Not here: Forget Quality compares truth ratios, and no forget row here has perturbed answers (as in MUSE).",
        )  # fmt: skip
    if not known:
        return Pictures(
            "trajectory", title, (),
            "No unlearning run here has both figures. Fit a retain-only model (a fine-tuning config with --config "
            "retain_only.yaml), and give its run folder as --forget_quality.retain_result to the unlearning run.",
        )  # fmt: skip
    utility = next(
        (row.values.get("model_utility") for row in report.table.rows if row.kind is Kind.RETAIN_ONLY), None
    )
    described = "; ".join(
        f"{each.name} goes from log10 p {each.log10_p[0]:.2f} and utility {each.utility[0]:.3f} at epoch "
        f"{each.epochs[0]:g} to {each.log10_p[-1]:.2f} and {each.utility[-1]:.3f} at epoch {each.epochs[-1]:g}"
        for each in known
    )
    picture = Picture(
        "trajectory", f"{title}, by epoch",
        "One point an evaluation, the epoch beside it. Up and to the right is better; in the shaded band the test "
        "cannot tell the model from one that never knew (p > 0.05).",
        described + ("" if utility is None else f"; the retain-only model has utility {utility:.3f}") + ".",
        partial(figures.trajectory, known, utility),
    )  # fmt: skip
    return Pictures("trajectory", title, (picture,))


def _truth_ratios(report: Report) -> Pictures:
    title = "Truth ratios"
    by_reference: dict[str, tuple[Run, list[Run]]] = {}
    for run in report.runs:
        reference = report.retain_only_of(run)
        if run.kind.competes and reference is not None and _ratios(run) and _ratios(reference):
            by_reference.setdefault(reference.name, (reference, []))[1].append(run)
    pictures = []
    for number, (reference, runs) in enumerate(by_reference.values()):
        retain_only = _ratios(reference)
        found = [(each.name, _ratios(each), ks_gap(_ratios(each), retain_only)) for each in runs]
        described = "; ".join(
            f"{name}: largest gap D = {gap.size:.3f}, where {gap.one:.0%} of its rows and {gap.other:.0%} of the "
            "retain-only model's lie at or below"
            for name, _, gap in found
        )
        pictures.append(
            Picture(
                f"truth_ratio{f'_{number + 1}' if number else ''}",
                f"Truth ratios on the forget set, against {reference.name}",
                "Share of rows at or below each truth ratio (wrong answers' probability to the true one's). Dotted: "
                "the largest gap to the retain-only model, D, which Forget Quality is the p-value of.",
                described + ".",
                partial(figures.truth_ratios, found, (_named(reference), retain_only)),
            )
        )
    if pictures:
        return Pictures("truth-ratio", title, tuple(pictures))
    return Pictures(
        "truth-ratio", title, (),
        "Not here: it takes a model and a retain-only model whose forget rows have perturbed answers. Add the "
        "retain-only run folder, or name it by --retain-only.",
    )  # fmt: skip


def _ratios(run: Run) -> list[float]:
    return scores(run.result.sets.get(FORGET), "log_truth_ratio") or []


def _membership(report: Report) -> Pictures:
    title = "Membership inference"
    pictures = []
    for name, shown in MEMBERSHIP_SCORES.items():
        curves = []
        for run in report.runs:
            forget, holdout = (scores(run.result.sets.get(each), name) for each in (FORGET, "holdout"))
            if not run.probe and forget and holdout:
                curves.append((run.name, roc(forget, holdout)))
        if curves:
            pictures.append(
                Picture(
                    f"membership_{name}", f"Membership inference by {shown}",
                    f"Of all thresholds on the score ({shown}), the share of forget and of holdout rows that it takes "
                    f"for seen. AUC is the area below: {MEMBERSHIP_DIRECTION}.",
                    "; ".join(f"{run}: AUC = {curve.auc:.3f}" for run, curve in curves) + ".",
                    partial(figures.membership, curves),
                )
            )  # fmt: skip
    if pictures:
        return Pictures("membership", title, tuple(pictures))
    return Pictures(
        "membership", title, (),
        "Not measured: it takes a holdout set, rows that no model has seen, among those that are evaluated "
        "(data.evaluate).",
    )  # fmt: skip


def _relearning(report: Report) -> Pictures:
    title = "Relearning"
    probes = report.probes(Kind.RELEARNED)
    pictures = []
    for key in (
        "forget_probability",
        "forget_rouge_l_recall",
        "held_back_probability",
        "held_back_rouge_l_recall",
        "forget_quality_log10_p",
    ):
        curves = []
        for probe in probes:
            points = [each for each in probe.points if key in each.metrics and each.step is not None]
            probed = report.probed_by(probe)
            curve = figures.Curve(
                _of_what(probe, probed),
                [each.step or 0 for each in points],
                [each.metrics[key] for each in points],
                probed is not None and probed.kind is Kind.RETAIN_ONLY,
            )
            if len(points) > 1:
                curves.append(curve)
        if curves:
            name = COLUMNS[key].title
            pictures.append(
                Picture(
                    f"relearning_{key}", f"Relearning: {name}",
                    f"{name} ({COLUMNS[key].meaning}) by steps of fine-tuning on a share of the forget set. A model that "
                    "forgot recovers no faster than the retain-only one.",
                    "; ".join(
                        f"{each.name}: {each.values[0]:.3f} at step {each.steps[0]:g}, {each.values[-1]:.3f} at step "
                        f"{each.steps[-1]:g}"
                        for each in curves
                    ) + ".",
                    partial(figures.relearning, curves, name),
                )
            )  # fmt: skip
    if pictures:
        return Pictures("relearning", title, tuple(pictures))
    return Pictures(
        "relearning", title, (),
        "Not measured: make a probe by `dipo-pl relearn` of the unlearned run, and one of the retain-only run, and "
        "add their folders.",
    )  # fmt: skip


def _sequences(report: Report) -> Pictures:
    pictures = []
    utility = report.utility_figure
    if utility is not None:
        (column,) = columns_of([utility])
        curves = _utility(report.sequences, utility)
        pictures.append(
            Picture(
                "sequence_utility", f"{column.title} by stage",
                f"{column.title} ({column.meaning}) after each request. Down the stages, a method that keeps what "
                "should be kept stays where it was at 0, or near the retain-only model.",
                "; ".join(f"{each.name}: {_by_stage(each.steps, each.values)}" for each in curves) + ".",
                partial(figures.utility_by_stage, curves, column.title),
            )
        )  # fmt: skip
    for number, sequence in enumerate(report.sequences):
        if requests := _requests(sequence):
            pictures.append(
                Picture(
                    f"sequence_requests{f'_{number + 1}' if number else ''}",
                    f"What each request forgot, by stage: {sequence.title}",
                    f"One line a request: {sequence.request_meaning}. A ring marks the stage at which the request was "
                    "made; dotted is what was before. A line that rises after its ring comes back.",
                    "; ".join(f"{each.name}: {_by_stage(each.stages, each.values)}" for each in requests) + ".",
                    partial(figures.requests_by_stage, requests, _request_axis(sequence)),
                )
            )  # fmt: skip
    if pictures:
        return Pictures("sequences", TITLE, tuple(pictures))
    return Pictures(
        "sequences", TITLE, (),
        "The stages have no figure in common that tells utility, and none of single requests."
        if report.sequences
        else "No run here is a stage of a sequence: make one by `dipo-pl sequence`, and add its folder.",
    )  # fmt: skip


def of_sequence(sequence: RequestSequence, utility: str | None) -> Picture:
    """Utility and requests of one sequence, side by side.

    Raises:
        InputError: nothing was measured that can be drawn.
    """
    requests = _requests(sequence)
    curves = [] if utility is None else _utility([sequence], utility)
    if not curves and not requests:
        raise InputError(
            f"{sequence.name} cannot be drawn: its stages have no utility in common and no figures of requests"
        )
    return Picture(
        "sequence", sequence.title, "", "",
        partial(
            figures.sequence, curves, "" if utility is None else _title(utility), requests, _request_axis(sequence)
        ),
    )  # fmt: skip


def _utility(sequences: Sequence[RequestSequence], utility: str) -> list[figures.Curve]:
    curves = []
    models: dict[tuple[tuple[int, ...], tuple[float, ...]], str] = {}
    for sequence in sequences:
        known = [each for each in sequence.stages if utility in each.figures]
        curves.append(
            figures.Curve(
                sequence.title,
                [each.number for each in known],
                [each.figures[utility] for each in known],
            )
        )
        against = [each for each in sequence.stages if utility in each.retain_only]
        if against:
            values = tuple(each.retain_only[utility] for each in against)
            # Methods and modes are measured against the same models.
            models.setdefault((tuple(each.number for each in against), values), sequence.title)
    for (stages, values), title in models.items():
        name = "retain-only" if len(models) == 1 else f"retain-only of {title}"
        curves.append(figures.Curve(name, stages, values, retain_only=True))
    return curves


def _requests(sequence: RequestSequence) -> list[figures.Request]:
    return [
        figures.Request(
            f"{place}: {shortened(sequence.requests[place - 1])}", place, list(known), list(known.values())
        )
        for place, known in sequence.matrix().items()
    ]


def _request_axis(sequence: RequestSequence) -> str:
    return _title(f"forget_{sequence.request_figure}").replace("forget", "each request")


def _title(figure: str) -> str:
    (column,) = columns_of([figure])
    return column.title


def _by_stage(stages: Sequence[float], values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3f} at stage {stage:g}" for stage, value in zip(stages, values, strict=True))


def _of_what(probe: Run, probed: Run | None) -> str:
    return probe.name if probed is None else _named(probed)


def _named(run: Run) -> str:
    """Its name, and that it is the retain-only model where the name does not say so."""
    return f"{run.name} (retain-only)" if run.kind is Kind.RETAIN_ONLY and run.name != run.kind else run.name
