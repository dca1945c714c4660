"""The package as it is shipped: all folders in the wheel, which runs where nothing else of the project is."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


QUICK = ("--trainer.max_steps", "1", "--forget_quality.generate_every", "0", "--data.evaluation_rows", "1")
LINKED = ("data_modules", "callbacks", "configs")


def built(source: Path, folder: Path, *kinds: str) -> list[Path]:
    """What `python -m build` makes of a source tree."""
    subprocess.run(
        [sys.executable, "-m", "build", *kinds, "--no-isolation", "--outdir", folder, source],
        check=True, capture_output=True,
    )  # fmt: skip
    return sorted(folder.iterdir())


def files_of(archive: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(archive).namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    """The package's files by their import path, as git has them."""
    listed = subprocess.run(
        ["git", "ls-files", "dipo_pl", *LINKED], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    own = {name for name in listed if name.startswith("dipo_pl/")} - {f"dipo_pl/{each}" for each in LINKED}
    return own | {f"dipo_pl/{name}" for name in listed if not name.startswith("dipo_pl/")}


def copied(tree: Path) -> Path:
    """Copy the checkout: in it, builds would find what earlier ones or those of other processes have left."""
    shutil.copytree(
        ROOT,
        tree,
        symlinks=True,
        ignore=shutil.ignore_patterns(".*", "build", "runs", "pretrained", "*.egg-info"),
    )
    return tree


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    (wheel,) = built(copied(folder / "tree"), folder / "dist", "--wheel")
    return wheel


@pytest.mark.parametrize("name", LINKED)
def test_the_import_path_is_the_file_path_in_a_checkout(name):
    link = ROOT / "dipo_pl" / name
    assert link.is_symlink()
    assert link.resolve() == ROOT / name
    assert not Path(os.readlink(link)).is_absolute()


def test_wheel_holds_every_file_of_the_package(wheel, tracked):
    assert files_of(wheel) == tracked


def test_sdist_gives_the_same_wheel(wheel, tmp_path):
    (sdist,) = built(copied(tmp_path / "tree"), tmp_path / "sdist", "--sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (again,) = built(tmp_path / sdist.name.removesuffix(".tar.gz"), tmp_path / "wheel", "--wheel")
    assert files_of(again) == files_of(wheel)


def found_from_elsewhere(python: Path, folder: Path, **environment: str) -> str:
    """Where an interpreter finds a module of a linked folder; nothing but the package need be installed."""
    code = "from importlib.util import find_spec; print(find_spec('dipo_pl.callbacks.export').origin)"
    done = subprocess.run(
        [python, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def environment_at(folder: Path) -> Path:
    """The interpreter of a new, empty environment."""
    venv.create(folder / "environment")
    return folder / "environment" / "bin" / "python"


def install(python: Path, *options: str | Path, lent: str = "") -> None:
    """Install by this environment's pip; a checkout on the path would count as installed."""
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", *options]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": lent}, check=True, capture_output=True)


def test_an_editable_install_imports_the_source_tree(tmp_path):
    tree = copied(tmp_path / "tree")
    python = environment_at(tmp_path)
    install(python, "--no-build-isolation", "-e", tree, lent=sysconfig.get_path("purelib"))
    assert found_from_elsewhere(python, tmp_path) == str(tree / "dipo_pl" / "callbacks" / "export.py")
    # A path that editors and type checkers can read, not an import hook.
    (path,) = (tmp_path / "environment").rglob("*dipo*.pth")
    assert path.read_text().strip() == str(tree)


def test_a_plain_checkout_on_the_path_is_enough(tmp_path):
    found = found_from_elsewhere(environment_at(tmp_path), tmp_path, PYTHONPATH=str(ROOT))
    assert found == str(ROOT / "dipo_pl" / "callbacks" / "export.py")


def test_wheel_runs_in_an_empty_environment_from_another_folder(wheel, tmp_path):
    """The environment holds the wheel alone; what it depends on is lent from this one's site-packages."""
    python = environment_at(tmp_path)
    install(python, wheel)
    # Through PYTHONPATH the .pth files there, which an editable install works by, are not read.
    lent = os.environ | {"PYTHONPATH": sysconfig.get_path("purelib")}
    where = subprocess.run(
        [python, "-c", "import dipo_pl.callbacks.export as e; print(e.__file__)"],
        cwd=tmp_path, env=lent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert where.stdout.startswith(str(python.parents[1]))
    done = subprocess.run(
        [python.with_name("dipo-pl"), "fit", "--config", "smoke.yaml", "--config", "graddiff.yaml", *QUICK],
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
    assert folders == {"dipo_pl", "configs", "data_modules", "callbacks", "docs", "tests", ".ci"}
