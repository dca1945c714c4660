"""Callback that adds to TensorBoard what curves alone do not show: thresholds, trajectory, hyperparameters."""

from collections.abc import Mapping
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from dipo_pl.callbacks.export import Export
from dipo_pl.callbacks.forget_quality import ForgetQuality, log_evaluation
from dipo_pl.callbacks.logged_names import logged_name
from dipo_pl.callbacks.lookup import callbacks_of
from dipo_pl.callbacks.trajectory_figure import trajectory_figure
from dipo_pl.callbacks.verdict import Judge, wrong_answers
from dipo_pl.evaluation.verdict_rules import Evidence, metric_thresholds
from dipo_pl.storage.run_folder import RunFolder, forgotten_sets
from dipo_pl.storage.text import load_yaml

# Parts of the configuration that are shown as hyperparameters.
_SHOWN = (
    "model",
    "data.class_path",
    "data.init_args.batch_size",
    "data.init_args.global_batch_size",
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.precision",
    "seed_everything",
)


class Board(Callback):
    """Callback that completes the TensorBoard of an unlearning run.

    At each evaluation it logs the thresholds of the verdict as `NAME_threshold`, and on the page Custom Scalars each metric
    is drawn together with its threshold. At the end it adds the trajectory, what is still known of the forget set against
    utility, as a figure (needs the extra `plots`), and the hyperparameters with the final metrics.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log thresholds, and after the evaluation that follows training the rest."""
        run = _unlearning(trainer, pl_module)
        if run is None or ForgetQuality.of(trainer).result is None:
            return
        records = run.read_metrics()
        thresholds = _thresholds(trainer, run, records)
        if ForgetQuality.of(trainer).checkpoint_step is None:
            limits = {f"{name}_threshold": value for name, value in thresholds.items()}
            log_evaluation(trainer, limits, trainer.global_step)
        charts = {
            name: ["Multiline", [logged_name(name), logged_name(f"{name}_threshold")]] for name in thresholds
        }
        if trainer.sanity_checking and charts:
            for board in _boards(trainer):
                board.experiment.add_custom_scalars({"thresholds of the verdict": charts})
        if trainer.state.fn == "validate":
            self._complete(trainer, run)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add trajectory and hyperparameters, unless another evaluation follows."""
        run = _unlearning(trainer, pl_module)
        if run is not None and ForgetQuality.of(trainer).is_complete(trainer):
            self._complete(trainer, run)

    @staticmethod
    def _complete(trainer: Trainer, run: RunFolder) -> None:
        records = run.read_metrics()
        forgotten = forgotten_sets(run.read_manifest())
        figure = trajectory_figure(records, _thresholds(trainer, run, records), forgotten)
        settings = _flat(load_yaml(run.config.read_text(encoding="utf-8"))) if run.config.is_file() else {}
        step = callbacks_of(trainer, Export)[0].step(trainer)
        final = next((each for each in records if each["step"] == step), records[-1])
        values = {name: each for name, each in final.items() if isinstance(each, float) and name != "epoch"}
        metrics = {logged_name(name): each for name, each in values.items()}
        for board in _boards(trainer):
            if figure is not None:
                board.experiment.add_figure("trajectory", figure, trainer.global_step, close=False)
            # The values are points of the curves of these names.
            for summary in hparams(settings, metrics):
                board.experiment.file_writer.add_summary(summary)


def _unlearning(trainer: Trainer, module: Any) -> RunFolder | None:
    """Return the folder of an unlearning run that shows curves, on the first rank."""
    if not trainer.is_global_zero or "pairs" not in module.trains_on or not _boards(trainer):
        return None
    run = RunFolder(trainer.default_root_dir)
    return run if run.read_manifest().get("command") == "fit" else None


def _boards(trainer: Trainer) -> list[TensorBoardLogger]:
    return [each for each in trainer.loggers if isinstance(each, TensorBoardLogger)]


def _thresholds(trainer: Trainer, run: RunFolder, records: list[dict[str, Any]]) -> dict[str, float]:
    """Return the thresholds by metric; none without an evaluation before training."""
    target = records[0] if records and records[0]["step"] == 0 else {}
    if not target:
        return {}
    judge = callbacks_of(trainer, Judge)[0]
    retain = ForgetQuality.of(trainer).retain_metrics
    manifest = run.read_manifest()
    rows = {name: each["rows"] for name, each in manifest["data"]["evaluation"].items()}
    forgotten = forgotten_sets(manifest)
    evidence = Evidence(target, target, retain, forgotten, wrong_answers(run, target, forgotten), rows)
    return metric_thresholds(evidence, judge.thresholds)


def _flat(config: Mapping[str, Any]) -> dict[str, bool | str | float | int]:
    """Return what is shown of a configuration by its path, without the words class_path and init_args."""
    found: dict[str, bool | str | float | int] = {}

    def add(path: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, each in value.items():
                add(f"{path}.{key}" if path else key, each)
        elif isinstance(value, bool | str | float | int) and path.startswith(_SHOWN):
            name = path.replace(".init_args", "").removesuffix(".class_path")
            found[name] = str(value).rpartition(".")[2] if path.endswith(".class_path") else value

    add("", config)
    return found
