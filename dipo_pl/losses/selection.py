"""Selection of positions by the reference's probabilities in a whole sequence, before a loss looks at single positions."""

from dataclasses import replace

import torch
from torch import Tensor

from dipo_pl.losses.base import UNSELECTED, Section
from dipo_pl.losses.heads import Heads
from dipo_pl.losses.log_probability import target_log_probability


@torch.no_grad()
def with_selection(section: Section, heads: Heads, token_budget: int) -> Section:
    """Return the section with `UNSELECTED` in the place of the targets that its loss does not select.

    Args:
        section: of any loss; that of a loss that does not select is returned as it is.
        heads: of policy and reference, gathered.
        token_budget: positions whose logits exist at a time.
    """
    loss, states = section.loss, section.reference_states
    if not loss.selects:
        return section
    assert states is not None
    pieces = zip(states.split(token_budget), section.targets.split(token_budget), strict=True)
    # Logits have the head's own precision, also under autocast, which casts no product that is written into given memory.
    found = [target_log_probability(heads.logits("reference", each), own) for each, own in pieces]
    log_probabilities = torch.cat(found) if found else section.targets.float()
    counted = [max(0, length - loss.skip) for length in section.lengths]
    # Positions that the loss skips are not among those to select from.
    left = [
        each[len(each) - count :]
        for each, count in zip(log_probabilities.split(list(section.lengths)), counted, strict=True)
    ]
    selected = loss.select(torch.cat(left) if left else log_probabilities, counted).split(counted)
    masks = [
        torch.cat([mask.new_zeros(length - len(mask)), mask])
        for mask, length in zip(selected, section.lengths, strict=True)
    ]
    mask: Tensor = torch.cat(masks) if masks else torch.zeros_like(section.targets, dtype=torch.bool)
    return replace(section, targets=section.targets.masked_fill(~mask, UNSELECTED))
