"""Results that are no run folders, in a report: evaluation files and published logs."""

import pytest

from dipo_pl.metrics.result import EvaluationResult


def test_an_evaluation_file_stands_beside_runs(content, runs):
    evaluation = runs / "unlearned-0" / "evaluation" / "step-000003.json"
    row = content(runs / "retain-only", evaluation)["rows"][1]
    assert (row["name"], row["kind"]) == ("step-000003", "evaluation file")
    assert row["metrics"] == EvaluationResult.read(evaluation).metrics


def test_published_results_of_tofu(content):
    rows = content("llama2-7b_full", "--retain-only", "llama2-7b_retain90")["rows"]
    by_name = {each["name"]: each["metrics"] for each in rows}
    assert by_name["llama2-7b_full"]["model_utility"] == pytest.approx(0.622677, abs=1e-6)
    assert by_name["llama2-7b_full"]["forget_quality"] == pytest.approx(1.834066e-21, rel=1e-6)
    assert "forget_quality" not in by_name["llama2-7b_retain90"]
