"""Classes of one's own, in one's own module, are named in the config by their path."""

from pathlib import Path

OWN = """
import torch

from dipo_pl.preferences.constructors import Pair, PreferenceConstructor
from dipo_pl.preferences.filters import Filter


class AboveMean(Filter):
    def __init__(self, by: float = 0.0) -> None:
        self.by = by

    def keep(self, logits, targets):
        return logits >= logits.mean(-1, keepdim=True) + self.by


class Uniform(PreferenceConstructor):
    def __init__(self, mix: float) -> None:
        self.mix = mix

    def pair(self, logits, targets):
        remembering = logits.softmax(-1)
        uniform = torch.full_like(logits, 1 / logits.shape[-1])
        return Pair((1 - self.mix) * remembering + self.mix * uniform, remembering)
"""


def test_constructor_and_filter_by_class_path(cli, monkeypatch):
    Path("own_pairs.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(Path().resolve()))
    quick = (
        "fit",
        "--config",
        "smoke.yaml",
        "--trainer.max_epochs",
        "1",
        "--forget_quality.generate_every",
        "0",
    )
    own = cli(
        *quick, "--model.constructor", "own_pairs.Uniform", "--model.constructor.mix", "0.5", "--name", "a"
    )
    assert own.code == 0, own.err
    filtered = cli(*quick, "--model.constructor.filter", "own_pairs.AboveMean", "--name", "b")
    assert filtered.code == 0, filtered.err
    refused = cli(*quick, "--model.constructor", "own_pairs.AboveMean", "--name", "c")
    assert refused.code == 2
    assert "model.constructor" in refused.errors[0]


ANYTHING = """
import pathlib
from typing import Any

from dipo_pl.losses import CrossEntropy


class Marker:
    def __init__(self, path: str) -> None:
        pathlib.Path(path).touch()


class Odd(CrossEntropy):
    def __init__(self, anything: Any) -> None:
        assert anything["class_path"] == "own_odd.Marker"
"""


def test_a_key_of_any_type_makes_no_object(cli, monkeypatch):
    Path("own_odd.py").write_text(ANYTHING)
    monkeypatch.syspath_prepend(str(Path().resolve()))
    marker = '{"class_path": "own_odd.Marker", "init_args": {"path": "made"}}'
    loss = ("--model.forget_loss", "own_odd.Odd", "--model.forget_loss.anything", marker)
    ended = cli("fit", "--config", "smoke.yaml", "--trainer.limit_train_batches", "1", *loss)
    assert not Path("made").exists()
    assert ended.code == 2
    assert "model.forget_loss.anything: using own_odd.Marker from a config is not allowed" in ended.errors[0]
