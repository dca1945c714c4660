"""A language model's output head, from the last hidden states to logits, with all that models put into it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial
from transformers import PreTrainedModel

from dipo_pl.errors import InputError
from dipo_pl.models.hidden_states import decoder_states


@dataclass
class OutputHead:
    r"""logits = cap * tanh(scale * (h W^T + b) / cap), the cap where there is one.

    Attributes:
        weight: [V, d], possibly tied to the input embedding.
        bias: [V] or None (Phi has one).
        scale: factor on the logits (Cohere's logit_scale, one over Granite's logits_scaling).
        softcap: Gemma's final soft cap, or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, model: PreTrainedModel) -> "OutputHead":
        """The head of a transformers causal LM.

        Raises:
            InputError: the model's output layer is not linear.
        """
        layer = model.get_output_embeddings()
        if not isinstance(layer, nn.Linear):
            raise InputError(
                f"{type(model).__name__} has no linear output head (got {type(layer).__name__}): it is not "
                "a causal language model that can be trained here"
            )
        config: Any = model.config.get_text_config()
        scale = float(getattr(config, "logit_scale", None) or 1.0)
        scale /= float(getattr(config, "logits_scaling", None) or 1.0)
        return cls(layer.weight, layer.bias, scale, getattr(config, "final_logit_softcapping", None))

    def cast(self, dtype: torch.dtype) -> "OutputHead":
        """The same head with its tensors in another dtype."""
        bias = None if self.bias is None else self.bias.to(dtype)
        return OutputHead(self.weight.to(dtype), bias, self.scale, self.softcap)

    def gathered(self) -> "OutputHead":
        """The whole head where each rank has a part of it; its gradient is averaged over the ranks."""
        bias = None if self.bias is None else _whole(self.bias)
        return OutputHead(_whole(self.weight), bias, self.scale, self.softcap)

    def logits(self, states: Tensor, out: Tensor | None = None) -> Tensor:
        """[N, d] hidden states in the head's dtype -> [N, V] logits in float32.

        Without gradients they may be written to `out`, [N, V] float32: memory that is used again is in
        the cache, and costs no page faults.
        """
        if out is None:
            logits = nn.functional.linear(states, self.weight, self.bias).float()
        elif self.weight.dtype == torch.float32:
            logits = torch.mm(states, self.weight.t(), out=out)
            if self.bias is not None:
                logits += self.bias
        else:
            logits = out.copy_(nn.functional.linear(states, self.weight, self.bias))
        if self.scale != 1.0:
            logits = logits.mul_(self.scale)
        if self.softcap is not None:
            capped = logits.div_(self.softcap)
            # Autograd needs the tanh as it was.
            logits = capped.tanh() * self.softcap if out is None else capped.tanh_().mul_(self.softcap)
        return logits

    def linear_gradient_(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """In place: the gradient on `logits` becomes the gradient on h W^T + b."""
        if self.softcap is not None:
            gradient.mul_(1 - (logits / self.softcap) ** 2)
        if self.scale != 1.0:
            gradient.mul_(self.scale)
        return gradient


def default_token_budget(device: torch.device) -> int:
    """Return how many positions' logits exist at a time by default.

    That is 256 on a CPU, where larger matrix products are no faster, and 1,024 on other devices.
    """
    return 256 if device.type == "cpu" else 1024


def _whole(tensor: Tensor) -> Tensor:
    if not isinstance(tensor, DTensor):
        return tensor
    return tensor.full_tensor(grad_placements=[Partial("avg")] * tensor.device_mesh.ndim)


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Compares decoder and OutputHead with the model's own forward pass on a few tokens.

    A model may do more to its logits than is known here; training with another head than generation
    uses would go wrong without a sign.

    Raises:
        InputError: they disagree.
    """
    head = OutputHead.of(model)
    ids = torch.arange(4, device=head.weight.device).remainder(head.weight.shape[0])[None]
    mask = torch.ones_like(ids)
    training = model.training
    model.eval()
    states = decoder_states(model, ids, mask)
    ours = head.logits(states[0])
    theirs = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0].float()
    model.train(training)
    if not theirs.isfinite().all():
        raise InputError(f"{type(model).__name__} gives logits that are not finite: its weights are broken")
    tolerance = 1e-3 if states.dtype == torch.float32 else 0.05
    if not torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max())):
        raise InputError(
            f"the logits of {type(model).__name__} are not its output layer applied to its decoder's last "
            f"hidden states (largest difference {float((ours - theirs).abs().max()):.3g}): this "
            "architecture does something to its logits that is not known here"
        )
