"""The tokens of the entities that are looked for in a model's layers, in batches."""

from collections.abc import Sequence

import torch

from dipo_pl.attacks.subject import Subject
from dipo_pl.batch import Batch, collate
from dipo_pl.data_modules.evaluation_sets import evaluation_batches


def entity_batches(subject: Subject) -> tuple[list[list[int]], list[Batch]]:
    """Return batches of the forget rows up to the end of their entities: the rows of each, and the batch.

    They do not depend on the number of ranks.
    """
    encoded = [subject.encoder.entity(row) for row in subject.forget.rows]
    places = evaluation_batches([[each] for each in encoded], subject.data.evaluation_tokens)
    return places, [collate({"entity": [encoded[row] for row in some]}, some) for some in places]


def span_of(subject: Subject) -> list[str]:
    """Return what is looked for in each row: its entity, or its answer."""
    return ["answer" if row.entity is None else "entity" for row in subject.forget.rows]


def in_row_order(places: Sequence[Sequence[int]], found: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return values of the rows of all batches, [S, ...] each, in the order of the rows."""
    order = torch.tensor([row for some in places for row in some])
    values = torch.cat(list(found))
    return values[order.argsort()]
