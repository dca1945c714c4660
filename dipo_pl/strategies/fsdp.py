"""FSDP2: every device holds a part of each layer, of its gradients and of the optimizer's state."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import StrategyRegistry
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional
from torch.optim import Optimizer
from transformers import PreTrainedModel

from dipo_pl.distributed import FullyShardedStrategy, whole
from dipo_pl.errors import InputError
from dipo_pl.models.hidden_states import decoder_layers
from dipo_pl.storage.sharded_checkpoint import of_this_rank, save_sharded


class FSDP2Strategy(FullyShardedStrategy):
    """Decoder layers, embedding and head are in shards, each of whose tensors knows its own (DTensor).

    Args:
        sharded_checkpoints: checkpoints are folders to which each rank writes its own parts (`dipo-pl consolidate` makes
            a file of one); else files, put together in the first process's memory.
    """

    def __init__(self, sharded_checkpoints: bool = False) -> None:
        super().__init__()
        self.sharded_checkpoints = sharded_checkpoints

    def shard(self, model: PreTrainedModel) -> PreTrainedModel:
        """See ShardingStrategy; refuses a model with weights outside of its decoder and head."""
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

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.model is not None
        return self.model.state_dict() if self.sharded_checkpoints else super().lightning_module_state_dict()

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.model is not None
        given = checkpoint["state_dict"]
        for name, target in self.model.state_dict().items():
            if strict or name in given:
                _fill(target, given[name])

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


def _restore_buffers(model: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])


def _fill(target: Tensor, source: Any) -> None:
    """Reads what this rank has of a tensor into it.

    Raises:
        InputError: it is another model's.
    """
    if tuple(source.shape) != tuple(target.shape):
        raise InputError(
            f"the checkpoint has a tensor of shape {tuple(source.shape)} where this model has {tuple(target.shape)}: it is "
            "of another model, see model.policy"
        )
    part = of_this_rank(source, target)
    with torch.no_grad():
        (target.to_local() if isinstance(target, DTensor) else target).copy_(part)
