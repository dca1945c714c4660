"""Models of which every device holds a part: what PyTorch's two FSDPs and ZeRO-3 share, and whole tensors of them."""

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.strategy import Strategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.utils import get_total_norm
from transformers import PreTrainedModel

from dipo_pl.errors import InputError
from dipo_pl.storage.checkpoint_io import read_checkpoint


class ShardingStrategy(Strategy):
    """Data parallel over all devices, each of which holds a part of the policy and of its frozen reference.

    Checkpoints resume under any other strategy, and those of any other under these.
    """

    def load(self, make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
        """The model that `make` gives on the first process, on all; elsewhere its parameters are on the meta device.

        So a model is in memory whole once, and goes to the other devices tensor by tensor when it is sharded.

        Raises:
            InputError: from `make`, on all processes.
        """
        made: PreTrainedModel | None = None
        told: PreTrainedModel | InputError | None = None
        if self.is_global_zero:
            try:
                made = make()
                told = twin(made, lambda each: torch.empty_like(each, device="meta"))
            except InputError as error:
                told = error
        told = self.broadcast(told)
        if isinstance(told, InputError):
            raise told
        model = made if made is not None else told
        assert model is not None
        return model

    @abstractmethod
    def shard(self, model: PreTrainedModel) -> PreTrainedModel:
        """Shards, in place, a model that `load` has given, or a twin of one.

        Raises:
            InputError: it cannot be sharded so.
        """

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        # Mapped, not read: each process takes its own parts of it.
        return read_checkpoint(Path(self.broadcast(checkpoint_path)))

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True


class FullyShardedStrategy(ShardingStrategy, ModelParallelStrategy):
    """FSDP of either kind.

    Lightning's own ModelParallelStrategy takes the devices of a node for tensor parallel by default, and the ranks
    of a model that is not written for that diverge without a word.
    """

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()


def is_sharded(model: nn.Module) -> bool:
    """Whether each rank has a part of it; then all ranks must make the same forward passes."""
    in_units = any(isinstance(each, FSDPModule | FullyShardedDataParallel) for each in model.modules())
    return in_units or any(map(of_zero, model.parameters()))


def of_zero(tensor: Tensor) -> bool:
    """Whether ZeRO-3 has it in parts; but for the time that it is used it is then empty."""
    return hasattr(tensor, "ds_id")


def unit_of(parameter: Tensor) -> FullyShardedDataParallel | None:
    """The unit of FSDP1 that a parameter is in parts with."""
    unit: FullyShardedDataParallel | None = getattr(parameter, "_unit", None)
    return unit


def plain(name: str) -> str:
    """A parameter's or module's name without what FSDP1 adds to it."""
    return name.replace("_fsdp_wrapped_module.", "")


@contextmanager
def whole_ends(model: PreTrainedModel) -> Iterator[None]:
    """For forward passes without gradients outside of a step: FSDP1 has what is outside of layers whole within."""
    unit = unit_of(model.get_input_embeddings().weight)
    if unit is None:
        yield
        return
    with FullyShardedDataParallel.summon_full_params(unit, recurse=False, writeback=False):
        yield


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with whole tensors. Of a model in shards all ranks must ask, and only the first is answered."""
    weights: dict[str, Any]
    if not is_sharded(model):
        weights = model.state_dict()
        return weights
    if any(map(of_zero, model.parameters())):
        return _gathered(model)
    unit = unit_of(cast(PreTrainedModel, model).get_input_embeddings().weight)
    weights = dict(get_model_state_dict(unit or model, options=full(unit or model)))
    if unit is not None:
        weights = {name.removeprefix("model."): each for name, each in weights.items()}
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        # Tied weights are one tensor again.
        if weights and (other := first.setdefault(id(parameter), plain(name))) != plain(name):
            weights[plain(name)] = weights[other]
    return weights


def _gathered(model: nn.Module) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    first: dict[int, str] = {}
    for name, each in model.state_dict(keep_vars=True).items():
        other = first.setdefault(id(each), name)
        # One at a time, kept in the first process's memory.
        tensor = whole(each) if other == name else None
        if dist.get_rank() == 0:
            weights[name] = weights[other] if tensor is None else tensor.detach().cpu()
    return weights


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor where each rank has a part of it; all ranks must ask, outside of a step."""
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    if of_zero(tensor):
        zero: Any = tensor
        if zero.shape == zero.ds_shape:
            # Within a step it is the very parameter that is whole, so that gradients reach it.
            return tensor
        zero.all_gather()
        gathered = tensor.detach().clone()
        zero.partition()
        return gathered
    unit = unit_of(tensor)
    if unit is None:
        return tensor
    with FullyShardedDataParallel.summon_full_params(unit, recurse=False, writeback=False):
        return tensor.detach().clone()


def in_parts(tensor: Tensor) -> Tensor:
    """A tensor of FSDP1 or ZeRO-3 as one of which each rank still has a part, and which can be copied."""
    if unit_of(tensor) is None and not of_zero(tensor):
        return tensor
    mesh = init_device_mesh(tensor.device.type, (dist.get_world_size(),))
    return distribute_tensor(whole(tensor), mesh, [Shard(0)])


def total_norm(parameters: Iterable[Tensor]) -> Tensor:
    """The norm of all gradients together."""
    parameters = list(parameters)
    gradients = [each.grad for each in parameters if each.grad is not None]
    norm = whole(get_total_norm(gradients))
    if any(unit_of(each) is not None for each in parameters):
        # Each rank's parts are other ones, or none.
        norm = norm.to(parameters[0].device).square()
        dist.all_reduce(norm)
        norm = norm.sqrt()
    return norm


def frozen_twin(model: PreTrainedModel) -> PreTrainedModel:
    """A second model on the same memory, to be sharded before the first: shards are copies."""
    return twin(model, Tensor.detach).eval().requires_grad_(False)


def twin(model: PreTrainedModel, convert: Callable[[Tensor], Tensor]) -> PreTrainedModel:
    """A copy of the module with other tensors in the places of parameters."""
    memo = {id(each): nn.Parameter(convert(each), each.requires_grad) for each in model.parameters()}
    return copy.deepcopy(model, memo)


def full(model: nn.Module) -> StateDictOptions:
    """To have a state dict put together in the first process's memory."""
    # FSDP1 frees what it has taken to the CPU, which on a CPU is what it has given, and takes nothing of a single device.
    stays = isinstance(model, FullyShardedDataParallel) and (
        str(model.compute_device) == "cpu" or dist.get_world_size() == 1
    )
    return StateDictOptions(full_state_dict=True, cpu_offload=not stays)
