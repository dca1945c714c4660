"""The best are marked, and only where there is a choice and it is known what is better."""

import pytest

from dipo_pl.report.columns import COLUMNS, columns_of
from dipo_pl.report.contents import read_report
from dipo_pl.report.runs import Kind
from dipo_pl.report.table import Row, make_table


def best(key, *models):
    """Names of the rows that are marked, of (kind, value)."""
    rows = [
        Row(str(index), kind, {} if value is None else {key: value}, None)
        for index, (kind, value) in enumerate(models)
    ]
    table = make_table(rows)
    return [int(rows[index].name) for index in range(len(rows)) if table.is_best(index, COLUMNS[key])]


U, R, B = Kind.UNLEARNED, Kind.RETAIN_ONLY, Kind.BEFORE


@pytest.mark.parametrize(
    ("key", "models", "expected"),
    [
        ("model_utility", [(U, 0.5), (U, 0.7)], [1]),
        ("model_utility", [(B, 0.9), (R, 0.8), (U, 0.5), (U, 0.7)], [3]),
        ("model_utility", [(U, 0.70001), (U, 0.70004), (U, 0.6)], [0, 1]),
        ("model_utility", [(U, None), (U, 0.7)], []),
        ("model_utility", [(Kind.QUANTIZED, 0.9), (U, 0.5), (U, 0.7)], [2]),
        ("forget_quality_ks_statistic", [(U, 0.5), (U, 0.7)], [0]),
        ("priv_leak", [(U, -5.0), (U, 3.0), (U, 40.0)], [1]),
        ("forget_probability", [(R, 0.2), (U, 0.05), (U, 0.3), (U, 0.9)], [2]),
        ("forget_probability", [(U, 0.05), (U, 0.3)], []),
        ("membership_min_k_auc", [(U, 0.3), (U, 0.6)], [1]),
        ("membership_min_k_auc", [(R, 0.25), (U, 0.3), (U, 0.6)], [1]),
        ("forget_distinct_2", [(R, 0.25), (U, 0.3), (U, 0.6)], []),
        ("holdout_probability", [(R, 0.25), (U, 0.3), (U, 0.6)], []),
    ],
)  # fmt: skip
def test_best(key, models, expected):
    assert best(key, *models) == expected


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("model_utility", 0.6227, "0.623"), ("model_utility", 0.0, "0.000"), ("model_utility", None, ""),
        ("forget_quality", 1.834e-21, "1.8e-21"), ("forget_quality", 0.0005, "0.001"),
        ("forget_quality_log10_p", -20.7366, "-20.74"), ("forget_quality_log10_p", -0.0, "0.00"),
        ("priv_leak", -1e-12, "-1.0e-12"), ("priv_leak", 37.44, "37.4"),
    ],
)  # fmt: skip
def test_figures_as_people_read_them(key, value, text):
    assert COLUMNS[key].text(value) == text


def test_a_figure_that_is_not_known_comes_last_and_is_not_marked():
    columns = columns_of(["mine", "priv_leak", "model_utility"])
    assert [each.key for each in columns] == ["model_utility", "priv_leak", "mine"]
    assert make_table([Row(each, U, {"mine": 1.0}, None) for each in "ab"]).best == frozenset()


def test_rows_of_real_runs(all_runs):
    report = read_report(all_runs)
    assert [(row.name, row.kind.value) for row in report.table.rows] == [
        ("target", "target"),
        ("retain-only", "retain-only"),
        ("retain-only-relearn", "relearned"),
        ("unlearned-0", "unlearned"),
        ("unlearned-0-relearn", "relearned"),
        ("unlearned-1", "unlearned"),
    ]
    by_name = {row.name: row for row in report.table.rows}
    assert "forget_quality" not in by_name["retain-only"].values
    assert any("no Forget Quality of its own" in each for each in by_name["retain-only"].notes)
    # The target was measured without a retain-only result, and the run that starts from it with one.
    started = next(each for each in report.runs if each.name == "unlearned-0").points[0].metrics
    for key in ("forget_quality", "forget_quality_log10_p", "forget_quality_ks_statistic"):
        assert by_name["target"].values[key] == pytest.approx(started[key])


def test_without_its_own_run_the_target_is_the_model_before_unlearning(runs):
    report = read_report([runs / "unlearned-0", runs / "unlearned-1", runs / "retain-only"])
    assert [row.name for row in report.table.rows] == [
        "retain-only",
        "before unlearning",
        "unlearned-0",
        "unlearned-1",
    ]
    before = report.table.rows[1]
    assert before.kind is Kind.BEFORE
    assert before.values == before.run.points[0].metrics
