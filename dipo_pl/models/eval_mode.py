"""Eval mode for the length of a block, and training without noise."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

# Settings of configurations and modules that make forward passes in train mode random: attention_dropout, resid_pdrop,
# layerdrop, router_jitter_noise. Those of heads that a language model does not have are left out.
NOISE = re.compile(r"^(?!summary|classifier).*(drop|jitter|noise)")


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode; afterwards each of its modules has the mode that it had before."""
    training = [each for each in model.modules() if each.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def noise_settings(model: PreTrainedModel) -> dict[str, float]:
    """Return the settings that make forward passes in train mode random, with their values."""
    found = _noise(model.config.get_text_config().to_dict())
    for name, module in model.named_modules():
        if type(module).__name__.endswith("Dropout") and getattr(module, "p", 0) not in (0, *found.values()):
            found[name] = float(module.p)  # type: ignore[arg-type]
    return found


def without_noise(model: PreTrainedModel) -> None:
    """Switch off dropout and other noise of train mode, for as long as the modes of the modules are not changed."""
    if not noise_settings(model):
        # Eval mode may mean more than that: RWKV then rescales its weights.
        return
    model.eval()
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            # Activations are recomputed in train mode only.
            module.training = True
            for name in _noise(vars(module)):
                setattr(module, name, 0.0)


def _noise(values: dict[str, object]) -> dict[str, float]:
    return {
        name: value
        for name, value in values.items()
        if NOISE.match(name) and isinstance(value, int | float) and value is not True and value > 0
    }
