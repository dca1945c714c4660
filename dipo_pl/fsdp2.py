"""FSDP2: every device holds a part of each layer, of its gradients and of the optimizer's state."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional
from torch.optim import Optimizer
from transformers import PreTrainedModel

from dipo_pl.checkpoint_io import read_checkpoint
from dipo_pl.errors import InputError
from dipo_pl.hidden_states import decoder_layers
from dipo_pl.sharded_checkpoint import of_this_rank, save_sharded

FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


class FSDP2Strategy(ModelParallelStrategy):
    """Data parallel over all devices, with decoder layers, embedding and head in shards.

    Lightning's own ModelParallelStrategy takes the devices of a node for tensor parallel by default, and the ranks
    of a model that is not written for that diverge without a word. Checkpoints resume under any other strategy, and
    those of any other under this one.

    Args:
        sharded_checkpoints: checkpoints are folders to which each rank writes its own parts (`dipo-pl consolidate` makes
            a file of one); else files, put together in the first process's memory.
    """

    def __init__(self, sharded_checkpoints: bool = False) -> None:
        super().__init__(save_distributed_checkpoint=False)
        self.sharded_checkpoints = sharded_checkpoints

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()

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
                told = _twin(made, lambda each: torch.empty_like(each, device="meta"))
            except InputError as error:
                told = error
        told = self.broadcast(told)
        if isinstance(told, InputError):
            raise told
        model = made if made is not None else told
        assert model is not None
        return model

    def shard(self, model: PreTrainedModel) -> PreTrainedModel:
        """Shards, in place, a model that `load` has given, or a twin of one.

        Raises:
            InputError: it has weights outside of its decoder and head.
        """
        loaded = model.state_dict() if self.is_global_zero else {}
        head = model.get_output_embeddings()
        decoder = model.get_decoder()
        tied = head.weight is model.get_input_embeddings().weight
        for part in (*decoder_layers(model), decoder, *(() if tied else (head,))):
            # Also the outermost: what stays whole after an evaluation would not be what the optimizer changes.
            fully_shard(part, mesh=self.device_mesh["data_parallel"], reshard_after_forward=True)
        if tied:
            # The head's forward pass is no part of the decoder's, which alone has the embedding whole.
            head.weight = model.get_input_embeddings().weight
            head.forward = lambda states: functional.linear(states, whole(head.weight))
        outside = [name for name, each in model.named_parameters() if not isinstance(each, DTensor)]
        if outside:
            raise InputError(
                f"{type(model).__name__} has weights outside of its decoder and head ({outside[0]}), which fsdp2 does not "
                "shard: use trainer.strategy ddp"
            )
        if not self.is_global_zero:
            buffers = dict(model.named_buffers())
            model.to_empty(device=self.root_device)
            _restore_buffers(model, buffers)
            if tied:
                head.weight = model.get_input_embeddings().weight
        model.to(self.root_device)
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(model, loaded, options=options)
        return model

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        path = Path(self.broadcast(filepath))
        if self.sharded_checkpoints:
            save_sharded(checkpoint, path)
        elif self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, path)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        # Mapped, not read: each process takes its own parts of it.
        return read_checkpoint(Path(self.broadcast(checkpoint_path)))

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.model is not None
        return self.model.state_dict() if self.sharded_checkpoints else super().lightning_module_state_dict()

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.model is not None
        given = checkpoint["state_dict"]
        for name, target in self.model.state_dict().items():
            if strict or name in given:
                _fill(target, given[name])

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Numbered as by a single device; whole on the first process alone, or on each what it has."""
        state: dict[str, Any] = getattr(optimizer, "_optimizer", optimizer).state_dict()
        if self.sharded_checkpoints:
            return state
        gathered: dict[int, dict[str, Any]] = {}
        for number, entries in state["state"].items():
            gathered[number] = {}
            for name, value in entries.items():
                # One at a time, kept in the first process's memory.
                value = whole(value) if isinstance(value, Tensor) else value
                if self.is_global_zero:
                    gathered[number][name] = value.cpu() if isinstance(value, Tensor) else value
        return state | {"state": gathered} if self.is_global_zero else {}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        assert self.model is not None
        for optimizer, given in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            # Has torch make the state that a first step would, in parts as the weights are.
            get_optimizer_state_dict(self.model, optimizer)
            state = optimizer.state_dict()["state"]
            for number, entries in given["state"].items():
                for name, value in entries.items():
                    if isinstance(state[number].get(name), Tensor):
                        _fill(state[number][name], value)
                    else:
                        state[number][name] = value
            optimizer.load_state_dict(
                {
                    "state": {number: state[number] for number in given["state"]},
                    "param_groups": given["param_groups"],
                }
            )


StrategyRegistry.register("fsdp2", FSDP2Strategy, description="Fully sharded data parallel, PyTorch's second")


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 has left each rank a part of it; then all ranks must make the same forward passes."""
    return any(isinstance(each, FSDPModule) for each in model.modules())


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with whole tensors. Under FSDP2 all ranks must ask, and only the first one is answered."""
    if not is_sharded(model):
        return model.state_dict()
    weights: dict[str, Any] = get_model_state_dict(model, options=FULL)
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        # Tied weights are one tensor again.
        if weights and (other := first.setdefault(id(parameter), name)) != name:
            weights[name] = weights[other]
    return weights


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor where FSDP2 has left each rank a part of it; all ranks must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def frozen_twin(model: PreTrainedModel) -> PreTrainedModel:
    """A second model on the same memory, to be sharded before the first: shards are copies."""
    return _twin(model, Tensor.detach).eval().requires_grad_(False)


def _twin(model: PreTrainedModel, convert: Callable[[Tensor], Tensor]) -> PreTrainedModel:
    """A copy of the module with other tensors in the places of parameters."""
    memo = {id(each): nn.Parameter(convert(each), each.requires_grad) for each in model.parameters()}
    return copy.deepcopy(model, memo)


def _restore_buffers(model: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])


def _fill(target: Tensor, source: Any) -> None:
    """Reads what this rank has of a tensor into it."""
    part = of_this_rank(source, target)
    with torch.no_grad():
        (target.to_local() if isinstance(target, DTensor) else target).copy_(part)
