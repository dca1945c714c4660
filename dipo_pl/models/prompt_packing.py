"""Hidden states of several answers to one prompt, with the prompt computed once."""

from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dipo_pl.batch import Batch, Encoded, collate
from dipo_pl.models.hidden_states import answer_states, decoder_states
from dipo_pl.private_names import attention_implementation

_supports_packing: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def row_states(model: PreTrainedModel, batch: Batch, rows: int) -> Tensor:
    """Return the last hidden states at the answer positions, [N, d], equal to those of `answer_states`.

    The K answers of a row are packed after their common prompt into one sequence, in which an answer attends to the
    prompt and to itself, with the position ids that it would have alone. Every sequence is computed separately where
    packing would cost more, in train mode, with attention kernels that take no custom mask (flash attention), and
    with attention windows shorter than a sequence.

    Args:
        model: a causal language model.
        batch: R x K sequences, row by row.
        rows: R.
    """
    # Whether a model is tried does not depend on the batch: under FSDP all ranks must make the same forward passes.
    if len(batch.lengths) > rows and _may_pack(model) and _packs_correctly(model):
        packed = _PackedRows(batch, rows)
        if packed.is_cheaper(model) and packed.fits_window(model):
            return packed.states(model)
    return answer_states(model, batch)[None]


class _PackedRows:
    """One sequence for each row: the prompt, then the answers.

    Attributes:
        ids: [R, L] tokens.
        positions: [R, L] position ids, those of the separate sequences.
        mask: [R, L, L] bool, whether a token (second axis) attends to another (third axis).
        predicting: [N] indices into the flattened [R * L] of the positions that predict an answer token.
    """

    def __init__(self, batch: Batch, rows: int) -> None:
        self.batch = batch
        sequences, time = batch.input_ids.shape
        answers = sequences // rows
        device = batch.input_ids.device
        tokens = batch.attention_mask.sum(1)
        ids = batch.input_ids.view(rows, answers, time)
        real = batch.attention_mask.view(rows, answers, time)
        common = (ids == ids[:, :1]).all(1).cumprod(1).sum(1)
        # The last token of a prompt predicts the first of an answer, so each answer keeps its own copy.
        prompts = (tokens - torch.tensor(batch.lengths, device=device) - 1).view(rows, answers).amin(1)
        shared = torch.minimum(common, prompts)[:, None, None]
        time_steps = torch.arange(time, device=device)
        first = (torch.arange(answers, device=device) == 0)[:, None]
        kept = (real & (first | (time_steps >= shared))).view(rows, -1)
        place = kept.cumsum(1) - 1
        width = int(place.max()) + 1
        row, source = kept.nonzero(as_tuple=True)
        where = row, place[row, source]
        owner = torch.where(time_steps < shared, -1, torch.arange(answers, device=device)[:, None])
        # Padding attends to the prompt and to padding: a token that attends to nothing would be NaN.
        owners = torch.full((rows, width), answers, device=device)
        owners[where] = owner.view(rows, -1)[row, source]
        self.ids = torch.zeros_like(owners)
        self.ids[where] = ids.view(rows, -1)[row, source]
        self.positions = torch.zeros_like(owners)
        self.positions[where] = source % time
        related = (owners[:, :, None] == owners[:, None, :]) | (owners[:, None, :] == -1)
        self.mask = related & torch.ones(width, width, dtype=torch.bool, device=device).tril()
        self.predicting = place.view(-1)[batch.positions] + batch.positions // (answers * time) * width

    def is_cheaper(self, model: PreTrainedModel) -> bool:
        """Return whether the saved tokens (12 d^2 products a layer) outweigh the added attention (2 d for each pair)."""
        width: int = model.config.get_text_config().hidden_size
        (sequences, time), (rows, length) = self.batch.input_ids.shape, self.ids.shape
        return rows * length**2 - sequences * time**2 < 6 * width * (sequences * time - rows * length)

    def fits_window(self, model: PreTrainedModel) -> bool:
        """Return whether every sequence fits in the attention window, which the mask does not model."""
        window: int | None = getattr(model.config.get_text_config(), "sliding_window", None)
        return window is None or self.batch.input_ids.shape[1] <= window

    def states(self, model: PreTrainedModel) -> Tensor:
        mask = self.mask[:, None]
        if _kernel(model) == "eager":
            lowest = torch.finfo(model.dtype).min
            mask = torch.zeros_like(mask, dtype=model.dtype).masked_fill(~mask, lowest)
        states = decoder_states(model, self.ids, mask, position_ids=self.positions)
        return states.flatten(0, 1).index_select(0, self.predicting)


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
        answers = [Encoded((0, 1, 2, 3, 1), 3), Encoded((0, 1, 2, 1), 3)]
        batch = collate({"answers": answers}, range(2)).to(model.get_input_embeddings().weight.device)
        whole, packed = answer_states(model, batch)[None], _PackedRows(batch, 1).states(model)
        tolerance = 1e-3 if whole.dtype == torch.float32 else 0.05
        _supports_packing[model] = torch.allclose(
            packed, whole, rtol=tolerance, atol=tolerance * float(whole.abs().max())
        )
    return _supports_packing[model]
