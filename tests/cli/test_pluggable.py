"""Classes in the package's own folders are found by short name, without an entry in a list."""

import sys
from pathlib import Path

from forked import fork, wait

from dipo_pl import data_modules
from dipo_pl.__main__ import main
from dipo_pl.cli.pluggable import PACKAGES, import_pluggable

MODULE = """
from dipo_pl.data_modules.fictitious_authors import FictitiousAuthors


class NewcomersAuthors(FictitiousAuthors):
    pass
"""


def test_a_new_file_in_a_folder_is_enough(tmp_path):
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "newcomers_authors.py").write_text(MODULE)

    def run() -> int:
        data_modules.__path__.append(str(folder))
        import_pluggable()
        return main(["fit", "--config", "smoke.yaml", "--data", "NewcomersAuthors", "--print_config"])

    # In a process of its own: the class would be one of this process's from now on.
    assert wait(fork(run, tmp_path / "out")) == 0
    config = (tmp_path / "out").read_text()
    assert "class_path: dipo_pl.data_modules.newcomers_authors.NewcomersAuthors" in config


def test_every_module_of_the_packages_is_imported():
    import_pluggable()
    for package in PACKAGES:
        for path in sys.modules[f"dipo_pl.{package}"].__path__:
            for file in Path(path).glob("[a-z]*.py"):
                assert f"dipo_pl.{package}.{file.stem}" in sys.modules
