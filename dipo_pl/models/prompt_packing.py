"""Hidden states of several answers to one prompt, with all that they begin with alike computed once."""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dipo_pl.batch import Batch, Encoded, collate
from dipo_pl.models.hidden_states import answer_states, decoder_states
from dipo_pl.private_names import attention_implementation

_supports_packing: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def row_states(model: PreTrainedModel, batch: Batch, rows: int) -> tuple[Tensor, Tensor]:
    """Return the last hidden states at the answer positions, equal to those of `answer_states`, each once.

    The K answers of a row are packed into one sequence, in which all that several of them begin with is computed once: the
    prompt, and the beginnings that answers share. A token attends to those before it in its answer, with the position id
    that it would have alone. Every sequence is computed separately where packing would cost more, in train mode, with
    attention kernels that take no custom mask (flash attention), and with attention windows shorter than a sequence.

    Args:
        model: a causal language model.
        batch: R x K sequences, row by row.
        rows: R.

    Returns:
        [U, d] states; [N] int64, for each answer token the state that predicts it.
    """
    # Whether a model is tried does not depend on the batch: under FSDP all ranks must make the same forward passes.
    if len(batch.lengths) > rows and _may_pack(model) and _packs_correctly(model):
        packed = _PackedRows(batch, rows)
        if packed.is_cheaper(model) and packed.fits_window(model):
            predicting, places = packed.predicting.unique(return_inverse=True)
            return packed.states(model).index_select(0, predicting), places
    states = answer_states(model, batch)[None]
    return states, torch.arange(len(states), device=states.device)


class _PackedRows:
    """Sequences of the trees of some rows: the tree of a row has all that its answers begin with, each beginning once.

    A node is a token, and stands for the answers that agree up to it. The last token of an answer predicts nothing, so it
    is no node unless another answer goes on from it. Short trees follow each other in one sequence.

    Attributes:
        ids: [B, L] tokens.
        positions: [B, L] position ids, those of the separate sequences.
        mask: [B, L, L] bool, whether a token (second axis) attends to another (third axis).
        predicting: [N] indices into the flattened [B * L] of the positions that predict an answer token.
    """

    def __init__(self, batch: Batch, rows: int) -> None:
        self.batch = batch
        sequences, time = batch.input_ids.shape
        answers = sequences // rows
        device = batch.input_ids.device
        steps = torch.arange(time, device=device)
        lengths = batch.attention_mask.sum(1).view(rows, answers, 1)
        ids = batch.input_ids.view(rows, answers, time)
        # Padding is like no token, so an answer may end where another goes on.
        marked = ids.masked_fill(steps >= lengths, -1)
        alike = (marked[:, :, None] == marked[:, None]).cumprod(3)
        # The first of the answers that agree up to a token has its node, [R, K, T].
        owner = alike.argmax(2)
        predicts = (steps < lengths - 1).int()
        is_node = torch.zeros_like(predicts).scatter_reduce(1, owner, predicts, "amax").bool()
        place = (is_node.flatten(1).cumsum(1) - 1).view_as(owner)
        sizes = is_node.sum((1, 2)).tolist()
        starts, shape = _laid_out(sizes)
        self.ids = torch.zeros(shape, dtype=torch.long, device=device)
        self.positions = torch.zeros_like(self.ids)
        # Padding attends to itself: a token that attends to nothing would be NaN.
        self.mask = torch.eye(shape[1], dtype=torch.bool, device=device).repeat(shape[0], 1, 1)
        for row, ((sequence, start), size) in enumerate(zip(starts, sizes, strict=True)):
            here = slice(start, start + size)
            of, step = is_node[row].nonzero(as_tuple=True)
            self.ids[sequence, here] = ids[row][of, step]
            self.positions[sequence, here] = step
            # Which node a node's answer has at the step of another.
            through = owner[row][of][:, step] == of
            self.mask[sequence, here, here] = through & (step <= step[:, None])
        flat = torch.tensor([sequence * shape[1] + start for sequence, start in starts], device=device)
        self.predicting = (place.gather(1, owner) + flat[:, None, None]).flatten()[batch.positions]

    def is_cheaper(self, model: PreTrainedModel) -> bool:
        """Return whether the saved tokens (12 d^2 products a layer) outweigh the added attention (2 d for each pair)."""
        width: int = model.config.get_text_config().hidden_size
        (sequences, time), (packed, length) = self.batch.input_ids.shape, self.ids.shape
        return packed * length**2 - sequences * time**2 < 6 * width * (sequences * time - packed * length)

    def fits_window(self, model: PreTrainedModel) -> bool:
        """Return whether every sequence fits in the attention window, which the mask does not model."""
        window: int | None = getattr(model.config.get_text_config(), "sliding_window", None)
        return window is None or self.batch.input_ids.shape[1] <= window

    def states(self, model: PreTrainedModel) -> Tensor:
        mask = self.mask[:, None]
        if _kernel(model) == "eager":
            lowest = torch.finfo(model.dtype).min
            mask = torch.zeros_like(mask, dtype=model.dtype).masked_fill(~mask, lowest)
        return decoder_states(model, self.ids, mask, position_ids=self.positions).flatten(0, 1)


def _laid_out(sizes: Sequence[int]) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Lay trees of these sizes in sequences as long as the longest, by first fit: where each starts, and the shape."""
    width = max(sizes)
    used: list[int] = []
    starts = [(0, 0)] * len(sizes)
    for row in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
        sequence = next((place for place, each in enumerate(used) if each + sizes[row] <= width), len(used))
        used += [0] * (sequence == len(used))
        starts[row] = sequence, used[sequence]
        used[sequence] += sizes[row]
    return starts, (len(used), width)


def _kernel(model: PreTrainedModel) -> str:
    return attention_implementation(model.config.get_text_config())


def _may_pack(model: PreTrainedModel) -> bool:
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        not model.training
        and _kernel(model) in ("sdpa", "eager")
        and model.is_backend_compatible()
        and kinds <= {"full_attention", "sliding_attention"}
    )


@torch.no_grad()
def _packs_correctly(model: PreTrainedModel) -> bool:
    """Return whether packing gives equal states on a few tokens: some architectures use the mask in other ways."""
    if model not in _supports_packing:
        answers = [Encoded((0, 1, 2, 3, 1), 2), Encoded((0, 1, 1, 2), 2)]
        batch = collate({"answers": answers}, range(2)).to(model.get_input_embeddings().weight.device)
        rows = _PackedRows(batch, 1)
        whole, packed = answer_states(model, batch)[None], rows.states(model).index_select(0, rows.predicting)
        tolerance = 1e-3 if whole.dtype == torch.float32 else 0.05
        # States of a broken model are NaN, for which `allclose` has no tolerance: the answers' losses tell.
        allowed = tolerance * (whole.abs().max() + whole.abs())
        _supports_packing[model] = bool(((packed - whole).abs() <= allowed).all())
    return _supports_packing[model]
