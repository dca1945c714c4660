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
from dipo_pl.run_folder import RunFolder, write_text

FORGET = "forget"


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
        rows = batch.rows.cpu()
        nll: Tensor = outputs.detach().double().cpu()
        collected.nll.update(rows, nll)
        if self.rouge:
            module: Any = pl_module
            texts = module.generate(batch.prompts, self.max_new_tokens)
            recall = metrics.rouge_l_recall(texts, batch.references)
            collected.rouge.update(rows, torch.as_tensor(recall, dtype=torch.float64)[:, None])
            collected.texts.update(zip(rows.tolist(), texts, strict=True))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        sets = {
            evaluation_set.name: self._measured(evaluation_set, collected)
            for evaluation_set, collected in zip(_evaluation_sets(trainer), self._collected, strict=True)
        }
        values = {
            f"{name}_{metric}": value
            for name, measured in sets.items()
            for metric, value in measured["metrics"].items()
        }
        values |= self._forget_quality(sets) | self._model_utility(sets)
        for name, value in values.items():
            if math.isnan(value):
                raise TrainingError(
                    f"{name} is not a number at step {trainer.global_step}: the model gives NaN"
                )
        if not trainer.sanity_checking:
            pl_module.log_dict(values, logger=False, sync_dist=False)
        self.last_step = trainer.global_step
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics(
                    {f"evaluation/{name}": value for name, value in values.items()}, trainer.global_step
                )
            self._write(trainer, sets, values)
            rank_zero_info(_summary(trainer.global_step, values))

    def _measured(self, evaluation_set: EvaluationSet, collected: _Collected) -> dict[str, Any]:
        _, nll = collected.nll.compute()
        values: dict[str, Any] = {}
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
            values["truth_ratio"] = metrics.truth_ratio(nll[:, 1], wrong)
        if self.rouge:
            values["rouge_l_recall"] = collected.rouge.compute()[1][:, 0]
        means = {name: float(each.mean()) for name, each in values.items() if name != "truth_ratio"}
        if wrong is not None:
            closeness = evaluation_set.name == FORGET
            aggregate = metrics.truth_ratio_closeness if closeness else metrics.truth_ratio_margin
            means["truth_ratio"] = float(aggregate(values["truth_ratio"]).mean())
        rows = [
            {
                "row": index,
                "question": row.question,
                "answers": answers_to_measure(row),
                "nll": nll[index].tolist(),
                **({"generation": collected.texts[index]} if index in collected.texts else {}),
                **{name: float(each[index]) for name, each in values.items()},
            }
            for index, row in enumerate(evaluation_set.rows)
        ]
        return {"metrics": means, "fingerprint": rows_fingerprint(evaluation_set.rows), "rows": rows}

    def _forget_quality(self, sets: dict[str, Any]) -> dict[str, float]:
        if self._retain_truth_ratios is None:
            return {}
        quality = metrics.forget_quality(
            [row["truth_ratio"] for row in sets[FORGET]["rows"]], self._retain_truth_ratios
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
        run = RunFolder(Path(trainer.default_root_dir))
        where = {"epoch": _epochs_done(trainer), "step": trainer.global_step}
        result = where | {"utility_sets": self.utility_sets, "metrics": values, "sets": sets}
        write_text(run.evaluation / f"step-{trainer.global_step:06d}.json", json.dumps(result, indent=1))
        run.add_metrics(where | values | {"utility_sets": self.utility_sets})


def _evaluation_sets(trainer: Trainer) -> list[EvaluationSet]:
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    sets: list[EvaluationSet] = data.evaluation_sets
    return sets


def _epochs_done(trainer: Trainer) -> float:
    """Epochs of training behind the weights that are measured; a fraction within an epoch."""
    if trainer.sanity_checking or trainer.state.fn != "fit":
        return float(trainer.current_epoch)
    done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    return round(trainer.current_epoch + done / trainer.num_training_batches, 3)


def _summary(step: int, values: dict[str, float]) -> str:
    shown = {
        "Forget Quality": "forget_quality",
        "Model Utility": "model_utility",
        "P(forget)": "forget_probability",
        "ROUGE(forget)": "forget_rouge_l_recall",
        "P(retain)": "retain_probability",
        "ROUGE(retain)": "retain_rouge_l_recall",
    }
    return f"step {step}: " + ", ".join(
        f"{name} {values[key]:.3g}" for name, key in shown.items() if key in values
    )


def read_retain_result(path: str, forget: EvaluationSet) -> list[float]:
    """The truth ratios of a retain-only model on the same forget rows.

    Raises:
        InputError: no such result, or it is of other rows.
    """
    file = Path(path)
    if file.is_dir():
        results = sorted((file / "evaluation").glob("step-*.json"))
        if not results:
            raise InputError(
                f"forget_quality.retain_result {path} holds no evaluation/step-*.json: has that run finished?"
            )
        file = results[-1]
    try:
        measured = json.loads(file.read_text(encoding="utf-8"))["sets"][FORGET]
        ratios = [float(row["truth_ratio"]) for row in measured["rows"]]
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
