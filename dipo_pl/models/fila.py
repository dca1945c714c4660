"""FILA: adapters that start from the part of the weights that matters for forget rows more than for retain rows."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from dipo_pl.batch import Encoded
from dipo_pl.errors import InputError, check_count, check_number
from dipo_pl.models.adapters import NAME, adapted_layers
from dipo_pl.models.eval_mode import eval_mode
from dipo_pl.models.head import OutputHead
from dipo_pl.models.hidden_states import decoder_states
from dipo_pl.models.weight_sample import sampled


class FILA:
    r"""Initialization of LoRA by Fisher information: A and B of each layer approximate its most important rows.

        F = sum_s n_s (dl_s / dW)^2 / sum_s n_s       of forget rows, F_f, and of retain rows, F_r, entry by entry
        r_i = sqrt(sum_j F_f,ij / (epsilon + F_r,ij))
        U S V^T = the `rank` largest singular values and vectors of diag(r) W
        A = sqrt(S / c) V^T,   B = diag(1 / (epsilon + r)) U sqrt(S / c),   W <- W - c B A,   c = alpha / rank

    with l_s the mean loss of a token of answer s in nats and n_s its tokens. The model computes what it computed before,
    to rounding in the data type of W, but what is trained begins in the directions that hold the forget rows.

    The policy without its adapters is then no longer the model before training, so that the reference is a FrozenCopy or
    StoredStates, and an adapter cannot be exported alone. Costs a backward pass for each row before training, also
    when a run resumes, and 8 bytes for each weight under an adapter meanwhile, which `dipo-pl plan` does not count.

    Source: Cha et al. 2025, arXiv:2408.06621, and its code. There the gradients are those of batches, the decomposition is a
    randomized one, and each forget row comes with one retain row, as here, where these are evenly spaced.

    Args:
        rows: forget rows, and as many retain rows, that the importance is computed from, at least 1; null takes all
            forget rows.
        epsilon: added to denominators, > 0 (1e-5 in the code).

    Attributes:
        before: sample of the weights under adapters as they were, once they are changed.
    """

    def __init__(self, rows: int | None = None, epsilon: float = 1e-5) -> None:
        check_count("FILA.rows", rows)
        check_number("FILA.epsilon", epsilon, above=0)
        self.rows = rows
        self.epsilon = epsilon
        self.before: dict[str, Tensor] = {}

    def apply(self, model: PreTrainedModel, forget: Sequence[Encoded], retain: Sequence[Encoded]) -> None:
        """Initialize the adapters of a model, in place, and change the weights under them.

        Args:
            model: a model with adapters as LoRA leaves them, not sharded.
            forget: sequences to forget.
            retain: sequences to keep.

        Raises:
            InputError: an adapter is on experts in one tensor, or a gradient is not finite.
        """
        layers = adapted_layers(model)
        for name, layer in layers.items():
            if getattr(layer, "parameter_name", "weight") != "weight":
                raise InputError(
                    f"model.policy.adapter.initialization: FILA cannot initialize adapters of experts in one tensor "
                    f"({name}): leave them out of model.policy.adapter.targets"
                )
        weights = {name: layer.get_base_layer().weight for name, layer in layers.items()}
        count = min(self.rows or len(forget), len(forget))
        self.before = sampled({f"{name}.weight": each for name, each in weights.items()})
        of_forget = importance(model, weights, _evenly(forget, count))
        of_retain = importance(model, weights, _evenly(retain, count))
        for name, layer in layers.items():
            relative = of_forget.pop(name) / (self.epsilon + of_retain.pop(name))
            self._initialize(name, layer, relative)
        rank_zero_info(
            f"FILA: adapters start from the weights that matter for {count} forget rows against "
            f"{min(count, len(retain))} retain rows"
        )

    @torch.no_grad()
    def _initialize(self, name: str, layer: Any, relative: Tensor) -> None:
        base = layer.get_base_layer().weight
        scale, rank = layer.scaling[NAME], layer.r[NAME]
        # The layers of GPT-2 hold the transpose of W.
        transposed = bool(layer.fan_in_fan_out)
        weight = (base.T if transposed else base).float()
        rows = (relative.T if transposed else relative).sum(dim=1).sqrt()
        if not bool(rows.isfinite().all()):
            raise InputError(
                f"model.policy.adapter.initialization: FILA's importance of {name} is not finite: load the policy in "
                "float32 (model.policy.dtype)"
            )
        u, s, v = torch.linalg.svd(rows[:, None] * weight, full_matrices=False)
        root = (s[:rank] / scale).sqrt()
        a, b = root[:, None] * v[:rank], u[:, :rank] * root / (self.epsilon + rows)[:, None]
        for part, value in ((layer.lora_A, a), (layer.lora_B, b)):
            own = part[NAME].weight
            # Zeros where the layer is smaller than the rank.
            own.zero_()[tuple(slice(0, size) for size in value.shape)] = value.to(own.dtype)
        product = scale * (layer.lora_B[NAME].weight.float() @ layer.lora_A[NAME].weight.float())
        base.sub_((product.T if transposed else product).to(base.dtype))


def importance(
    model: PreTrainedModel, weights: Mapping[str, nn.Parameter], sequences: Sequence[Encoded]
) -> dict[str, Tensor]:
    """Return the Fisher information F of weights by name, float32 in their shapes; see `FILA`.

    Args:
        model: a model, which is left as it was.
        weights: some of its weights, which may be frozen.
        sequences: at least one, each with an answer.
    """
    sums = {name: torch.zeros_like(each, dtype=torch.float32) for name, each in weights.items()}
    tokens = 0
    with eval_mode(model), _differentiable(model, weights), torch.inference_mode(False), torch.enable_grad():
        for each in sequences:
            row = torch.tensor([each.ids], device=model.get_input_embeddings().weight.device)
            states = decoder_states(model, row, torch.ones_like(row, dtype=torch.bool))[0]
            logits = OutputHead.of(model).logits(states[each.answer_start - 1 : -1])
            loss = functional.cross_entropy(logits, row[0, each.answer_start :])
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            for total, gradient in zip(sums.values(), gradients, strict=True):
                if gradient is not None:
                    total.add_(gradient.float().square(), alpha=each.answer_length)
            tokens += each.answer_length
    return {name: total.div_(max(1, tokens)) for name, total in sums.items()}


@contextmanager
def _differentiable(model: PreTrainedModel, weights: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Have gradients computed of these weights alone."""
    before = {each: each.requires_grad for each in model.parameters()}
    try:
        for parameter in before:
            parameter.requires_grad_(False)
        for parameter in weights.values():
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, wanted in before.items():
            parameter.requires_grad_(wanted)


def _evenly(sequences: Sequence[Encoded], count: int) -> list[Encoded]:
    """Return `count` evenly spaced ones that have an answer, or all if there are fewer."""
    usable = [each for each in sequences if each.answer_length]
    count = min(count, len(usable))
    return [usable[place * len(usable) // count] for place in range(count)]
