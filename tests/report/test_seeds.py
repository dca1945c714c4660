"""Seeds of one config are found, and their bootstrap interval is that of all resamples."""

import itertools
import math

import pytest
import yaml

from dipo_pl.report.contents import read_report
from dipo_pl.report.runs import read_run
from dipo_pl.report.seeds import bootstrap_mean, seed_groups


@pytest.mark.parametrize("values", [[0.1, 0.5], [1.0, 2.0, 9.0], [3.0, 1.0, 4.0, 1.5, 9.2]])
def test_interval_holds_the_middle_95_percent_of_all_resamples(values):
    means = sorted(sum(each) / len(values) for each in itertools.product(values, repeat=len(values)))
    mean, low, high = bootstrap_mean(values)
    assert mean == pytest.approx(sum(values) / len(values))
    # 10,000 of the resamples are drawn, so shares are sure to about half a percent.
    assert sum(each <= low for each in means) / len(means) >= 0.015 or low == pytest.approx(means[0])
    assert sum(each < low - 1e-9 for each in means) / len(means) <= 0.035
    assert sum(each >= high for each in means) / len(means) >= 0.015 or high == pytest.approx(means[-1])
    assert sum(each > high + 1e-9 for each in means) / len(means) <= 0.035


def test_interval_is_the_same_each_time():
    values = [math.sqrt(each) for each in (2, 3, 5, 7, 11, 13, 17, 19)]
    assert bootstrap_mean(values) == bootstrap_mean(values)


def test_runs_that_differ_in_seed_and_name_are_one_group(runs):
    report = read_report([runs / each for each in ("target", "retain-only", "unlearned-0", "unlearned-1")])
    (group,) = report.seeds
    assert (group.name, group.seeds) == ("unlearned", (0, 1))
    figures = [run.metrics["model_utility"] for run in group.runs]
    assert group.figures["model_utility"].mean == pytest.approx(sum(figures) / 2)
    assert group.figures["model_utility"].low == pytest.approx(min(figures))


def test_another_setting_is_another_group(copied):
    paths = [copied("unlearned-0"), copied("unlearned-1")]
    config = yaml.safe_load((paths[1] / "config.yaml").read_text())
    config["model"]["init_args"]["forget_loss"]["init_args"]["beta"] = 0.07
    (paths[1] / "config.yaml").write_text(yaml.safe_dump(config))
    assert seed_groups([read_run(each) for each in paths]) == []


def test_a_seed_counts_once(copied):
    paths = [copied("unlearned-0"), copied("unlearned-0", "again")]
    assert seed_groups([read_run(each) for each in paths]) == []


def test_a_figure_that_one_seed_lacks_has_no_mean(copied):
    paths = [copied("unlearned-0"), copied("unlearned-1")]
    lines = (paths[1] / "metrics.jsonl").read_text()
    (paths[1] / "metrics.jsonl").write_text(lines.replace('"forget_rouge_l_recall"', '"something_else"'))
    (group,) = seed_groups([read_run(each) for each in paths])
    assert "forget_probability" in group.figures
    assert "forget_rouge_l_recall" not in group.figures


def test_probes_are_no_seeds_of_each_other(copied):
    another = copied("unlearned-0-relearn", "another", manifest=lambda each: each.update(seed=1))
    assert seed_groups([read_run(each) for each in (copied("unlearned-0-relearn"), another)]) == []
