"""Callback that measures tasks of lm-eval at the evaluations of a run."""

from typing import Any

from lightning import LightningModule, Trainer

from dipo_pl.callbacks.manifest import ManifestEntry
from dipo_pl.callbacks.measurement import Measurement
from dipo_pl.data_modules.forget_retain import ForgetRetain
from dipo_pl.errors import InputError
from dipo_pl.evaluation.lm_eval_tasks import LMEvalTasks, metrics_of
from dipo_pl.strategies.fsdp import FSDP2Strategy


class LMEval(Measurement, ManifestEntry):
    """Callback that measures tasks of EleutherAI's lm-eval, such as MMLU and WMDP, at evaluations of a run.

    They are measured wherever answers are generated (forget_quality.generate_every), before, during and after training.
    Every rank measures its share of each task's documents; the metrics are those of all ranks together. A value is the
    metric `lm_eval_TASK_METRIC`, with `_FILTER` behind it where the task filters answers; its standard error is
    `lm_eval_TASK_METRIC_stderr`. Needs lm-eval: pip install 'dipo-pl[lm-eval]'.

    Args:
        tasks: names of tasks, groups or tags of lm-eval (`lm-eval ls tasks` lists them) or of `include_path`; null measures
            nothing. A group has its own metrics; a tag, or a group without any, has those of its tasks.
        include_path: folder with tasks of one's own, YAML files in lm-eval's format. They may name Python functions, which
            are run: use only files that you have read.
        limit: measure only the first documents of each task; null measures all.
        num_fewshot: number of solved examples before each question; null is the task's own.
        batch_size: sequences in a forward pass, on each device.
    """

    entry = "lm_eval"

    def __init__(
        self,
        tasks: list[str] | None = None,
        include_path: str | None = None,
        limit: int | None = None,
        num_fewshot: int | None = None,
        batch_size: int = 8,
    ) -> None:
        self.tasks = (
            LMEvalTasks(tasks, include_path, limit, num_fewshot, batch_size, option="lm_eval")
            if tasks
            else None
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load the tasks, before anything is trained.

        Raises:
            InputError: lm-eval is not installed, a task cannot be loaded, or the model will be sharded.
        """
        if self.tasks is None:
            return
        if isinstance(trainer.strategy, FSDP2Strategy):
            raise InputError(
                "lm_eval.tasks needs the whole model on each device, and trainer.strategy shards it: leave it out, and "
                "measure the finished run with dipo-pl lm-eval"
            )
        self.tasks.load()

    def record(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the version of lm-eval and those of the tasks; nothing if there are no tasks."""
        return {} if self.tasks is None else self.tasks.versions

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """Return the metrics of the tasks."""
        if self.tasks is None:
            return {}
        module: Any = pl_module
        tokenizer = ForgetRetain.of(trainer).tokenizer
        # Lightning's hooks run outside the precision that its steps have.
        with trainer.precision_plugin.forward_context(), module.uncompiled():
            return metrics_of(self.tasks.results(module.language_model, tokenizer))
