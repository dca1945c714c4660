"""Files that a start has written, removed again if it fails before the run begins."""

from pathlib import Path

from dipo_pl.storage.files import write_text
from dipo_pl.storage.run_folder import RunFolder


class NewFiles:
    """Record of what lies in a run folder, and of the folders above it, before a start writes to it.

    Loggers and other libraries open files before a run begins; a start that then fails leaves none of them.

    Args:
        run: the run folder, which need not exist.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        # The run folder and those above it that the start may have to make.
        self._folders = [run.path, *(each for each in run.path.parents if each != Path())]
        self._before = {*run.path.rglob("*"), *(each for each in self._folders if each.exists())}
        self._config = run.config.read_bytes() if run.config.is_file() else None

    def discard(self) -> None:
        """Remove what is there now and was not before, and restore config.yaml.

        Stored states of the reference stay: the next start resumes building them.
        """
        if self._config is not None and self._run.config.read_bytes() != self._config:
            write_text(self._run.config, self._config.decode())
        for path in sorted({*self._run.path.rglob("*"), *self._folders} - self._before, reverse=True):
            if self._run.reference in (path, *path.parents):
                continue
            if path.is_file():
                path.unlink()
            elif path.is_dir() and not any(path.iterdir()):
                path.rmdir()
