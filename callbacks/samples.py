"""Callback that shows questions with the model's answers in TensorBoard."""

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from dipo_pl.callbacks.forget_quality import ForgetQuality
from dipo_pl.errors import check_count


class Samples(Callback):
    """Callback that writes the generated answers to the first rows of each evaluation set as text to TensorBoard.

    Args:
        rows: number of rows per set; 0 writes none.
    """

    def __init__(self, rows: int = 3) -> None:
        check_count("samples.rows", rows, 0)
        self.rows = rows

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a table of questions and answers for each set whose answers were generated."""
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        result = ForgetQuality.of(trainer).result
        if result is None or not trainer.is_global_zero:
            return
        for name, found in result.sets.items():
            rows = [row for row in found.rows[: self.rows] if "generation" in row]
            lines = ["| question | true answer | model's answer |", "|---|---|---|"]
            lines += [
                f"| {_cell(row['question'])} | {_cell(row['answers'][0])} | {_cell(row['generation'])} |"
                for row in rows
            ]
            for board in boards if rows else ():
                board.experiment.add_text(f"samples/{name}", "\n".join(lines), result.step)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
