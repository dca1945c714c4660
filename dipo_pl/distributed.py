"""Primitives for modules and tensors that are sharded over ranks (DTensors)."""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from dipo_pl.errors import InputError, TrainingError

Module = TypeVar("Module", bound=nn.Module)
T = TypeVar("T")


def is_sharded(model: nn.Module) -> bool:
    """Return whether each rank holds a shard of the model; then all ranks must run the same forward passes."""
    return any(isinstance(each, FSDPModule) for each in model.modules())


def is_shard(tensor: Tensor) -> bool:
    """Return whether the tensor is sharded over all ranks."""
    return isinstance(tensor, DTensor)


def local_tensor(tensor: Tensor) -> Tensor:
    """Return this rank's shard, which shares memory with the tensor; any other tensor is returned as it is.

    Autograd does not follow it: call without gradients.
    """
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def all_reduce(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Replace each tensor by its sum over all ranks, in place, and return the tensors. A collective."""
    # All are started at once, so that they overlap.
    for work in [dist.all_reduce(each, async_op=True) for each in tensors]:
        if work is not None:
            work.wait()
    return tensors


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor, on all ranks; any other tensor is returned as it is. A collective."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict with full tensors; of a sharded model, on rank 0 alone. A collective.

    Tensors are gathered one at a time and kept on the CPU of rank 0. Tied weights stay one tensor.
    """
    if not is_sharded(model):
        return dict(model.state_dict())
    state: dict[str, Any] = model.state_dict(keep_vars=True)
    gathered: dict[int, Tensor] = {}
    for each in state.values():
        if id(each) not in gathered:
            full = full_tensor(each).detach()
            gathered[id(each)] = full.cpu() if dist.get_rank() == 0 else each
    return {name: gathered[id(each)] for name, each in state.items()} if dist.get_rank() == 0 else {}


def total_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Return the L2 norm of all gradients together. A collective where they are sharded."""
    return full_tensor(get_total_norm([each.grad for each in parameters if each.grad is not None]))


def copy_module(model: Module, convert: Callable[[Tensor], Tensor]) -> Module:
    """Return a copy of the module with `convert(parameter)` in the place of each parameter."""
    memo: dict[int, Any] = {
        id(each): nn.Parameter(convert(each), each.requires_grad) for each in model.parameters()
    }
    return copy.deepcopy(model, memo)


def frozen_view(model: Module) -> Module:
    """Return a frozen copy in eval mode that shares the parameters' memory until one of both is sharded."""
    return copy_module(model, Tensor.detach).eval().requires_grad_(False)


def on_all_ranks(step: Callable[[], T]) -> list[T]:
    """Run a step on every rank and return every rank's result; where it fails on one, it fails on all.

    Raises:
        TrainingError: of the first rank that failed, on all ranks (a WriteError stays one).
        InputError: of the first rank, if no rank failed otherwise.
    """
    result: Any = None
    error: TrainingError | InputError | None = None
    try:
        result = step()
    except (TrainingError, InputError) as failed:
        error = failed
    except Exception as failed:
        error = TrainingError(f"rank {dist.get_rank()}: {type(failed).__name__}: {failed}")
        error.__cause__ = failed
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, (result, error))
    failures = [failure for _, failure in outcomes if failure is not None]
    # The same kind on all ranks, which may go on after an InputError.
    kind = TrainingError if any(isinstance(each, TrainingError) for each in failures) else InputError
    if isinstance(error, kind):
        raise error
    for failure in failures:
        if isinstance(failure, kind):
            raise failure
    return [each for each, _ in outcomes]
