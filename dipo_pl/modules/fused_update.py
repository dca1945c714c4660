"""Adam and AdamW with torch's fused update, which passes over weights and moments once a step."""

from typing import TypeVar

from torch.optim import Adam, AdamW, Optimizer

OptimizerT = TypeVar("OptimizerT", bound=Optimizer)


def fused_update(optimizer: OptimizerT) -> OptimizerT:
    """Choose the fused update for each parameter group that names neither `fused` nor `foreach`, and return the optimizer.

    The update is that of torch's default to float rounding. bfloat16 weights are updated in float32 and rounded once, where
    the default rounds after every operation.

    Left as they are:

    - other classes. SGD too: its fused update fails where a weight gets its first gradient after another one, as those of a
      mixture's experts do, and under FSDP2;
    - weights on other devices than CPUs and CUDA GPUs;
    - weights that are not contiguous, for which torch's kernel for CPUs computes something else without a word.

    Args:
        optimizer: before its first step. A state that is loaded into it brings its own choice along.
    """
    if type(optimizer) in (Adam, AdamW):
        for group in optimizer.param_groups:
            chosen = group["fused"] is not None or group["foreach"] is not None or group["differentiable"]
            weights = group["params"]
            if not chosen and all(w.device.type in ("cpu", "cuda") and w.is_contiguous() for w in weights):
                # The constructor's option would also have the optimizer unscale the gradients of 16-mixed, which
                # Lightning cannot clip then; a group's own does not.
                group["fused"] = True
    return optimizer
