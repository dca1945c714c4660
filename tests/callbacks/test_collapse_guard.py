"""Signs of a collapse in hand-written trajectories, and in runs that show them."""

import json
from pathlib import Path

import pytest

from dipo_pl.callbacks.collapse_guard import CollapseGuard


def records(**columns):
    length = len(next(iter(columns.values())))
    return [
        {"step": step, **{name: values[step] for name, values in columns.items()}} for step in range(length)
    ]


@pytest.mark.parametrize(("columns", "done", "sign"), [
    ({"model_utility": [0.8, 0.39]}, 0.1, "utility"),
    ({"forget_probability": [0.9, 0.82]}, 0.5, "stalled"),
    ({"forget_quality_log10_p": [-9, -5, -2, -4]}, 0.9, "forget_quality_log10_p"),
    ({"model_utility": [0.8, 0.8, 0.55, 0.79]}, 0.9, "model_utility"),
    ({"retain_repetition": [0.1, 0.5]}, 0.1, "repetitive"),
    ({"retain_word_entropy": [2.0, 0.9]}, 0.1, "words"),
    ({"model_utility": [0.8, 0.41]}, 0.9, None),  # more than half is left
    ({"forget_probability": [0.9, 0.82]}, 0.49, None),  # too early to tell
    ({"forget_probability": [0.9, 0.80]}, 0.9, None),
    ({"forget_quality_log10_p": [-9, -5, -2, -3.9]}, 0.9, None),  # back by less than 2
    ({"forget_quality_log10_p": [-9, -5, -2, -0]}, 0.9, None),  # only one way
    ({"forget_quality_log10_p": [-5, -2, -4]}, 0.9, None),  # the first is from before training
    ({"retain_word_entropy": [2.0, 1.1]}, 0.9, None),
    # What is forgotten may lose its words.
    ({"forget_word_entropy": [2.0, 0.0], "forget_repetition": [0.0, 1.0]}, 0.9, None),
    ({"forget_probability": [0.09, 0.09]}, 0.9, None),  # the target knew nothing
    ({"model_utility": [0.09, 0.0]}, 0.9, None),
    ({"retain_repetition": [0.6, 0.85]}, 0.9, None),  # the target was also repetitive
])  # fmt: skip
def test_signs(columns, done, sign):
    assert list(CollapseGuard().signs(records(**columns), done)) == ([] if sign is None else [sign])


@pytest.mark.parametrize(
    ("forgotten", "sign"), [(("request_1", "request_2"), ["stalled"]), (("request_2",), [])]
)
def test_one_request_that_stalls_is_a_sign(forgotten, sign):
    trajectory = records(request_1_probability=[0.9, 0.82], request_2_probability=[0.9, 0.1])
    assert list(CollapseGuard().signs(trajectory, 0.5, forgotten)) == sign


def test_evaluations_without_the_metrics_are_skipped():
    trajectory = records(forget_quality_log10_p=[-9, -5, -2, -4])
    without = {"step": 9, "forget_probability": 0.1}
    assert "forget_quality_log10_p" in CollapseGuard().signs([*trajectory[:3], without, trajectory[3]], 0.1)
    assert CollapseGuard().signs([without, *trajectory[1:3], without], 0.1) == {}


@pytest.mark.parametrize("stop", ["false", "true"])
def test_a_collapse_is_reported_once_and_ends_the_run_if_so_configured(cli, learned, stop):
    ended = cli(
        "fit", "--config", "smoke.yaml", "--config", "graddiff.yaml", "--model.policy", "Pretrained",
        "--model.policy.path", learned / "hf", "--model.optimizer.lr", "0.01", "--model.retain_weight", "0.0",
        "--trainer.max_epochs", "4", "--name", "run", "--collapse_guard.stop", stop,
    )  # fmt: skip
    assert ended.err.count("Model Utility fell from") == 1
    if stop == "false":
        assert ended.code == 0, ended.err
        assert len(Path("runs/run/metrics.jsonl").read_text().splitlines()) == 5
        return
    assert ended.code == 1
    assert (
        ended.errors[0].count("Model Utility fell from")
        == ended.errors[0].count("(collapse_guard.stop is true)")
        == 1
    )
    assert json.loads(Path("runs/run/manifest.json").read_text())["status"].startswith(
        "failed: Model Utility"
    )
    assert not Path("runs/run/hf").exists()
