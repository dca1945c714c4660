"""Repetitions under different seeds are found, and their interval is that of all resamples."""

import itertools
from dataclasses import replace

import pytest
import yaml

from dipo_pl.report.intervals import bootstrap_mean
from dipo_pl.report.read import read_run
from dipo_pl.report.seeds import seed_groups


@pytest.mark.parametrize("values", [[0.1, 0.5], [0.3, 0.3], [1.0, 2.0, 9.0], [3.0, 1.0, 4.0, 1.5, 9.2]])
def test_interval_is_the_middle_95_percent_of_all_resamples_each_time(values):
    means = sorted(sum(each) / len(values) for each in itertools.product(values, repeat=len(values)))
    mean, low, high = interval = bootstrap_mean(values)
    assert mean == pytest.approx(sum(values) / len(values))
    # 10,000 of the resamples are drawn, so shares are known to about half a percent.
    assert sum(each <= low + 1e-9 for each in means) / len(means) >= 0.015
    assert sum(each < low - 1e-9 for each in means) / len(means) <= 0.035
    assert sum(each >= high - 1e-9 for each in means) / len(means) >= 0.015
    assert sum(each > high + 1e-9 for each in means) / len(means) <= 0.035
    assert bootstrap_mean(values) == interval


def test_runs_that_differ_in_seed_and_name_are_one_group(report):
    (group,) = report.seeds
    assert (group.name, group.seeds) == ("unlearned", (0, 1))
    values = [run.metrics["model_utility"] for run in group.runs]
    assert group.metrics["model_utility"].mean == pytest.approx(sum(values) / 2)
    assert group.metrics["model_utility"].low == pytest.approx(min(values))


@pytest.mark.parametrize(("names", "shared"), [
    (("dipo-seed0", "dipo-seed1"), "dipo"),
    (("dipo/seed-0", "dipo/seed-1"), "dipo"),
    (("dipo", "dipo-1"), "dipo"),
    (("dipo-alpha-0.3", "dipo-alpha-0.3-seed1"), "dipo-alpha-0.3"),
    (("dipo-lr5e-5-0", "dipo-lr5e-5-1"), "dipo-lr5e-5"),
    (("tofu_forget10", "tofu_forget10_1"), "tofu_forget10"),
    (("dipo-seed00", "dipo-seed01"), "dipo"),
    (("dipo-7", "dipo-8"), "dipo"),
    (("one", "another"), "one"),
    (("0", "1"), "0"),
])  # fmt: skip
def test_a_group_has_the_name_of_its_runs_without_their_seeds(report, names, shared):
    (group,) = report.seeds
    runs = [replace(run, name=name) for run, name in zip(group.runs, names, strict=True)]
    assert [each.name for each in seed_groups(runs)] == [shared]


def other_beta(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["init_args"]["forget_loss"]["init_args"]["beta"] = 0.07
    (run / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize(("name", "manifest", "change"), [
    ("unlearned-0", {"seed": 1}, other_beta),
    ("unlearned-0", {"seed": 0}, None),
    ("unlearned-0-relearn", {"seed": 1}, None),
])  # fmt: skip
def test_another_config_the_same_seed_or_an_attack_is_no_repetition(copied, name, manifest, change):
    paths = [copied(name), copied(name, "another", manifest=lambda each: each.update(manifest))]
    if change is not None:
        change(paths[1])
    assert seed_groups([read_run(each) for each in paths]) == []


def test_a_metric_that_one_seed_lacks_has_no_mean(copied):
    paths = [copied("unlearned-0"), copied("unlearned-1")]
    metrics = paths[1] / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"forget_rouge_l_recall"', '"something_else"'))
    (group,) = seed_groups([read_run(each) for each in paths])
    assert "forget_probability" in group.metrics
    assert not {"forget_rouge_l_recall", "something_else"} & group.metrics.keys()
