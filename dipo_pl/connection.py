"""Interfaces of data module and LightningModule to each other; `ForgetRetain.setup` connects them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from transformers import PreTrainedTokenizerBase

from dipo_pl.batch import Encoded


class TrainingData(Protocol):
    """Interface of a data module to its LightningModule."""

    @property
    def training_sequences(self) -> Mapping[str, Sequence[Encoded]]:
        """All sequences that training batches are made of, by kind; `BatchSection.rows` counts in these."""

    @property
    def identity(self) -> Mapping[str, str]:
        """Fingerprints of what the sequences were made from, by name (tokenizer, prompt format, rows)."""

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence of training and evaluation."""

    def loss_weight(self, batch: int) -> float:
        """Return the factor on the loss of an epoch's batch; see `ResumableSampler.weight`."""


@runtime_checkable
class TrainedModule(Protocol):
    """Interface of a LightningModule to its data module."""

    @property
    def trains_on(self) -> tuple[str, ...]:
        """Values of `data.train_on` that the training step accepts."""

    @property
    def sections(self) -> Mapping[str, tuple[str, ...]]:
        """Kinds of sequences in each section of a training batch."""

    def tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerBase:
        """Return the model's tokenizer; one that does not exist yet is trained on `texts`."""

    def connect(self, data: TrainingData) -> None:
        """Receive the data module; called before the model is made."""
