"""A few questions with what the model answers, as text in TensorBoard: before, during and after."""

from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from dipo_pl.errors import InputError


class Samples(Callback):
    """Writes generated answers to the first rows of each evaluation set at every validation.

    Args:
        rows: of each set; 0 writes none.
        max_new_tokens: length at which an answer is cut.
    """

    def __init__(self, rows: int = 3, max_new_tokens: int = 64) -> None:
        if rows < 0 or max_new_tokens < 1:
            raise InputError(
                f"samples.rows must be at least 0 and samples.max_new_tokens at least 1, got {rows} and {max_new_tokens}"
            )
        self.rows = rows
        self.max_new_tokens = max_new_tokens

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if self.rows == 0 or not boards or not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        module: Any = pl_module
        for evaluation_set in data.evaluation_sets:
            rows = evaluation_set.rows[: self.rows]
            texts = module.generate(data.prompts(evaluation_set.name, len(rows)), self.max_new_tokens)
            lines = ["| question | true answer | the model's |", "|---|---|---|"]
            lines += [
                f"| {_cell(row.question)} | {_cell(row.answer)} | {_cell(text)} |"
                for row, text in zip(rows, texts, strict=True)
            ]
            for board in boards:
                board.experiment.add_text(
                    f"samples/{evaluation_set.name}", "\n".join(lines), trainer.global_step
                )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
