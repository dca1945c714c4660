"""Rows of the results, and which values are marked as best: only with a choice, and if it is known what is better."""

import pytest

from dipo_pl.report.contents import read_report
from dipo_pl.report.results import Row, make_results
from dipo_pl.report.run import Kind

U, R, B = Kind.UNLEARNING, Kind.RETAIN_ONLY, Kind.BEFORE


@pytest.mark.parametrize(("key", "models", "expected"), [
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
    ("mine", [(R, 0.25), (U, 0.3), (U, 0.6)], []),
])  # fmt: skip
def test_best(key, models, expected):
    """Models are given as (kind, value)."""
    rows = [Row("", kind, {} if value is None else {key: value}, None) for kind, value in models]
    results = make_results(rows)
    assert sorted(results.best) == [(index, key) for index in expected]
    assert sorted(results.table().best) == [(index, 3) for index in expected]


def test_rows_of_real_runs(report):
    assert [(row.name, row.kind.value) for row in report.results.rows] == [
        ("target", "target"),
        ("retain-only", "retain-only"),
        ("retain-only-relearn", "relearned"),
        ("unlearned-0", "unlearning"),
        ("unlearned-0-relearn", "relearned"),
        ("unlearned-1", "unlearning"),
    ]
    by_name = {row.name: row for row in report.results.rows}
    assert "forget_quality" not in by_name["retain-only"].metrics
    assert any("no Forget Quality of its own" in each for each in by_name["retain-only"].notes)
    # The target was measured without a retain-only result, and the run that starts from it with one.
    started = next(each for each in report.runs if each.name == "unlearned-0").evaluations[0].metrics
    for key in ("forget_quality", "forget_quality_log10_p", "forget_quality_ks_statistic"):
        assert by_name["target"].metrics[key] == pytest.approx(started[key])


def test_without_its_own_run_the_target_is_the_model_before_unlearning(runs):
    report = read_report([runs / "unlearned-0", runs / "unlearned-1", runs / "retain-only"])
    names = [row.name for row in report.results.rows]
    assert names == ["retain-only", "before unlearning", "unlearned-0", "unlearned-1"]
    before = report.results.rows[1]
    assert before.kind is Kind.BEFORE
    assert before.metrics == before.run.evaluations[0].metrics
