"""Output head of a language model: the last hidden states to logits, with bias, scale and soft cap."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial
from transformers import PreTrainedModel

from dipo_pl.errors import InputError
from dipo_pl.models.eval_mode import eval_mode
from dipo_pl.models.hidden_states import decoder_states

# Names of the soft cap in configurations: of Gemma, RecurrentGemma, xLSTM.
SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


@dataclass
class OutputHead:
    r"""Output head of a causal language model.

        logits = cap * tanh(scale * (h W^T + b) / cap),   or scale * (h W^T + b) without a cap

    Attributes:
        weight: [V, d], possibly tied to the input embedding.
        bias: [V] or None (Phi has one).
        scale: factor on the logits (logit_scale of Cohere, 1 / logits_scaling of Granite).
        softcap: final soft cap (Gemma), or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, model: PreTrainedModel) -> "OutputHead":
        """Return the head of a causal language model of transformers.

        Raises:
            InputError: the model's output layer is not linear.
        """
        layer = model.get_output_embeddings()
        if not isinstance(layer, nn.Linear):
            raise InputError(
                f"{type(model).__name__} has no linear output head (got {type(layer).__name__}): give a "
                "causal language model whose output layer is a torch.nn.Linear"
            )
        config: Any = model.config.get_text_config()
        scale = float(getattr(config, "logit_scale", None) or 1.0)
        scale /= float(getattr(config, "logits_scaling", None) or 1.0)
        caps = (getattr(config, name, None) for name in SOFT_CAPS)
        return cls(layer.weight, layer.bias, scale, next((each for each in caps if each is not None), None))

    def map(self, function: Callable[[Tensor], Tensor]) -> "OutputHead":
        """Return the same head with `function` applied to its tensors."""
        bias = None if self.bias is None else function(self.bias)
        return replace(self, weight=function(self.weight), bias=bias)

    def cast(self, dtype: torch.dtype) -> "OutputHead":
        """Return the same head with its tensors in another dtype."""
        return self.map(lambda tensor: tensor.to(dtype))

    def gathered(self) -> "OutputHead":
        """Return the head with sharded tensors gathered; their gradient is averaged over the ranks."""
        return self.map(_gathered)

    def logits(self, states: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the logits of hidden states.

        Args:
            states: [N, d] in the dtype of the head.
            out: [N, V] float32, a buffer to write to where no gradient is needed: a buffer that is reused stays in
                the cache and costs no page faults.

        Returns:
            [N, V] float32.
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
            # Autograd needs the unscaled tanh.
            logits = capped.tanh() * self.softcap if out is None else capped.tanh_().mul_(self.softcap)
        return logits

    def linear_gradient_(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """Turn the gradient on `logits` into the gradient on h W^T + b, in place."""
        if self.softcap is not None:
            gradient.mul_(1 - (logits / self.softcap) ** 2)
        if self.scale != 1.0:
            gradient.mul_(self.scale)
        return gradient


def default_token_budget(device: torch.device) -> int:
    """Return how many positions get logits at a time: 256 on a CPU, where larger products gain nothing, else 1,024."""
    return 256 if device.type == "cpu" else 1024


def _gathered(tensor: Tensor) -> Tensor:
    if not isinstance(tensor, DTensor):
        return tensor
    return tensor.full_tensor(grad_placements=[Partial("avg")] * tensor.device_mesh.ndim)


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Compare decoder and OutputHead with the forward pass of the model itself on a few tokens.

    An architecture may do more to its logits than OutputHead knows; then training would silently use another head
    than generation.

    Raises:
        InputError: the logits differ, or are not finite, or the model changes its own weights.
    """
    head = OutputHead.of(model)
    weights = torch.stack([each.sum().float() for each in model.parameters()])
    ids = torch.arange(4, device=head.weight.device).remainder(head.weight.shape[0])[None]
    mask = torch.ones_like(ids)
    with eval_mode(model):
        states = decoder_states(model, ids, mask)
        ours = head.logits(states[0])
        theirs = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0].float()
    after = torch.stack([each.sum().float() for each in model.parameters()])
    # NaN, of weights that are broken, is no change.
    if not torch.equal(weights.nan_to_num(0.0), after.nan_to_num(0.0)):
        # They would be exported as they are after an evaluation.
        raise InputError(
            f"{type(model).__name__} changes its own weights in an evaluation: set what does that in its config.json to 0 "
            "(rescale_every of RWKV)"
        )
    if not theirs.isfinite().all():
        raise InputError(f"{type(model).__name__} gives logits that are not finite: its weights are broken")
    tolerance = 1e-3 if states.dtype == torch.float32 else 0.05
    if not torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max())):
        raise InputError(
            f"the logits of {type(model).__name__} are not its output layer applied to its decoder's last "
            f"hidden states (largest difference {float((ours - theirs).abs().max()):.3g}): this "
            "architecture changes its logits in a way that is not supported here"
        )
