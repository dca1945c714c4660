"""Classes in the package's own folders are found by short name, without an entry in a list."""

import sys
from pathlib import Path

from dipo_pl import data_modules
from dipo_pl.cli.pluggable import PACKAGES, import_pluggable

MODULE = """
from dipo_pl.data_modules.fictitious_authors import FictitiousAuthors


class NewcomersAuthors(FictitiousAuthors):
    pass
"""


def test_a_new_file_in_a_folder_is_enough(process, tmp_path, monkeypatch):
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "newcomers_authors.py").write_text(MODULE)
    monkeypatch.setattr(data_modules, "__path__", [*data_modules.__path__, str(folder)])
    # In a process of its own: the class would be one of this process's from now on.
    monkeypatch.delitem(sys.modules, "dipo_pl.cli.run_cli", raising=False)
    ended = process("fit", "--config", "smoke.yaml", "--data", "NewcomersAuthors", "--print_config")
    assert "class_path: dipo_pl.data_modules.newcomers_authors.NewcomersAuthors" in ended.out, ended.err


def test_every_module_of_the_packages_is_imported():
    import_pluggable()
    for package in PACKAGES:
        for path in sys.modules[f"dipo_pl.{package}"].__path__:
            for file in Path(path).glob("[a-z]*.py"):
                assert f"dipo_pl.{package}.{file.stem}" in sys.modules
