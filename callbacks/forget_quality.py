"""Measures forgetting and utility: Forget Quality, Model Utility and their parts, set by set."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from dipo_pl.batch import EvaluationBatch
from dipo_pl.data_modules.forget_retain import answers_to_measure
from dipo_pl.data_modules.rows import EvaluationSet
from dipo_pl.errors import InputError, TrainingError
from dipo_pl.fingerprint import rows_fingerprint
from dipo_pl.metrics import PerRow
from dipo_pl.metrics import functional as metrics
from dipo_pl.run_folder import RunFolder

FORGET = "forget"

# What a person looks at first, by the name it is shown under.
HEADLINES = {
    "Forget Quality": "forget_quality",
    "Model Utility": "model_utility",
    "P(forget)": "forget_probability",
    "ROUGE(forget)": "forget_rouge_l_recall",
    "P(retain)": "retain_probability",
    "ROUGE(retain)": "retain_rouge_l_recall",
}


@dataclass
class _Collected:
    """What one evaluation gathers of one set."""

    nll: PerRow = field(default_factory=PerRow)
    rouge: PerRow = field(default_factory=PerRow)
    texts: dict[int, str] = field(default_factory=dict)


class ForgetQuality(Callback):
    """Measures every evaluation set at each validation: before training, during it and at its end.

    How often is Lightning's own setting (trainer.check_val_every_n_epoch, trainer.val_check_interval).
    Each evaluation is a line of metrics.jsonl, a file of evaluation/ with every row's values, and scalars
    in TensorBoard.

    Args:
        retain_result: what a model that never saw the forget set makes of it: the run folder of such a
            model measured with this same data, or one of its evaluation files. Without it Forget Quality
            is not reported.
        utility_sets: the evaluation sets whose probability, ROUGE-L recall and truth ratio enter Model
            Utility; TOFU's nine numbers by default. A model made from scratch knows no real authors.
        rouge: generate an answer to every row and measure ROUGE-L recall; the slow part.
        max_new_tokens: length at which a generated answer is cut.
    """

    def __init__(
        self,
        retain_result: str | None = None,
        utility_sets: list[str] | None = None,
        rouge: bool = True,
        max_new_tokens: int = 200,
    ) -> None:
        if max_new_tokens < 1:
            raise InputError(f"forget_quality.max_new_tokens must be at least 1, got {max_new_tokens}")
        self.retain_result = retain_result
        self.utility_sets = (
            ["retain", "real_authors", "world_facts"] if utility_sets is None else utility_sets
        )
        self.rouge = rouge
        self.max_new_tokens = max_new_tokens
        self.last_step = -1
        self._retain_truth_ratios: list[float] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        sets = _evaluation_sets(trainer)
        names = [each.name for each in sets]
        for name in self.utility_sets:
            if name not in names:
                raise InputError(
                    f"forget_quality.utility_sets names {name!r}, which is not measured (measured: "
                    f"{', '.join(names)}): take it out, or add it to data.evaluate"
                )
        if self.retain_result is None:
            if trainer.is_global_zero and stage == "fit" and FORGET in names:
                rank_zero_info(
                    "Forget Quality needs a model that never saw the forget set: fit one (data.train_on: retain) "
                    "and give its run folder as forget_quality.retain_result. Without it, it is not reported."
                )
            return
        forget = next((each for each in sets if each.name == FORGET), None)
        if forget is None:
            raise InputError(
                "forget_quality.retain_result is given, but data.evaluate leaves out the forget set"
            )
        self._retain_truth_ratios = read_retain_result(self.retain_result, forget)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._collected = [_Collected() for _ in _evaluation_sets(trainer)]
        for collected in self._collected:
            collected.nll.to(pl_module.device)
            collected.rouge.to(pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: EvaluationBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        collected = self._collected[dataloader_idx]
        nll: Tensor = outputs.detach()
        if not nll.isfinite().all():
            raise TrainingError(
                f"an answer's loss is not finite at step {trainer.global_step}: the model's weights are broken"
            )
        collected.nll.update(batch.rows, nll)
        if self.rouge:
            module: Any = pl_module
            texts = module.generate(batch.prompts, self.max_new_tokens)
            recall = metrics.rouge_l_recall(texts, batch.references)
            collected.rouge.update(batch.rows, recall[:, None].to(nll))
            collected.texts.update(zip(batch.rows.tolist(), texts, strict=True))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        evaluation_sets = _evaluation_sets(trainer)
        nll = [collected.nll.compute()[1].double().cpu() for collected in self._collected]
        if any(len(each) < len(known.rows) for each, known in zip(nll, evaluation_sets, strict=True)):
            rank_zero_info(
                "only some rows were measured (a limit on batches is set): nothing is reported of them"
            )
            return
        sets = {
            known.name: self._measured(known, answers, collected)
            for known, answers, collected in zip(evaluation_sets, nll, self._collected, strict=True)
        }
        values = {
            f"{name}_{metric}": value
            for name, measured in sets.items()
            for metric, value in measured["metrics"].items()
        }
        values |= self._forget_quality(sets) | self._model_utility(sets)
        if not trainer.sanity_checking:
            pl_module.log_dict(values, logger=False, sync_dist=True)
        self.last_step = trainer.global_step
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                named = {f"evaluation/{name}": value for name, value in values.items()}
                logger.log_metrics(named, trainer.global_step)
            self._write(trainer, sets, values)
            rank_zero_info(_summary(trainer.global_step, values))

    def _measured(self, evaluation_set: EvaluationSet, nll: Tensor, collected: _Collected) -> dict[str, Any]:
        values: dict[str, Tensor] = {}
        original = nll[:, 0]
        wrong = nll[:, 2:] if nll.shape[1] > 1 else None
        if evaluation_set.options:
            if wrong is None:
                raise InputError(
                    f"the evaluation set {evaluation_set.name!r} needs wrong answers (perturbed_answer)"
                )
            values["probability"] = metrics.option_probability(original, wrong)
        else:
            values["probability"] = metrics.answer_probability(original)
        if wrong is not None:
            values["log_truth_ratio"] = metrics.log_truth_ratio(nll[:, 1], wrong)
        if self.rouge:
            values["rouge_l_recall"] = collected.rouge.compute()[1][:, 0].cpu()
        means = {name: float(each.mean()) for name, each in values.items() if name != "log_truth_ratio"}
        if wrong is not None:
            closeness = evaluation_set.name == FORGET
            aggregate = metrics.truth_ratio_closeness if closeness else metrics.truth_ratio_margin
            means["truth_ratio"] = float(aggregate(values["log_truth_ratio"].exp()).mean())
        texts = _of_all_ranks(collected.texts)
        rows = [
            {
                "row": index,
                "question": row.question,
                "answers": answers_to_measure(row),
                "nll": nll[index].tolist(),
                **({"generation": texts[index]} if self.rouge else {}),
                **{name: float(each[index]) for name, each in values.items()},
            }
            for index, row in enumerate(evaluation_set.rows)
        ]
        return {"metrics": means, "fingerprint": rows_fingerprint(evaluation_set.rows), "rows": rows}

    def _forget_quality(self, sets: dict[str, Any]) -> dict[str, float]:
        if self._retain_truth_ratios is None:
            return {}
        quality = metrics.forget_quality(
            [row["log_truth_ratio"] for row in sets[FORGET]["rows"]], self._retain_truth_ratios
        )
        return {
            "forget_quality": quality.p_value,
            "forget_quality_log10_p": quality.log10_p,
            "forget_quality_ks_statistic": quality.ks_statistic,
        }

    def _model_utility(self, sets: dict[str, Any]) -> dict[str, float]:
        parts = {
            f"{name}_{metric}": value
            for name in self.utility_sets
            for metric, value in sets[name]["metrics"].items()
        }
        return {"model_utility": metrics.model_utility(parts)} if parts else {}

    def _write(self, trainer: Trainer, sets: dict[str, Any], values: dict[str, float]) -> None:
        run = RunFolder.of(trainer)
        where = {"epoch": _epochs_done(trainer), "step": trainer.global_step}
        result = where | {"utility_sets": self.utility_sets, "metrics": values, "sets": sets}
        run.add_evaluation(trainer.global_step, result)
        run.add_metrics(where | values | {"utility_sets": self.utility_sets})


def _of_all_ranks(texts: dict[int, str]) -> dict[int, str]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return texts
    gathered: list[dict[int, str]] = [{} for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(gathered, texts)
    return {row: text for each in gathered for row, text in each.items()}


def _evaluation_sets(trainer: Trainer) -> list[EvaluationSet]:
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    sets: list[EvaluationSet] = data.evaluation_sets
    return sets


def _epochs_done(trainer: Trainer) -> float:
    """Epochs of training behind the weights that are measured; a fraction within an epoch."""
    if not trainer.global_step:
        return 0.0
    steps_an_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    return round(trainer.global_step / steps_an_epoch, 3)


def _summary(step: int, values: dict[str, float]) -> str:
    return f"step {step}: " + ", ".join(
        f"{title} {values[key]:.3g}" for title, key in HEADLINES.items() if key in values
    )


def read_retain_result(path: str, forget: EvaluationSet) -> list[float]:
    """The logarithms of the truth ratios of a retain-only model on the same forget rows.

    Raises:
        InputError: no such result, or it is of other rows.
    """
    file = Path(path)
    if file.is_dir():
        run = RunFolder(file)
        status = run.read_manifest().get("status")
        if status != "finished":
            raise InputError(
                f"forget_quality.retain_result {path} is not the folder of a finished run (status: {status}): let "
                "that run finish first"
            )
        file = run.evaluation_file(run.read_metrics()[-1]["step"])
    try:
        measured = json.loads(file.read_text(encoding="utf-8"))["sets"][FORGET]
        ratios = [float(row["log_truth_ratio"]) for row in measured["rows"]]
        fingerprint = measured["fingerprint"]
    except FileNotFoundError:
        raise InputError(
            f"forget_quality.retain_result {path} does not exist: give the run folder of a retain-only model"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"forget_quality.retain_result {file} is not an evaluation with truth ratios of a forget set ({error!r})"
        ) from None
    if len(ratios) != len(forget.rows):
        raise InputError(
            f"forget_quality.retain_result {file} has {len(ratios)} forget rows and this run measures "
            f"{len(forget.rows)}: p-values of different counts say different things; measure the same rows"
        )
    if fingerprint != rows_fingerprint(forget.rows):
        raise InputError(
            f"forget_quality.retain_result {file} was measured on other forget rows (fingerprint "
            f"{fingerprint[:12]}, here {rows_fingerprint(forget.rows)[:12]}): give the result for this forget set"
        )
    return ratios
