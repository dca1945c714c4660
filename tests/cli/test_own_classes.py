"""Tests of classes from a user's module; docs/how-to shows those that work, and tests/test_docs.py runs them."""

from pathlib import Path

FILTER = """
from dipo_pl import Filter


class AboveMean(Filter):
    def keep(self, logits, targets):
        return logits >= logits.mean(-1, keepdim=True)
"""


def test_a_class_of_another_kind_is_refused(cli, monkeypatch):
    Path("own_filter.py").write_text(FILTER)
    monkeypatch.syspath_prepend(str(Path().resolve()))
    refused = cli("fit", "--config", "smoke.yaml", "--model.constructor", "own_filter.AboveMean")
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
