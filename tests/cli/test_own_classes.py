"""Classes of one's own, in one's own module, are named in the config by their path."""

import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"

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


def test_readme_example_of_a_new_loss(cli, monkeypatch):
    """The README's three files: the loss, its config, its test; run as they stand there."""
    text = README.read_text()
    files = dict(re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))
    loss, config, test = "capped_ascent.py", "capped_ascent.yaml", "test_capped_ascent.py"
    assert list(files) == [loss, config, test]
    for name in (loss, config, test):
        Path(name).write_text(files[name])
    monkeypatch.syspath_prepend(str(Path().resolve()))
    scope: dict = {}
    exec(compile(files[test], test, "exec"), scope)
    tests = [each for name, each in scope.items() if name.startswith("test_")]
    assert tests
    for each in tests:
        each()
    ended = cli("fit", "--config", "smoke.yaml", "--config", config, "--forget_quality.generate_every", "0")
    assert ended.code == 0, ended.err


def test_readme_example_of_the_engine():
    """It has gradients in the end, of all weights, and stands on its own."""
    text = README.read_text()
    (code,) = re.findall(
        r"^```python\n(import torch\nfrom transformers .*?)^```", text, flags=re.MULTILINE | re.DOTALL
    )
    scope: dict = {}
    exec(compile(code, "README.md", "exec"), scope)
    assert scope["objective"].loss.item() > 0
    assert all(each.grad.isfinite().all() for each in scope["policy"].parameters())
    assert scope["policy"].lm_head.weight.grad.abs().max() > 0
