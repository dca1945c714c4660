"""Lightning's CLI as `dipo-pl` needs it: bare config names, run folders, resuming, one line an error."""

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from jsonargparse import ActionConfigFile, Namespace
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from dipo_pl.callbacks.batch_seed import BatchSeed
from dipo_pl.callbacks.collapse_guard import CollapseGuard
from dipo_pl.callbacks.export import Export
from dipo_pl.callbacks.forget_quality import ForgetQuality
from dipo_pl.callbacks.last_checkpoint import LastCheckpoint
from dipo_pl.callbacks.manifest import Manifest
from dipo_pl.callbacks.samples import Samples
from dipo_pl.callbacks.selection import BestCheckpoint, Selection
from dipo_pl.callbacks.training_monitor import TrainingMonitor
from dipo_pl.callbacks.weight_change import WeightChange
from dipo_pl.cli.console import cause_of, quieten, write_traceback
from dipo_pl.cli.error_lines import one_line
from dipo_pl.cli.named_classes import guard_configs, refuse_functions
from dipo_pl.cli.pluggable import import_pluggable
from dipo_pl.cli.processes import LOST, Processes
from dipo_pl.configs import resolve
from dipo_pl.data_modules.forget_retain import ForgetRetain
from dipo_pl.errors import InputError, WriteError
from dipo_pl.modules.base import LanguageModule
from dipo_pl.private_names import keep_signal_handlers, subcommand_parser
from dipo_pl.signals import Interrupted, interruption
from dipo_pl.storage.checkpoints import (
    AtomicCheckpointIO,
    newest_readable,
    read_checkpoint,
    refuse_fewer_epochs,
    refuse_unreadable,
)
from dipo_pl.storage.files import locked, write_text
from dipo_pl.storage.run_folder import RunFolder, check_name
from dipo_pl.storage.secrets import redact_values
from dipo_pl.storage.text import load_yaml, read_text
from dipo_pl.strategies.fsdp import FSDP2Strategy
from dipo_pl.strategies.supported import supported_strategy

C = TypeVar("C", bound=Callback)
T = TypeVar("T")

guard_configs()
import_pluggable()


class _Finished(Exception):
    """The run asked for has been done already."""


class _Known(Exception):
    """What was asked of the configuration is known."""


class _ConfigFile(ActionConfigFile):
    """`--config NAME`, with bare names resolved."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        given, content = values, None
        if isinstance(values, str):
            values = str(resolve(values))
            content = _content(values, given)
        try:
            super().__call__(parser, cfg, values, option_string)
        except (TypeError, ValueError) as error:
            if key := _without_a_class(content, cfg):
                raise InputError(
                    f"the config {given} has arguments of {key} and names no class for it: it is an overlay; put the "
                    f"config that it changes before it (--config tofu.yaml --config {given})"
                ) from error
            raise InputError(f"in the config {given}: {one_line(str(error))}") from error


def _content(path: str, given: str) -> Any:
    try:
        content = load_yaml(read_text(path))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"in the config {given}: {' '.join(str(error).split())}") from error
    if isinstance(content, dict) and {"configs", "requests"} <= content.keys():
        raise InputError(
            f"{given} holds requests to forget, not the config of a run: dipo-pl sequence {given}"
        )
    return content


def _without_a_class(content: Any, before: Namespace) -> str | None:
    """The key of which a config has arguments, and neither it nor one before it names the class."""
    for key in ("model", "data") if isinstance(content, dict) else ():
        if isinstance(content.get(key), dict) and "class_path" not in content[key] and not before.get(key):
            return key
    return None


class _Parser(LightningArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise InputError(one_line(message)) from ex


class _SaveConfig(SaveConfigCallback):
    """Writes config.yaml whole; Lightning's own may leave half of it, and refuses to write it twice."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        text = self.parser.dump(self.config, skip_none=False)
        settings = load_yaml(text)
        shown = redact_values(settings)
        if shown != settings:
            text = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)
        write_text(RunFolder(trainer.default_root_dir).config, text)


class DiPOCLI(LightningCLI):
    """Commands `fit` and `validate`, each with its run folder."""

    processes: Processes | None = None
    # What is held until the run has ended.
    held: ExitStack | None = None
    # Whether nobody else writes to the run's folder: the first process knows.
    alone = False

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = _Parser(**kwargs)
        parser.add_argument(
            "-c",
            "--config",
            action=_ConfigFile,
            help="A config file, or the bare name of a shipped one; repeatable.",
        )
        return parser

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "weights_only"},
            "validate": {"model", "dataloaders", "datamodule", "weights_only"},
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--name",
            type=str | None,
            default=None,
            help="Of the run's folder; by default the configs' names joined.",
        )
        parser.add_argument(
            "--output_dir", type=str, default="runs", help="Folder that run folders are made in."
        )
        parser.add_lightning_class_args(ForgetQuality, "forget_quality")
        parser.add_lightning_class_args(Samples, "samples")
        parser.add_lightning_class_args(Selection, "selection")
        parser.add_lightning_class_args(CollapseGuard, "collapse_guard")
        parser.add_lightning_class_args(Export, "export")
        # In this order, so that the last checkpoint knows the best one of its epoch.
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")
        parser.set_defaults({"checkpoint.save_top_k": 0, "checkpoint.filename": "{epoch}-{step}"})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        super().parse_arguments(parser, args)
        refuse_functions(self.config[self.config.subcommand])

    def _parse_ckpt_path(self) -> None:
        """Keeps the config as it was given: Lightning would replace it with what the checkpoint holds."""

    @property
    def settings(self) -> Namespace:
        settings = self.config[self.subcommand]
        assert isinstance(settings, Namespace)
        return settings

    @property
    def run(self) -> RunFolder:
        return RunFolder(Path(self.settings.output_dir) / self.settings.name)

    def before_instantiate_classes(self) -> None:
        settings = self.settings
        if settings.trainer is None:
            raise InputError("trainer: must be a mapping of keys, got null")
        for key in ("val_check_interval", "check_val_every_n_epoch"):
            if settings.trainer[key] == 0:
                raise InputError(f"trainer.{key} must be greater than 0, got 0")
        settings.trainer.strategy = supported_strategy(settings.trainer.strategy)
        if settings.name is None:
            settings.name = _default_name(settings.config or [], self.subcommand or "")
        check_name(settings.name)
        if not settings.output_dir:
            raise InputError("--output_dir must name a folder, got ''")
        # As the trainer has it.
        settings.output_dir = os.path.normpath(os.path.expanduser(settings.output_dir))
        if settings.trainer.fast_dev_run:
            settings.name += "-fast-dev-run"
        settings.checkpoint.dirpath = str(self.run.checkpoints)
        if settings.selection.rule is not None:
            if settings.checkpoint.monitor not in (None, "selection"):
                raise InputError(
                    f"selection.rule and checkpoint.monitor ({settings.checkpoint.monitor}) both say which checkpoint is "
                    "the best: give one of them"
                )
            settings.checkpoint.monitor, settings.checkpoint.mode = "selection", "max"
            settings.export.best = True
        if settings.checkpoint.monitor is not None and settings.checkpoint.save_top_k == 0:
            settings.checkpoint.save_top_k = 1
        of_policy = "model.init_args.policy.init_args"
        for key in ("data.init_args.seed", f"{of_policy}.seed", f"{of_policy}.adapter.init_args.seed"):
            if key in settings and settings[key] is None and settings.seed_everything is not False:
                settings[key] = settings.seed_everything
        self._refuse_what_is_there()

    def _refuse_what_is_there(self) -> None:
        """What the run's folder holds may be of another run, or finished."""
        manifest = self.run.read_manifest()
        self.run.read_metrics()
        if self.subcommand == "validate" and manifest.get("command") == "fit":
            raise InputError(f"{self.run.path} holds a training run: give this measurement another --name")
        begun = self.run.to_resume_from or manifest.get("status") == "finished"
        if begun or (self.subcommand == "validate" and manifest):
            self._refuse_another_configuration()
        if manifest.get("status") == "finished" and self._is_exported:
            self._refuse_to_repeat(manifest)

    @property
    def _is_exported(self) -> bool:
        """Or need not be; else what is left to do is to export, from the last checkpoint."""
        wanted = self.subcommand == "fit" and self.settings.export.enabled
        return not wanted or self.run.hf.is_dir() or not self.run.to_resume_from

    @property
    def _configured_before(self) -> dict[str, Any]:
        """The config of the run that the folder holds."""
        try:
            return dict(load_yaml(self.run.config.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
            raise InputError(
                f"cannot read {self.run.config} ({' '.join(str(error).split())}): give another --name, or remove "
                f"{self.run.path}"
            ) from error

    def _refuse_another_configuration(self) -> None:
        before = self._configured_before
        now = redact_values(
            load_yaml(subcommand_parser(self, self.subcommand or "").dump(self.settings, skip_none=False))
        )
        fixed = ["model", "data", "seed_everything", "forget_quality"]
        clipping = ("gradient_clip_val", "gradient_clip_algorithm")
        limits = ("overfit_batches", "limit_train_batches", "limit_val_batches")
        fixed += [f"trainer.{key}" for key in ("precision", "accumulate_grad_batches", *clipping, *limits)]
        for config in (before, now):
            # Which requests are known to come changes with every new one.
            config["data"].get("init_args", {}).pop("requests_to_come", None)
        size = "data.init_args.global_batch_size"
        if _at(before, size) is not None and _at(before, size) == _at(now, size):
            # How its rows are split is for the devices to say.
            before["data"]["init_args"]["batch_size"] = _at(now, "data.init_args.batch_size")
        changes = [change for key in fixed for change in _changes(_at(before, key), _at(now, key), key)]
        if changes:
            raise InputError(
                f"{self.run.path} holds a run with another configuration ({'; '.join(changes[:3])}"
                f"{f'; and {len(changes) - 3} more' if len(changes) > 3 else ''}): give this one another --name, "
                "or remove that folder"
            )

    def _refuse_to_repeat(self, manifest: dict[str, Any]) -> None:
        limits = ("max_epochs", "max_steps", "max_time")
        before = _at(self._configured_before, "trainer") or {}
        if self.subcommand != "fit":
            return
        if any(before.get(each) != self.settings.trainer[each] for each in limits):
            if not self.run.to_resume_from:
                raise InputError(
                    f"{self.run.path} is finished and has no checkpoint to go on from: give another --name, or remove that "
                    "folder"
                )
            return
        raise _Finished(
            f"{self.run.path} is finished ({manifest.get('epochs')} epochs, {manifest.get('steps')} steps): nothing to do. "
            "Results are in metrics.jsonl, the model in hf/. Give another --name to train again, or raise "
            "trainer.max_epochs to go on (a decaying learning rate then starts again from where the longer "
            "schedule has it)"
        )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        configured = self.config_init[self.subcommand].trainer
        if configured.logger in (None, True):
            kwargs["logger"] = self._logger()
        kwargs["default_root_dir"] = str(self.run.path)
        # First of all: a policy that training did not change is not exported.
        kwargs["callbacks"] = [WeightChange(), *_as_list(configured.callbacks)]
        kwargs["plugins"] = [*_as_list(configured.plugins), AtomicCheckpointIO()]
        trainer = super().instantiate_trainer(**kwargs)
        # Lightning's would save nothing on SIGTERM, wait for other processes within the handler, and under SLURM write
        # a checkpoint that may lie between two steps; see `dipo_pl.signals`.
        keep_signal_handlers(trainer)
        self.processes = Processes(trainer)
        self.processes.watch()
        return trainer

    def _logger(self, **options: Any) -> TensorBoardLogger:
        # An empty version keeps the folder the same from one start to the next.
        return TensorBoardLogger(self.settings.output_dir, self.settings.name, version="", **options)

    def after_instantiate_classes(self) -> None:
        self._there_before = {*self.run.path.rglob("*"), *(each for each in self._folders if each.exists())}
        self._config_before = self.run.config.read_bytes() if self.run.config.is_file() else None
        try:
            self.run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot make the run folder {self.run.path} ({error.strerror}): see --output_dir"
            ) from error
        if self.held is not None and self.trainer.is_global_zero:
            self.held.enter_context(locked(self.run.path))
            self.alone = True
            # Another process may have been at it meanwhile.
            self._refuse_what_is_there()

    @property
    def started(self) -> bool:
        """Whether the run has left its own record, after which nothing of it is taken back."""
        return self.callback(Manifest).written

    def discard_what_was_begun(self) -> None:
        """Takes back what this start has written, if it ended before the run began (loggers open files early)."""
        if self.started or not self.alone:
            return
        if self._config_before is not None and self.run.config.read_bytes() != self._config_before:
            write_text(self.run.config, self._config_before.decode())
        begun = sorted({*self.run.path.rglob("*"), *self._folders} - self._there_before, reverse=True)
        for path in begun:
            if self.run.reference in (path, *path.parents):
                continue
            if path.is_file():
                path.unlink()
            elif path.is_dir() and not any(path.iterdir()):
                path.rmdir()

    @property
    def _folders(self) -> list[Path]:
        """The run folder and those above it that a run may have to make."""
        return [self.run.path, *list(self.run.path.parents)[: len(Path(self.settings.output_dir).parts)]]

    def fit(self, **kwargs: Any) -> None:
        asked = kwargs.pop("ckpt_path", None)
        named = None if asked in (None, "last") else Path(asked)
        checkpoint: Path | None = None
        # What a run has started from is behind it once it has a checkpoint of its own, unless it is to go back to one.
        goes_on = named is None or named.resolve().parent != self.run.checkpoints.resolve()
        if goes_on and not self.settings.trainer.fast_dev_run:
            checkpoint = newest_readable(self.run, self._reads_all)
        if checkpoint is None and named is not None:
            refuse_unreadable(named, self._reads_all)
            checkpoint = named
        if checkpoint is not None:
            refuse_fewer_epochs(checkpoint, self.settings.trainer.max_epochs)
            beside = "" if named in (None, checkpoint) else f", and not from {named}, which is behind it"
            rank_zero_info(f"resuming from {checkpoint}{beside}")
            # What is measured before training has been measured.
            self.trainer.num_sanity_val_steps = 0
        if self.config_init[self.subcommand].trainer.logger in (None, True):
            # What was drawn after the checkpoint is drawn again; the evaluation at its step is not.
            done = -1 if checkpoint is None else read_checkpoint(checkpoint)["global_step"]
            self.trainer.logger = self._logger(purge_step=done + 1)
        self.trainer.fit(ckpt_path=checkpoint, **kwargs)
        if self.callback(ForgetQuality).complete_step != self.trainer.global_step:
            self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
        self.callback(Manifest).finish(self.trainer)
        # What comes after, in this process or another, finds all that the first one has written.
        self.trainer.strategy.barrier()

    @property
    def _reads_all(self) -> bool:
        """Whether this process compares checksums: with a model in shards all take what the first one has chosen."""
        return self.trainer.is_global_zero or not isinstance(self.trainer.strategy, FSDP2Strategy)

    def callback(self, kind: type[C]) -> C:
        return next(each for each in self.trainer.callbacks if isinstance(each, kind))  # type: ignore[attr-defined]

    def validate(self, **kwargs: Any) -> None:
        if kwargs.get("ckpt_path") is not None:
            refuse_unreadable(Path(kwargs["ckpt_path"]), self._reads_all)
        self.trainer.validate(**kwargs | {"verbose": False})


def _default_name(configs: Sequence[Any], subcommand: str) -> str:
    """tofu.yaml overlaid by npo.yaml is tofu-npo; measured without training, tofu-npo-validate."""
    stems = [Path(str(each)).stem for each in configs] or ["run"]
    return "-".join(stems if subcommand == "fit" else [*stems, subcommand])


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _at(config: Any, key: str) -> Any:
    for each in key.split("."):
        config = (config or {}).get(each)
    return config


def _changes(before: Any, now: Any, key: str) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted({*before, *now})
        return [
            change for each in keys for change in _changes(before.get(each), now.get(each), f"{key}.{each}")
        ]
    return [] if before == now else [f"{key}: {before!r} there, {now!r} here"]


def run(arguments: Sequence[str], debug: bool = False) -> int:
    """Runs `fit` or `validate` with these arguments; returns the exit code and prints at most one error line.

    A signal to end gives 128 and its number: 130 for SIGINT, 143 for SIGTERM, 138 for SIGUSR1.
    """
    quieten()
    with ExitStack() as held:
        return _run(arguments, debug, held)


def _run(arguments: Sequence[str], debug: bool, held: ExitStack) -> int:
    cli: DiPOCLI | None = None

    class _Reachable(DiPOCLI):
        """Lets the error handler know the run folder, though the constructor never returned."""

        def after_instantiate_classes(self) -> None:
            nonlocal cli
            cli, self.held = self, held
            super().after_instantiate_classes()

    try:
        with interruption.listening():
            _start(_Reachable, arguments)
    except _Finished as finished:
        print(finished)
        return 0
    except Interrupted as interrupted:
        return _interrupted(interrupted, cli)
    except SystemExit as ended:
        return int(ended.code or 0)
    except Exception as error:
        return _tell(error, cli, debug)
    return 0


def _start(kind: type[DiPOCLI], arguments: Sequence[str]) -> None:
    callbacks: list[Callback] = [Manifest(arguments), BatchSeed(), TrainingMonitor()]
    kind(
        LanguageModule,
        ForgetRetain,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=_SaveConfig,
        save_config_kwargs={"save_to_log_dir": False},
        seed_everything_default=0,
        trainer_defaults={
            "callbacks": callbacks,
            "num_sanity_val_steps": -1,
            "use_distributed_sampler": False,
            "log_every_n_steps": 1,
            "enable_model_summary": False,
        },
        auto_configure_optimizers=False,
        args=list(arguments),
    )


def resolved(arguments: Sequence[str]) -> dict[str, Any]:
    """The configuration that a command with these arguments would run; nothing of it is made.

    Raises:
        InputError: it cannot be parsed.
    """

    class _Parsed(DiPOCLI):
        def before_instantiate_classes(self) -> None:
            text = subcommand_parser(self, self.subcommand or "").dump(self.settings, skip_none=False)
            raise _Known(load_yaml(text))

    config: dict[str, Any] = _asked(_Parsed, arguments)
    return config


def is_finished(arguments: Sequence[str]) -> bool:
    """Whether a `fit` with these arguments would find that there is nothing left to do.

    Raises:
        InputError: its folder holds a run with another configuration.
    """

    class _Checked(DiPOCLI):
        # Whether the model is still there is for those to ask who need it.
        _is_exported = True

        def before_instantiate_classes(self) -> None:
            try:
                super().before_instantiate_classes()
            except _Finished:
                raise _Known(True) from None
            raise _Known(False)

    finished: bool = _asked(_Checked, arguments)
    return finished


def _asked(kind: type[DiPOCLI], arguments: Sequence[str]) -> Any:
    quieten()
    try:
        _start(kind, arguments)
    except _Known as known:
        return known.args[0]
    raise AssertionError("the command line ended before what was asked of it was known")


def data_module(config: dict[str, Any]) -> ForgetRetain:
    """The data module of a resolved configuration.

    Raises:
        InputError: its own arguments are wrong.
    """
    return _made(ForgetRetain, "data", config)  # type: ignore[type-abstract]


def language_model(config: dict[str, Any]) -> LanguageModule:
    """The LightningModule of a resolved configuration, whose policy is not loaded.

    Raises:
        InputError: its own arguments are wrong.
    """
    return _made(LanguageModule, "model", config)  # type: ignore[type-abstract]


def _made(kind: type[T], key: str, config: dict[str, Any]) -> T:
    parser = _Parser()
    parser.add_lightning_class_args(kind, key, subclass_mode=True)  # type: ignore[arg-type]
    made = parser.instantiate_classes(parser.parse_object({key: config[key]}))[key]
    assert isinstance(made, kind)
    return made


def _tell(error: Exception, cli: DiPOCLI | None, debug: bool) -> int:
    """One line on standard error; the traceback goes to a file, or with `debug` to the screen."""
    if debug:
        traceback.print_exception(error)
    others = Processes(None) if cli is None or cli.processes is None else cli.processes
    first = others.cause(error)
    if first is not None:
        line, code = first
        if line is not None:
            print(f"dipo-pl: failed: {line}", file=sys.stderr)
        if line not in (None, LOST) and cli is not None and cli.started:
            cli.callback(Manifest).fail(cli.trainer, str(line))
        return code
    cause, given = cause_of(error)
    if cli is not None and cli.started:
        cli.callback(Manifest).fail(cli.trainer, cause)
    # Before anything runs, what fails is what was given, though a library may have said so.
    if given or cli is None or not cli.started:
        print(
            f"dipo-pl: error: {cause}{'' if given or cli is None else ' (--debug shows where)'}",
            file=sys.stderr,
        )
        if cli is not None:
            with suppress(OSError, WriteError):
                cli.discard_what_was_begun()
        return 2
    log = write_traceback(error, cli.run.error_log)
    print(
        f"dipo-pl: failed: {type(error).__name__}: {cause} (traceback: {log or '--debug'})", file=sys.stderr
    )
    return 1


def _interrupted(interrupted: Interrupted, cli: DiPOCLI | None) -> int:
    begun = cli is not None and cli.started
    if cli is not None:
        with suppress(OSError, WriteError):
            cli.discard_what_was_begun()
        if cli.processes is not None:
            cli.processes.wait()
            if cli.processes.is_launched:
                return int(interrupted.code or 0)
    print(
        f"dipo-pl: {interrupted}{': the same command goes on' if begun else ''}",
        file=sys.stderr,
    )
    return int(interrupted.code or 0)
