"""Fine-tuning: makes the target model that knows all rows, and the retain-only model it is compared with."""

from typing import ClassVar

from torch import Tensor

from dipo_pl.batch import Batch
from dipo_pl.losses.cross_entropy import CrossEntropy
from dipo_pl.losses.engine import sequence_objective
from dipo_pl.models.head import OutputHead
from dipo_pl.models.hidden_states import answer_states
from dipo_pl.modules.base import LanguageModule


class FineTuning(LanguageModule):
    """Trains with cross-entropy on the answers of the rows that the data module's `train_on` names.

    Dropout is that of the model's configuration, which there is no reference to be compared with.
    """

    trains_on: ClassVar[tuple[str, ...]] = ("all", "retain", "forget")

    @property
    def sections(self) -> dict[str, tuple[str, ...]]:
        """All rows of a batch, in one section."""
        return {"train": ("train",)}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the cross-entropy of a batch."""
        objective = sequence_objective(
            answer_states(self.language_model, batch)[None],
            batch.targets,
            batch.lengths,
            OutputHead.of(self.language_model),
            CrossEntropy(),
            token_budget=self.token_budget,
        )
        self.log_objective("loss", objective, len(batch.sections["train"]))
        return self.weighted(objective.loss, batch_idx)
