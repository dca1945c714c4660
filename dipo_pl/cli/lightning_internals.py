"""Private parts of Lightning that have no public counterpart, all in this file; a test fails when they change."""

import subprocess
from collections.abc import Callable

from lightning import Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher, subprocess_script

Launched = list[subprocess.Popen[bytes]]


def leave_signals_alone(trainer: Trainer) -> None:
    """Keep a trainer from installing signal handlers.

    Lightning's would save nothing on SIGTERM, wait for other ranks within the handler, and under SLURM write a checkpoint
    that may lie between two steps; see `dipo_pl.signals`.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


def launched_processes(trainer: Trainer) -> Launched | None:
    """Return the processes that a trainer has launched on this machine; None if it does not launch any itself.

    The list is empty until the first call of `fit` or `validate`; call again after it.
    """
    launcher = trainer.strategy.launcher
    return launcher.procs if isinstance(launcher, _SubprocessScriptLauncher) else None


def observe_launched(observe: Callable[[Launched], None]) -> None:
    """Replace Lightning's observer of launched processes, which kills this process before it can report a cause."""
    subprocess_script._launch_process_observer = observe  # type: ignore[assignment]
