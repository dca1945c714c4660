"""FSDP2: every device holds a part of each layer, of its gradients and of the optimizer's state."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import (
    FSDPModule,
    FullyShardedDataParallel,
    OptimStateKeyType,
    fully_shard,
)
from torch.distributed.tensor import DTensor
from torch.nn import functional
from torch.optim import Optimizer
from transformers import PreTrainedModel

from dipo_pl.errors import InputError
from dipo_pl.hidden_states import decoder_layers

FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


class FSDP2Strategy(ModelParallelStrategy):
    """Data parallel over all devices, with decoder layers, embedding and head in shards.

    Lightning's own ModelParallelStrategy takes the devices of a node for tensor parallel by default, and the ranks
    of a model that is not written for that diverge without a word. Checkpoints are one file, as with every other
    strategy, and resume under any of them.
    """

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

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

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        # Mapped, not read: each process takes its own parts of it.
        content: dict[str, Any] = torch.load(
            self.broadcast(checkpoint_path), mmap=True, map_location="cpu", weights_only=True
        )
        return content

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        options = StateDictOptions(full_state_dict=True, strict=strict)
        set_model_state_dict(self.lightning_module, dict(checkpoint["state_dict"]), options=options)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole state on the first process, numbered as by a single device."""
        assert self.model is not None
        optimizer = getattr(optimizer, "_optimizer", optimizer)
        state = get_optimizer_state_dict(self.model, optimizer, options=FULL)
        if not self.is_global_zero:
            return {}
        return _keyed(state, OptimStateKeyType.PARAM_ID, self.model, optimizer)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        assert self.model is not None
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            named = _keyed(state, OptimStateKeyType.PARAM_NAME, self.model, optimizer)
            set_optimizer_state_dict(
                self.model, optimizer, named, options=StateDictOptions(full_state_dict=True)
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


def _keyed(
    state: Mapping[str, Any], by: OptimStateKeyType, model: nn.Module, optimizer: Optimizer
) -> dict[str, Any]:
    keyed: dict[str, Any] = FullyShardedDataParallel.rekey_optim_state_dict(
        dict(state), by, model, optim=optimizer
    )
    return keyed
