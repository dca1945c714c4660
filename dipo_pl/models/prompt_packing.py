"""Hidden states of a row's answers with the prompt that they share computed once."""

from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dipo_pl.batch import Batch, Encoded, collate
from dipo_pl.models.hidden_states import answer_states, decoder_states

_packs: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def row_states(model: PreTrainedModel, batch: Batch, rows: int) -> Tensor:
    """[N, d] last hidden states at the answer positions, as `answer_states` gives them.

    A row's K answers are packed behind their common prompt into one sequence, in which an answer sees the
    prompt and itself alone, at the positions that it would have by itself. Where the model cannot do so, or it
    does not pay, every sequence is computed whole. That is so in train mode, with kernels that take no mask
    of one's own (flash attention), and with windows shorter than a sequence.

    Args:
        batch: R x K sequences, row by row.
        rows: R.
    """
    # Whether a model is tried does not depend on the batch: under FSDP all ranks make the same forward passes.
    if len(batch.lengths) > rows and _may_pack(model) and _known_to_pack(model):
        packed = _Packed(batch, rows)
        if packed.pays(model) and packed.fits(model):
            return packed.states(model)
    return answer_states(model, batch)[None]


class _Packed:
    """
    Attributes:
        ids, positions: [R, L] tokens, and where each stands in its own sequence.
        seen: [R, L, L] bool, whether a token (second axis) sees another (third axis).
        predicting: [N] places in the flattened [R * L] of the positions that predict an answer token.
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
        # The last token of a prompt predicts the first of an answer, and stays with it.
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
        # Padding sees the prompt and other padding: a token that sees nothing would be NaN.
        owners = torch.full((rows, width), answers, device=device)
        owners[where] = owner.view(rows, -1)[row, source]
        self.ids = torch.zeros_like(owners)
        self.ids[where] = ids.view(rows, -1)[row, source]
        self.positions = torch.zeros_like(owners)
        self.positions[where] = source % time
        own = (owners[:, :, None] == owners[:, None, :]) | (owners[:, None, :] == -1)
        self.seen = own & torch.ones(width, width, dtype=torch.bool, device=device).tril()
        self.predicting = place.view(-1)[batch.positions] + batch.positions // (answers * time) * width

    def pays(self, model: PreTrainedModel) -> bool:
        """Whether the tokens saved, about 12 d^2 weights each in a layer, outweigh 2 d for each further pair seen."""
        width: int = model.config.get_text_config().hidden_size
        (sequences, time), (rows, length) = self.batch.input_ids.shape, self.ids.shape
        return rows * length**2 - sequences * time**2 < 6 * width * (sequences * time - rows * length)

    def fits(self, model: PreTrainedModel) -> bool:
        """Whether no sequence is longer than a window: the mask here knows of none."""
        window: int | None = getattr(model.config.get_text_config(), "sliding_window", None)
        return window is None or self.batch.input_ids.shape[1] <= window

    def states(self, model: PreTrainedModel) -> Tensor:
        mask = self.seen[:, None]
        if _kernel(model) == "eager":
            lowest = torch.finfo(model.dtype).min
            mask = torch.zeros_like(mask, dtype=model.dtype).masked_fill(~mask, lowest)
        states = decoder_states(model, self.ids, mask, position_ids=self.positions)
        return states.flatten(0, 1).index_select(0, self.predicting)


def _kernel(model: PreTrainedModel) -> str:
    return str(model.config.get_text_config()._attn_implementation)


def _may_pack(model: PreTrainedModel) -> bool:
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        not model.training
        and _kernel(model) in ("sdpa", "eager")
        and getattr(model, "_supports_attention_backend", False)
        and kinds <= {"full_attention", "sliding_attention"}
    )


@torch.no_grad()
def _known_to_pack(model: PreTrainedModel) -> bool:
    """Tries it on a few tokens, once a model: some architectures do more with a mask than is known here."""
    if model not in _packs:
        answers = [Encoded((0, 1, 2, 3, 1), 3), Encoded((0, 1, 2, 1), 3)]
        batch = collate({"answers": answers}, range(2)).to(model.get_input_embeddings().weight.device)
        whole, packed = answer_states(model, batch)[None], _Packed(batch, 1).states(model)
        tolerance = 1e-3 if whole.dtype == torch.float32 else 0.05
        _packs[model] = torch.allclose(
            packed, whole, rtol=tolerance, atol=tolerance * float(whole.abs().max())
        )
    return _packs[model]
