"""One start of `fit` or `validate`, from its options to its exit code."""

import sys
import traceback
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from dipo_pl.cli.console import cause_of, say, write_traceback
from dipo_pl.cli.held_messages import HeldMessages
from dipo_pl.cli.new_files import NewFiles
from dipo_pl.cli.processes import LOST, Processes
from dipo_pl.cli.run_cli import RunCLI
from dipo_pl.cli.run_folder_check import check_run_folder
from dipo_pl.cli.verdict_block import LESS_THAN_REQUIRED, is_less, verdict_block
from dipo_pl.distributed import is_sharded
from dipo_pl.errors import InputError, WriteError
from dipo_pl.signals import Interrupted, interruption
from dipo_pl.storage.checkpoints import (
    newest_readable,
    read_checkpoint,
    read_weights,
    refuse_fewer_epochs,
    refuse_unreadable,
    refuse_weights_alone,
)
from dipo_pl.storage.files import locked
from dipo_pl.strategies.fsdp import FSDP2Strategy


class Session:
    """One start of `fit` or `validate`, which knows how far it has come when an error or a signal ends it.

    Args:
        words: the command and its arguments.
        debug: print the traceback of an error.
    """

    def __init__(self, words: Sequence[str], debug: bool = False) -> None:
        self._words, self._debug = words, debug
        self._cli: RunCLI | None = None
        self._processes = Processes(None)
        self._new_files: NewFiles | None = None
        self._messages = HeldMessages()

    def run(self) -> int:
        """Run the command; return its exit code and print at most one error line."""
        # The folder stays locked until what a failed start has written is removed.
        with ExitStack() as held:
            try:
                with interruption.listening(), self._messages.holding():
                    return self._start(held)
            except Interrupted as interrupted:
                return self._report_interruption(interrupted)
            except SystemExit as ended:
                # --help and --print_config end so.
                return int(ended.code or 0)
            except Exception as error:
                return self._report(error)

    def _start(self, held: ExitStack) -> int:
        cli = self._cli = RunCLI(self._words)
        if self._is_done(cli):
            return _conclude(cli)
        cli.instantiate()
        cli.trainer.callbacks.insert(0, self._messages)  # type: ignore[attr-defined]
        self._processes = Processes(cli.trainer)
        self._processes.watch()
        run = cli.run_folder
        new_files = NewFiles(run)
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot make the run folder {run.path} ({error.strerror}): see --output_dir"
            ) from error
        if cli.trainer.is_global_zero:
            held.enter_context(locked(run.path))
            self._new_files = new_files
            # Another process may have worked on the folder meanwhile.
            if self._is_done(cli):
                return _conclude(cli)
        if cli.command == "fit":
            _fit(cli)
        else:
            _validate(cli)
        return _conclude(cli) if cli.trainer.is_global_zero else 0

    @staticmethod
    def _is_done(cli: RunCLI) -> bool:
        needs_export = cli.command == "fit" and cli.config.export.enabled
        finished = check_run_folder(cli.run_folder, cli.command, cli.resolved, needs_export)
        if finished is not None:
            print(finished)
        return finished is not None

    @property
    def _has_begun(self) -> bool:
        """True once the run has written its manifest, after which nothing that it wrote is removed."""
        return self._cli is not None and self._cli.manifest.written

    def _discard(self) -> None:
        if self._new_files is not None and not self._has_begun:
            with suppress(OSError, WriteError):
                self._new_files.discard()

    def _write_failure(self, cause: str) -> None:
        if self._cli is not None and self._has_begun:
            self._cli.manifest.fail(self._cli.trainer, cause)

    def _report(self, error: Exception) -> int:
        """Print one line on standard error; write the traceback to a file, or with `debug` print it."""
        if self._debug:
            traceback.print_exception(error)
        end = self._processes.first_cause(error)
        if end is not None:
            if end.line is not None:
                say("failed", end.line)
            if end.line not in (None, LOST):
                self._write_failure(str(end.line))
            return end.code
        cause, is_input = cause_of(error)
        self._write_failure(cause)
        # Until the run has begun, an error comes from what was given, though a library may have raised it.
        if is_input or not self._has_begun or self._cli is None:
            say("error", cause if is_input else f"{cause} (--debug shows where)")
            self._discard()
            return 2
        log = write_traceback(error, self._cli.run_folder.error_log)
        say("failed", f"{type(error).__name__}: {cause} (traceback: {log or '--debug'})")
        return 1

    def _report_interruption(self, interrupted: Interrupted) -> int:
        self._discard()
        self._processes.wait()
        if not self._processes.is_launched:
            resumes = ": the same command resumes the run" if self._has_begun else ""
            print(f"dipo-pl: {interrupted}{resumes}", file=sys.stderr)
        return int(interrupted.code or 0)


def _fit(cli: RunCLI) -> None:
    trainer, checkpoint = cli.trainer, _checkpoint_to_start_from(cli)
    if checkpoint is not None:
        # The evaluation before training has been made.
        trainer.num_sanity_val_steps = 0
    if cli.has_default_logger:
        # What was logged after the checkpoint is logged again; the evaluation at its step is not.
        done = -1 if checkpoint is None else read_checkpoint(checkpoint)["global_step"]
        trainer.logger = cli.default_logger(purge_step=done + 1)
    trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint)
    evaluation, export = cli.config_init.forget_quality, cli.config_init.export
    if not evaluation.is_complete(trainer):
        best = export.checkpoint(trainer)
        evaluation.checkpoint_step = None if best is None else export.step(trainer)
        if best is not None and not is_sharded(cli.model.language_model):
            # Lightning would read all of it into memory, with the optimizer's moments where it has them.
            cli.model.load_state_dict(read_weights(best), strict=False)
            best = None
        trainer.validate(cli.model, datamodule=cli.datamodule, ckpt_path=best, verbose=False)
    cli.manifest.finish(trainer)
    # What follows, in this process or another, finds all that the first rank has written.
    trainer.strategy.barrier()


def _conclude(cli: RunCLI) -> int:
    """Print the verdict of a run that is finished, where it has one; return the exit code."""
    if cli.command != "fit":
        return 0
    if block := verdict_block(cli.run_folder):
        print(f"\n{block}", flush=True)
    return LESS_THAN_REQUIRED if is_less(cli.run_folder, cli.config.require) else 0


def _checkpoint_to_start_from(cli: RunCLI) -> Path | None:
    """Return the run's own newest checkpoint, else the one that --ckpt_path names, else None.

    A --ckpt_path in the run's own folder comes first: the run is to go back to it.
    """
    run, asked = cli.run_folder, cli.config.ckpt_path
    named = None if asked in (None, "last") else Path(asked)
    checkpoint = None
    if (
        named is None or named.resolve().parent != run.checkpoints.resolve()
    ) and not cli.config.trainer.fast_dev_run:
        checkpoint = newest_readable(run, _compares_checksums(cli))
    if checkpoint is None and named is not None:
        refuse_unreadable(named, _compares_checksums(cli))
        refuse_weights_alone(named)
        checkpoint = named
    if checkpoint is not None:
        refuse_fewer_epochs(checkpoint, cli.config.trainer.max_epochs)
        instead = "" if named in (None, checkpoint) else f" instead of {named}, which this run started from"
        rank_zero_info(f"resuming from {checkpoint}{instead}")
    return checkpoint


def _validate(cli: RunCLI) -> None:
    checkpoint = cli.config.ckpt_path
    if checkpoint is not None:
        refuse_unreadable(Path(checkpoint), _compares_checksums(cli))
    cli.trainer.validate(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint, verbose=False)


def _compares_checksums(cli: RunCLI) -> bool:
    """Return whether this rank compares checksums: of a sharded model's checkpoint, the first rank does it for all."""
    return cli.trainer.is_global_zero or not isinstance(cli.trainer.strategy, FSDP2Strategy)
