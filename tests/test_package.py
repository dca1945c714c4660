"""The package as it is shipped: all folders in the wheel, which runs where nothing else of the project is."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT],
        check=True, capture_output=True,
    )  # fmt: skip
    (built,) = folder.glob("*.whl")
    return built


def test_every_folder_of_code_is_listed_and_in_the_wheel(wheel):
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    tops = {"dipo_pl": "dipo_pl", "data_modules": "dipo_pl.data_modules"}
    tops |= {"callbacks": "dipo_pl.callbacks", "configs": "dipo_pl.configs"}
    listed = subprocess.run(
        ["git", "ls-files", *tops], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    packages, files = set(), set()
    for path in map(Path, listed):
        package = ".".join([tops[path.parts[0]], *path.parts[1:-1]])
        if path.suffix == ".py":
            packages.add(package)
        files.add(f"{package.replace('.', '/')}/{path.name}")
    assert set(settings["packages"]) == packages
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert shipped == files


def test_wheel_runs_in_an_empty_environment_from_another_folder(wheel, tmp_path):
    """The environment holds the wheel alone; what it depends on is lent from this one's site-packages."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True, capture_output=True
    )
    # Through PYTHONPATH the .pth files there, which an editable install works by, are not read.
    lent = os.environ | {"PYTHONPATH": sysconfig.get_path("purelib")}
    where = subprocess.run(
        [python, "-c", "import dipo_pl.callbacks.export as e; print(e.__file__)"],
        cwd=tmp_path, env=lent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert where.stdout.startswith(str(environment))
    done = subprocess.run(
        [environment / "bin" / "dipo-pl", "fit", "--config", "smoke.yaml", "--config", "graddiff.yaml"],
        cwd=tmp_path, env=lent, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (
        json.loads((tmp_path / "runs" / "smoke-graddiff" / "manifest.json").read_text())["status"]
        == "finished"
    )


def test_what_is_needed_has_a_next_major_version_that_was_not_tried():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *(each for name in extras if name != "dev" for each in extras[name])]
    tested = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    for each in needed:
        name, first, last = re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+),<(\d+)", each).groups()
        if name in tested:
            assert int(first.split(".")[0]) <= int(tested[name].split(".")[0]) == int(last) - 1


def test_top_level_holds_only_what_the_layout_names():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    folders = {Path(name).parts[0] for name in tracked if len(Path(name).parts) > 1}
    assert folders == {"dipo_pl", "configs", "data_modules", "callbacks", "tests", ".ci"}


def test_readme_names_only_configs_that_are_shipped_and_holds_no_placeholder():
    text = (ROOT / "README.md").read_text()
    assert "@@" not in text
    named = set(re.findall(r"--config (\w+\.yaml)", text)) - {"capped_ascent.yaml"}
    shipped = {path.name for path in (ROOT / "configs").glob("*.yaml")}
    assert named
    assert named <= shipped
