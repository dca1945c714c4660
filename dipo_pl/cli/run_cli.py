"""Lightning's CLI for `fit` and `validate`: parses their options, then makes model, data and trainer."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal

import yaml
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities import rank_zero_info

from dipo_pl.callbacks.batch_seed import BatchSeed
from dipo_pl.callbacks.board import Board
from dipo_pl.callbacks.logged_names import RunLogger
from dipo_pl.callbacks.manifest import Manifest
from dipo_pl.callbacks.progress import Progress
from dipo_pl.callbacks.training_monitor import TrainingMonitor
from dipo_pl.callbacks.weight_change import WeightChange
from dipo_pl.cli.error_lines import one_line
from dipo_pl.cli.home_paths import expand_paths
from dipo_pl.cli.named_classes import guard_configs, refuse_functions
from dipo_pl.cli.null_check import refuse_nulls
from dipo_pl.cli.option_check import CALLBACKS
from dipo_pl.cli.pluggable import import_pluggable
from dipo_pl.cli.run_parser import ConfigFile, RunParser, with_classes_for_help
from dipo_pl.cli.trainer_check import check_trainer
from dipo_pl.cli.unused_constructor import without_unused_constructor
from dipo_pl.data_modules.forget_retain import ForgetRetain
from dipo_pl.errors import InputError, causes
from dipo_pl.modules.base import LanguageModule
from dipo_pl.private_names import leave_signals_alone
from dipo_pl.storage.checkpoints import AtomicCheckpointIO
from dipo_pl.storage.files import write_text
from dipo_pl.storage.run_folder import RunFolder, check_name
from dipo_pl.storage.secrets import redact_values
from dipo_pl.storage.text import load_yaml
from dipo_pl.strategies.supported import supported_strategy

guard_configs()
import_pluggable()

DESCRIPTIONS = {
    "fit": "Train a model: unlearn, or with a fine-tuning config fine-tune.",
    "validate": "Evaluate a model without training it.",
}
EPILOG = """\
Arguments of a class: --model.help Unlearning, --data.help TOFU, --model.forget_loss.help NPO.
The resulting configuration: --print_config."""
BASES: dict[str, type[Any]] = {"model": LanguageModule, "data": ForgetRetain}
SEEDS = ("data", "model.init_args.policy", "model.init_args.policy.init_args.adapter")
TRAINER_DEFAULTS = {
    "num_sanity_val_steps": -1,
    "use_distributed_sampler": False,
    "log_every_n_steps": 1,
    "enable_model_summary": False,
}


class SaveConfig(SaveConfigCallback):
    """Callback that writes config.yaml whole or not at all, without secrets."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the configuration into the run folder."""
        text = self.parser.dump(self.config, skip_none=False)
        settings = load_yaml(text)
        shown = redact_values(settings)
        if shown != settings:
            text = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)
        write_text(RunFolder(trainer.default_root_dir).config, text)


class RunCLI(LightningCLI):
    """Parsed options of `fit` or `validate`; `instantiate` makes what they describe.

    Unlike Lightning's, the constructor only parses and completes the configuration: what is done with it depends on
    what the run folder holds.

    Args:
        words: `fit` or `validate`, and its arguments.

    Attributes:
        command: `fit` or `validate`.
        manifest: the callback that writes the manifest.

    Raises:
        InputError: an option or value is wrong.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = words
        self.command, *arguments = words
        self.manifest = Manifest(words)
        super().__init__(
            LanguageModule,
            ForgetRetain,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults=TRAINER_DEFAULTS
            | {"callbacks": [self.manifest, BatchSeed(), TrainingMonitor(), Board()]},
            seed_everything_default=0,
            parser_kwargs={
                "prog": f"dipo-pl {self.command}",
                "usage": "%(prog)s --config NAME [--config NAME ...] [--KEY VALUE ...]",
                "description": DESCRIPTIONS[self.command],
                "epilog": EPILOG,
            },
            parser_class=RunParser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=with_classes_for_help(arguments, BASES),
            run=False,
            auto_configure_optimizers=False,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Return the parser with its option `--config`."""
        parser = self.parser_class(**kwargs)
        parser.add_argument(
            "-c",
            "--config",
            action=ConfigFile,
            help="Config file, or the bare name of a shipped one; repeatable.",
        )
        return parser

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options that belong to the run itself."""
        text = str | None
        parser.add_argument(
            "--name", type=text, help="Name of the run folder; by default the names of the configs."
        )
        parser.add_argument(
            "--output_dir", type=str, default="runs", help="Folder in which run folders are made."
        )
        parser.add_argument(
            "--ckpt_path",
            type=text,
            help="Checkpoint to start from, a file or a folder of shards; a run resumes from its own one by itself.",
        )
        parser.add_argument(
            "--require",
            type=Literal["forgotten", "partly"] | None,
            help="Exit with code 3 if the verdict of the run is less than this.",
        )
        super().add_default_arguments_to_parser(parser)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add model, data and callbacks before Lightning's trainer, which has by far the most options."""
        for key, base in BASES.items():
            parser.add_lightning_class_args(base, key, subclass_mode=True)
        for key, path in CALLBACKS.items():
            parser.add_lightning_class_args(resolve_name(path), key)
        parser.set_defaults({"checkpoint.save_top_k": 0, "checkpoint.filename": "{epoch}-{step}"})
        # The best checkpoint is exported and measured; last.ckpt is what a run resumes from.
        parser.set_defaults({"checkpoint.save_weights_only": True})
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({f"trainer.{key}": value for key, value in TRAINER_DEFAULTS.items()})

    @property
    def run_folder(self) -> RunFolder:
        """Folder of the run."""
        return RunFolder(Path(self.config.output_dir) / self.config.name)

    @cached_property
    def resolved(self) -> dict[str, Any]:
        """The whole configuration as plain values."""
        try:
            text = self.parser.dump(self.config, skip_none=False)
        except (TypeError, ValueError) as error:
            raise InputError(one_line(str(error))) from error
        return dict(load_yaml(text))

    def before_instantiate_classes(self) -> None:
        """Check and complete the configuration."""
        config = self.config
        expand_paths(config)
        refuse_functions(config)
        if config.trainer is None:
            raise InputError("trainer must be a mapping of keys (got null)")
        refuse_nulls(config)
        check_trainer(config.trainer)
        if without_unused_constructor(config.model) and any(
            each.startswith("--model.constructor") for each in self.words
        ):
            raise InputError(
                "model.constructor makes preference pairs, and neither model.forget_loss nor model.retain_loss uses one: "
                "leave it out, or choose DiPO or DiPORetain"
            )
        config.trainer.strategy = supported_strategy(config.trainer.strategy)
        if config.name is None:
            config.name = self._default_name()
        check_name(config.name)
        if not config.output_dir:
            raise InputError("--output_dir must name a folder (got '')")
        if config.ckpt_path == "":
            raise InputError("--ckpt_path must name a checkpoint (got ''): leave it out to start without one")
        # The trainer normalizes its own folder too.
        config.output_dir = os.path.normpath(config.output_dir)
        if config.trainer.fast_dev_run:
            config.name += "-fast-dev-run"
            # Lightning writes no checkpoints then, and makes no evaluation before training.
            config.selection.rule, config.selection.stop, config.export.best = None, False, False
        config.checkpoint.dirpath = str(self.run_folder.checkpoints)
        if config.checkpoint.save_last:
            raise InputError(
                f"checkpoint.save_last is not supported (got {config.checkpoint.save_last!r}): leave it out, since "
                "last_checkpoint writes last.ckpt"
            )
        if config.selection.rule is not None:
            if config.checkpoint.monitor not in (None, "selection"):
                raise InputError(
                    f"selection.rule and checkpoint.monitor ({config.checkpoint.monitor}) both say which checkpoint is the "
                    "best: give one of them"
                )
            config.checkpoint.monitor, config.checkpoint.mode = "selection", "max"
            config.export.best = True
        if config.checkpoint.monitor is not None and config.checkpoint.save_top_k == 0:
            config.checkpoint.save_top_k = 1
        for key in (f"{each}.init_args.seed" for each in SEEDS):
            if key in config and config[key] is None and config.seed_everything is not False:
                config[key] = config.seed_everything

    def instantiate_classes(self) -> None:
        """Do nothing: Lightning's constructor calls this before anyone has looked at the run folder."""

    def instantiate(self) -> None:
        """Make model, data and trainer; raise InputError if a constructor refuses a value."""
        try:
            super().instantiate_classes()
        except (TypeError, ValueError) as error:
            is_stated = any(isinstance(each, InputError) for each in causes(error))
            if "Problem with given class_path" in str(error) and not is_stated:
                # jsonargparse tells how everything failed that it has tried for the key.
                raise InputError(one_line(str(error))) from error
            raise

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Return the trainer, with what every run has beside its configuration."""
        configured = self.config_init.trainer
        if self.has_default_logger:
            kwargs["logger"] = self.default_logger()
        kwargs["default_root_dir"] = str(self.run_folder.path)
        # WeightChange comes first: a policy that training did not change is not exported.
        given = _as_list(configured.callbacks)
        shows = configured.enable_progress_bar is not False and not configured.barebones
        own_bar = [Progress()] if shows and not any(isinstance(each, ProgressBar) for each in given) else []
        kwargs["callbacks"] = [WeightChange(), *own_bar, *given]
        kwargs["plugins"] = [*_as_list(configured.plugins), AtomicCheckpointIO()]
        trainer = super().instantiate_trainer(**kwargs)
        leave_signals_alone(trainer)
        if trainer.num_nodes > 1 and isinstance(trainer.strategy, ParallelStrategy):
            # Nothing more is heard until they have met.
            at = trainer.strategy.cluster_environment
            where = "" if at is None else f" at {at.main_address}:{at.main_port}"
            rank_zero_info(f"waits for the processes of all {trainer.num_nodes} nodes{where}")
        return trainer

    @property
    def has_default_logger(self) -> bool:
        """True if no logger is configured."""
        return self.config_init.trainer.logger in (None, True)

    def default_logger(self, **options: Any) -> RunLogger:
        """Return a logger that writes into the run folder."""
        # An empty version keeps the folder the same from one start to the next.
        return RunLogger(self.config.output_dir, self.config.name, version="", **options)

    def _default_name(self) -> str:
        """Return the names of the configs joined: tofu-npo for tofu.yaml and npo.yaml, with -validate if not trained."""
        stems = [Path(str(each)).stem for each in self.config.config or []] or ["run"]
        return "-".join(stems if self.command == "fit" else [*stems, self.command])


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]
