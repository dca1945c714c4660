"""A few questions with what the model answers, as text in TensorBoard: before, during and after."""

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from dipo_pl.callbacks.forget_quality import ForgetQuality
from dipo_pl.errors import InputError


class Samples(Callback):
    """Writes the answers that an evaluation generated to the first rows of each set.

    Args:
        rows: of each set; 0 writes none.
    """

    def __init__(self, rows: int = 3) -> None:
        if rows < 0:
            raise InputError(f"samples.rows must be at least 0, got {rows}")
        self.rows = rows

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        result = ForgetQuality.of(trainer).result
        if result is None or not trainer.is_global_zero:
            return
        for name, found in result.sets.items():
            rows = [row for row in found.rows[: self.rows] if "generation" in row]
            lines = ["| question | true answer | the model's |", "|---|---|---|"]
            lines += [
                f"| {_cell(row['question'])} | {_cell(row['answers'][0])} | {_cell(row['generation'])} |"
                for row in rows
            ]
            for board in boards if rows else ():
                board.experiment.add_text(f"samples/{name}", "\n".join(lines), trainer.global_step)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
