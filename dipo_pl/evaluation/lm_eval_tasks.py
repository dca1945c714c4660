"""Tasks of EleutherAI's lm-eval: found by name, and measured on a model in memory."""

import hashlib
import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dipo_pl.errors import InputError, check_count, short_message
from dipo_pl.models.eval_mode import eval_mode
from dipo_pl.paths import expanded
from dipo_pl.private_names import without_bars_of_lm_eval

INSTALL = "pip install 'dipo-pl[lm-eval]'"
# Parts of lm-eval's results that say what they mean; the rest is about the machine.
MEANING = (
    "results",
    "groups",
    "group_subtasks",
    "versions",
    "n-shot",
    "n-samples",
    "higher_is_better",
    "configs",
)
# Columns of a result that are no metrics.
_LABELS = ("alias", "name", "sample_len", "sample_count")


class LMEvalTasks:
    """Tasks of lm-eval.

    Args:
        tasks: names of tasks, groups or tags.
        include_path: folder with further tasks, YAML files.
        limit: first documents of each task that are measured; None measures all.
        num_fewshot: solved examples before each question; None is the task's own.
        batch_size: sequences in a forward pass.
        option: what an error calls the arguments: lm_eval.tasks, --tasks if it is `-`.

    Raises:
        InputError: there are no tasks, a name is given twice, or a number is out of range.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        include_path: str | None = None,
        limit: int | None = None,
        num_fewshot: int | None = None,
        batch_size: int = 8,
        option: str = "utility",
    ) -> None:
        self._option = option
        if isinstance(tasks, str) or not tasks:
            raise InputError(
                f"{self._called('tasks')} must be a list of names of tasks, such as [mmlu] (got {tasks!r})"
            )
        if twice := [name for name in tasks if list(tasks).count(name) > 1]:
            raise InputError(f"{self._called('tasks')} has {twice[0]} twice: leave one of them out")
        check_count(self._called("limit"), limit)
        check_count(self._called("num_fewshot"), num_fewshot, 0)
        check_count(self._called("batch_size"), batch_size)
        self.tasks = [*tasks]
        self.include_path = None if include_path is None else expanded(include_path)
        self.limit = limit
        self.num_fewshot = num_fewshot
        self.batch_size = batch_size
        # Objects of lm-eval by the name that was asked for.
        self._loaded: dict[str, list[Any]] = {}
        self._together: Any = None

    @property
    def versions(self) -> dict[str, Any]:
        """Version of lm-eval, and the tasks' settings; for a manifest."""
        return {
            "version": metadata.version("lm-eval"),
            "tasks": self.tasks,
            "limit": self.limit,
            "num_fewshot": self.num_fewshot,
        }

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the loaded tasks: their settings and functions, their documents, and the groups."""
        self.load()
        digest = hashlib.sha256()
        groups = ([each, each.aggregate_metric_list] for each in self._together.get("groups", {}).values())
        tasks = (
            [name, each.dump_config(), [*each.eval_docs]] for name, each in self._together["tasks"].items()
        )
        for part in chain(groups, tasks):
            # Addresses in memory are others in each process.
            digest.update(re.sub(r" at 0x[0-9a-f]+", "", json.dumps(part, default=str)).encode())
        return digest.hexdigest()

    def load(self) -> None:
        """Load the tasks with their data, once.

        Raises:
            InputError: lm-eval is not installed, there is no such task, or its data cannot be had.
        """
        if self._loaded:
            return
        try:
            import accelerate  # noqa: F401
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise InputError(f"{self._called('tasks')} needs lm-eval ({error}): {INSTALL}") from error
        if self.include_path is not None and not Path(self.include_path).is_dir():
            raise InputError(
                f"{self._called('include_path')} must be a folder with tasks (got {self.include_path!r})"
            )
        own = None
        if self.include_path is not None:
            own = TaskManager(include_path=self.include_path, include_defaults=False)
        if own is not None and _is_whole(own, self.tasks):
            manager = own
        else:
            known = [*shipped_tasks().all_tasks, *(own.all_tasks if own is not None else ())]
            for name in self.tasks:
                if name not in known:
                    raise InputError(self._unknown(name, known))
            manager = shipped_tasks() if own is None else TaskManager(include_path=self.include_path)
        loaded = {name: self._load(manager, name) for name in self.tasks}
        try:
            self._together = manager.load([each for found in loaded.values() for each in found])
        except ValueError as error:
            raise InputError(
                f"{self._called('tasks')} asks for a task twice ({short_message(error)}): leave out one that is in a group"
            ) from error
        self._loaded = loaded
        self._choose_examples()

    def results(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """Return lm-eval's results on a model, on every rank; each measures its share of the documents.

        Random generators are afterwards as before. `asked` are the names of the results that were asked for.
        """
        self.load()
        from lm_eval import evaluate
        from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

        from dipo_pl.evaluation.lm_eval_model import HarnessModel

        # `simple_evaluate` would also look up git, pip and drivers each time, which takes seconds.
        with isolate_rng(), without_bars_of_lm_eval(), eval_mode(model), torch.no_grad():
            random.seed(DEFAULT_RANDOM_SEED)
            np.random.seed(DEFAULT_OTHER_SEED)  # noqa: NPY002
            torch.manual_seed(DEFAULT_OTHER_SEED)
            for task in self._together["tasks"].values():
                task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
            harness = HarnessModel(model, tokenizer, self.batch_size)
            found = evaluate(harness, self._together, limit=self.limit, log_samples=False)
        kept = {} if found is None else {name: found[name] for name in MEANING if name in found}
        if dist.is_initialized():
            box = [kept]
            dist.broadcast_object_list(box, src=0)
            kept = box[0]
        return kept | {"asked": self._asked(kept)}

    def _asked(self, found: Mapping[str, Any]) -> list[str]:
        """Return the names of the results that were asked for: those of a group's tasks if it has none itself."""
        names: list[str] = []
        for name, loaded in self._loaded.items():
            within = [task.task_name for each in loaded for task in _tasks_of(each)]
            names += [name] if _numbers(_columns(found, name)) else within
        return names

    def _choose_examples(self) -> None:
        """Set the number of solved examples before each question, as lm-eval's own command does."""
        for name, task in self._together["tasks"].items():
            own = task.get_config("num_fewshot")
            if self.num_fewshot is not None and own != 0:
                task.set_config(key="num_fewshot", value=self.num_fewshot)
                continue
            task.set_config(key="num_fewshot", value=own or 0)
            if self.num_fewshot:
                rank_zero_warn(
                    f"{self._called('num_fewshot')} {self.num_fewshot} is not used by {name}, which takes no solved examples"
                )

    def _load(self, manager: Any, name: str) -> list[Any]:
        try:
            loaded = manager.load([name])
        except Exception as error:
            raise InputError(
                f"cannot load the task {name} of {self._called('tasks')} ({type(error).__name__}: {short_message(error)}): "
                "its data come from the Hugging Face hub unless its YAML file names files; download them where there is a "
                "network (HF_HOME is the cache), or leave it out"
            ) from error
        for each in loaded["tasks"].values():
            if getattr(each, "UNSAFE_CODE", False) or getattr(each, "MULTIMODAL", False):
                raise InputError(
                    f"{self._called('tasks')}: {name} runs code that a model has written, or needs images: use "
                    "lm-eval's own command for it"
                )
        groups = loaded.get("groups", {})
        return [groups[name]] if name in groups else [*loaded["tasks"].values()]

    def _unknown(self, name: str, known: Sequence[str]) -> str:
        matches = get_close_matches(name, known, n=1)
        near = f" (did you mean {matches[0]}?)" if matches else ""
        return (
            f"{self._called('tasks')}: lm-eval {metadata.version('lm-eval')} has no task {name!r}{near}: `lm-eval ls tasks` "
            f"lists them; a folder of your own tasks is {self._called('include_path')}"
        )

    def _called(self, name: str) -> str:
        return f"--{name.replace('_', '-')}" if self._option == "-" else f"{self._option}.{name}"


def metrics_of(results: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of the tasks that were asked for: `lm_eval_TASK_METRIC`, and `_FILTER` if the task has one.

    Args:
        results: those of `LMEvalTasks.results`.
    """
    return {
        key_of(task, column): value
        for task in results["asked"]
        for column, value in _numbers(_columns(results, task)).items()
    }


def headline_of(results: Mapping[str, Any], task: str) -> str:
    """Return the key of a task's first metric."""
    return key_of(task, next(iter(_numbers(_columns(results, task)))))


def refuse_no_share(results: Mapping[str, Any]) -> None:
    """Refuse tasks whose first metric cannot be averaged with others as utility.

    Raises:
        InputError: a task's first metric is outside of [0, 1], or less of it is better.
    """
    for task in results["asked"]:
        column, value = next(iter(_numbers(_columns(results, task)).items()))
        better = results.get("higher_is_better", {}).get(task, {}).get(column.partition(",")[0], True)
        if not better or not 0 <= value <= 1:
            raise InputError(
                f"utility.tasks: {task} has {column} {value:.4g}, which is no share that is higher the more a model can do: "
                "name tasks with an accuracy"
            )


def key_of(task: str, column: str) -> str:
    """Return the key of a metric of lm-eval, such as `acc,none`, in metrics.jsonl."""
    metric, _, name = column.partition(",")
    ending = "" if name in ("", "none") else f"_{name.replace('-', '_')}"
    stem, error = metric.removesuffix("_stderr"), "_stderr" if metric.endswith("_stderr") else ""
    return f"lm_eval_{task}_{stem}{ending}{error}"


def _columns(results: Mapping[str, Any], task: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = results.get("groups", {}).get(task) or results["results"].get(task, {})
    return found


def _numbers(columns: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics among a result's columns; a standard error that is not known is left out."""
    return {
        name: float(value)
        for name, value in columns.items()
        if name not in _LABELS and isinstance(value, int | float) and math.isfinite(value)
    }


def _tasks_of(loaded: Any) -> list[Any]:
    """Return the tasks in a task or group of lm-eval."""
    return list(loaded.get_all_tasks()) if hasattr(loaded, "get_all_tasks") else [loaded]


@cache
def shipped_tasks() -> Any:
    """Return the index of lm-eval's own tasks, of which there are thousands: made once, in ten seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _is_whole(manager: Any, names: Sequence[str]) -> bool:
    """Return whether an index has all of these names, and all tasks of those that are groups."""
    if not {*names} <= {*manager.all_tasks}:
        return False
    try:
        manager.load([name for name in names if name in manager.all_groups])
    except Exception:
        # Other faults are told when the tasks are loaded from the index of all.
        return False
    return True
