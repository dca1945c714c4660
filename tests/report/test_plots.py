"""The values that plots show, against loops over all pairs and thresholds, and against the table."""

import random

import pytest
from sample_runs import alter, lines_of, plot, plot_names

from dipo_pl.evaluation.published_results import published
from dipo_pl.report.contents import read_report
from dipo_pl.report.drawing import Curve, Plot, draw_requests, inline_svg
from dipo_pl.report.plots import largest_gap, roc


def samples(seed, ties):
    draw = random.Random(seed)
    return [
        [draw.choice(range(6)) / 2 if ties else draw.gauss(shift, 1) for _ in range(n)]
        for shift, n in ((0, 17), (1, 12))
    ]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_gap_and_roc(seed, ties):
    one, other = samples(seed, ties)
    place, a, b = largest_gap(one, other)
    shares = {
        at: [sum(v <= at for v in each) / len(each) for each in (one, other)] for at in sorted({*one, *other})
    }
    assert [a, b] == pytest.approx(shares[place])
    assert abs(a - b) == pytest.approx(max(abs(x - y) for x, y in shares.values()))
    false, true, auc = roc(one, other)
    pairs = [(h > f) + (h == f) / 2 for f in one for h in other]
    assert auc == pytest.approx(sum(pairs) / len(pairs))
    assert list(zip(true, false, strict=True)) == [(0, 0), *map(pytest.approx, map(tuple, shares.values()))]


def test_gap_of_the_published_logs_is_their_statistic():
    full, retain = (
        published(f"llama2-7b_{name}").sets["forget"].values("log_truth_ratio")
        for name in ("full", "retain90")
    )
    _, one, other = largest_gap(full, retain)
    assert abs(one - other) == pytest.approx(0.396667, abs=1e-6)


def test_a_forget_set_with_lower_scores_throughout_is_fully_recognized():
    assert [roc(*each)[2] for each in (([1.0, 2.0], [3.0]), ([3.0], [1.0, 2.0]), ([1.0, 1.0], [1.0]))] == [
        1.0, 0.0, 0.5,
    ]  # fmt: skip


def test_plots_show_the_values_of_the_table(report):
    by_name = {each.name: each for each in report.runs}
    size = by_name["unlearned-0"].metrics["forget_quality_ks_statistic"]
    assert f"unlearned-0: largest gap D = {size:.3f}," in plot(report, "truth_ratio").description
    distributions = lines_of(plot(report, "truth_ratio").figure().axes[0])
    assert next(iter(distributions)) == f"unlearned-0 (D = {size:.3f})"
    assert list(distributions)[2] == "retain-only"
    names = {each for each in plot_names(report) if each.startswith("membership")}
    assert names >= {f"membership_{each}" for each in ("loss", "zlib", "min_k")}
    for name in names:
        for run in report.runs:
            if f"{name}_auc" in run.metrics and not run.probe:
                assert (
                    f"{run.name} (AUC = {run.metrics[f'{name}_auc']:.3f})" in plot(report, name).description
                )
    found = lines_of(plot(report, "relearning_forget_probability").figure().axes[0])
    attack = by_name["unlearned-0-relearn"]
    assert found.keys() == {"retain-only", "unlearned-0"}
    assert found["unlearned-0"] == [
        [each.step, each.metrics["forget_probability"]] for each in attack.evaluations
    ]


def test_trajectory_has_only_points_whose_utility_has_the_same_parts(copied):
    run = copied("unlearned-0")

    def change(record):
        if record["step"] == 3:
            del record["retain_rouge_l_recall"]

    alter(run / "metrics.jsonl", change)
    report = read_report([run])
    (unlearned,) = (each for each in report.runs if each.name == "unlearned-0")
    points = [
        [each.metrics["model_utility"], each.metrics["forget_quality_log10_p"]]
        for each in unlearned.evaluations
    ]
    found = lines_of(plot(report, "trajectory").figure().axes[0])
    assert found["unlearned-0"] == [points[0], points[2]]
    assert found["retain-only (p = 1)"][0][1] == 0


def test_a_run_has_one_color_in_all_plots(report):
    colors = {
        line.get_label().split(" (")[0]: line.get_color()
        for name in ("truth_ratio", "trajectory", "membership_loss", "relearning_forget_probability")
        for line in plot(report, name).figure().axes[0].get_lines()
        if line.get_label().startswith("unlearned")
    }
    for name in ("truth_ratio", "trajectory", "membership_loss", "relearning_forget_probability"):
        for line in plot(report, name).figure().axes[0].get_lines():
            label = line.get_label().split(" (")[0]
            assert line.get_color() == colors.get(label, line.get_color())
    assert len({colors["unlearned-0"], colors["unlearned-1"]}) == 2


def test_a_dollar_or_an_underscore_in_a_name_is_drawn_as_it_is(copied):
    report = read_report(
        [copied("unlearned-0", "_a$x_{1"), copied("unlearned-1", r"b$\frac$"), copied("retain-only")]
    )
    for name in plot_names(report):
        drawn = plot(report, name)
        (legend,) = drawn.figure().subfigs[0].legends
        names = " ".join(each.get_text() for each in legend.get_texts())
        assert "_a$x_{1" in names
        assert r"b$\frac$" in names
        assert inline_svg(drawn).startswith("<svg")


@pytest.mark.parametrize("count", [3, 20])
def test_a_long_legend_leaves_the_axes_their_room(count):
    curves = [Curve(f"{n}: author_{n}", [n, 20], [0.1, 0.2], n - 1) for n in range(1, count + 1)]
    drawn = Plot("requests", "", [], "stage", "P", lambda axes: draw_requests(axes, curves)).figure()
    drawn.draw_without_rendering()
    assert drawn.axes[0].get_window_extent().height > 0.5 * 4.4 * drawn.dpi
