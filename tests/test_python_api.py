"""Tests of `import dipo_pl`: the public names, and the example of docs/from-python.md."""

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import dipo_pl
from dipo_pl.public_names import modules_of

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", dipo_pl.__all__)
def test_every_public_name_imports(name):
    assert getattr(dipo_pl, name) is not None
    assert name in dir(dipo_pl)


@pytest.mark.parametrize("package", ["dipo_pl", "dipo_pl.metrics"])
def test_editors_see_the_names_that_are_imported(package):
    """The stub that type checkers read has no line that the lazy imports do not read, and names what its modules define."""
    stub = ast.parse((ROOT / package.replace(".", "/") / "__init__.pyi").read_text())
    stated = {alias.asname: each.module for each in stub.body for alias in each.names}
    assert stated == modules_of(package)
    for name, module in stated.items():
        found = getattr(import_module(package), name)
        assert found is getattr(import_module(module), name)


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="module 'dipo_pl' has no attribute 'DiPo'"):
        dipo_pl.DiPo  # noqa: B018


def test_import_loads_nothing_heavy():
    code = "import sys, dipo_pl; print({'torch', 'lightning', 'transformers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_command_that_trains_does_not_load_pandas():
    """It takes a second, and only reports have tables."""
    code = "import sys, dipo_pl.cli.session; print('pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def code_of_the_page() -> list[str]:
    page = (ROOT / "docs" / "from-python.md").read_text()
    return re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)


def run(code: str) -> dict:
    scope: dict = {}
    exec(compile(code, "from-python.md", "exec"), scope)
    return scope


def test_the_page_trains_measures_and_exports(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope = run(code_of_the_page()[0])
    before, after = scope["before"], scope["after"]
    assert after["forget_probability"] < before["forget_probability"] / 2
    assert after["retain_probability"] > before["retain_probability"] / 2
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert Path("runs/unlearned/hf", name).is_file()
    assert "forget_probability: " in capsys.readouterr().out


def test_the_page_shows_the_engine_in_a_loop_of_your_own():
    scope = run(code_of_the_page()[1])
    assert scope["objective"].loss.item() > 0
    assert all(each.grad.isfinite().all() for each in scope["policy"].parameters())
    assert scope["policy"].lm_head.weight.grad.abs().max() > 0


def test_the_page_computes_a_metric(capsys):
    run(code_of_the_page()[2])
    assert capsys.readouterr().out.strip()
