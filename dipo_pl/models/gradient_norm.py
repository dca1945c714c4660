"""Norm of the gradient of the loss of one answer, a membership-inference score that needs a backward pass."""

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from dipo_pl.models.head import OutputHead
from dipo_pl.models.hidden_states import decoder_states


def gradient_norm(model: PreTrainedModel, ids: Tensor, answer: slice) -> float:
    r"""Return the mean over the trained parameter tensors w of || d/dw (mean_t -log p(y_t)) ||_2.

    This is a mean of norms, not the norm of the concatenated gradient. The `.grad` of the parameters, which may be
    accumulating, is not changed.

    Source: `GradNorm` of open-unlearning, which computes it in train mode; here dropout is off.

    Args:
        model: a model in eval mode.
        ids: [T] tokens of a prompt with its answer.
        answer: positions of the answer in `ids`; starts at 1 or later.

    Returns:
        The score, in nats per unit of weight.
    """
    weights = [each for each in model.parameters() if each.requires_grad]
    # Lightning validates in inference mode, whose tensors cannot take part in a backward pass.
    with torch.inference_mode(False), torch.enable_grad():
        row = ids.clone()[None]
        states = decoder_states(model, row, torch.ones_like(row, dtype=torch.bool))[0]
        logits = OutputHead.of(model).logits(states[answer.start - 1 : answer.stop - 1])
        loss = functional.cross_entropy(logits, row[0, answer])
        gradients = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
    return float(torch.stack([each.float().norm() for each in gradients]).mean())
