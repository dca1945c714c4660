"""How far one answer would move the weights: a membership score that needs a backward pass."""

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from dipo_pl.models.head import OutputHead
from dipo_pl.models.hidden_states import decoder_states


def gradient_norm(model: PreTrainedModel, ids: Tensor, answer: slice) -> float:
    r"""Mean over the trained parameter tensors of || d/dw (mean_t -log p(y_t)) ||_2.

    Not the norm of all gradients together; gradients that are being accumulated are left as they are.
    Source: open-unlearning's `GradNorm`, which computes it in train mode; here dropout is off.

    Args:
        ids: [T] a prompt with its answer.
        answer: the answer's tokens among them; it starts at 1 or later.
    """
    weights = [each for each in model.parameters() if each.requires_grad]
    # Lightning measures in inference mode, whose tensors no backward pass can use.
    with torch.inference_mode(False), torch.enable_grad():
        row = ids.clone()[None]
        states = decoder_states(model, row, torch.ones_like(row, dtype=torch.bool))[0]
        logits = OutputHead.of(model).logits(states[answer.start - 1 : answer.stop - 1])
        loss = functional.cross_entropy(logits, row[0, answer])
        gradients = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
    return float(torch.stack([each.float().norm() for each in gradients]).mean())
