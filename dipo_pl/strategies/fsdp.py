"""FSDP2: every rank holds a shard of each weight, its gradient and its optimizer state."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor
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

from dipo_pl.distributed import copy_module, full_tensor
from dipo_pl.errors import InputError
from dipo_pl.models.hidden_states import decoder_layers, decoder_of
from dipo_pl.private_names import set_data_parallel
from dipo_pl.storage.checkpoints import read_checkpoint
from dipo_pl.storage.sharded_checkpoint import load_into, save_sharded


class FSDP2Strategy(ModelParallelStrategy):
    """Strategy that shards decoder layers, embedding and head over all ranks (`trainer.strategy` fsdp or fsdp2).

    Its checkpoints resume under any other strategy and world size, and those of any other under it.

    Args:
        sharded_checkpoints: checkpoints are folders to which each rank writes its shards (`dipo-pl consolidate` makes
            a file of one); otherwise files, gathered in the memory of rank 0.
    """

    def __init__(self, sharded_checkpoints: bool = False) -> None:
        super().__init__(save_distributed_checkpoint=False)
        self.sharded_checkpoints = sharded_checkpoints

    def setup_environment(self) -> None:
        """Make a mesh of data-parallel ranks alone; Lightning's default is tensor parallelism within a node."""
        set_data_parallel(self)
        super().setup_environment()

    def load(self, make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
        """Return `make()` on rank 0, and on other ranks the same module with parameters on the meta device.

        The full model is in memory once; `shard` sends it to the other ranks tensor by tensor.

        Raises:
            InputError: from `make`, on all ranks.
        """
        made: PreTrainedModel | None = None
        sent: PreTrainedModel | InputError | None = None
        if self.is_global_zero:
            try:
                made = make()
                sent = copy_module(made, lambda each: torch.empty_like(each, device="meta"))
            except InputError as error:
                sent = error
        sent = self.broadcast(sent)
        if isinstance(sent, InputError):
            raise sent
        model = made if made is not None else sent
        assert model is not None
        return model

    def shard(self, model: PreTrainedModel) -> PreTrainedModel:
        """Shard, in place, a model that `load` returned, or a copy of one.

        Raises:
            InputError: the model has weights outside of its decoder and head.
        """
        loaded = model.state_dict() if self.is_global_zero else {}
        head = model.get_output_embeddings()
        decoder = decoder_of(model)
        tied = head.weight is model.get_input_embeddings().weight
        for part in (*decoder_layers(model), decoder, *(() if tied else (head,))):
            # The outermost module too: weights left gathered by an evaluation would not be those that the optimizer
            # changes.
            fully_shard(part, mesh=self.device_mesh["data_parallel"], reshard_after_forward=True)
        if tied:
            # The head runs outside of the decoder's forward pass, which alone gathers the embedding.
            head.weight = model.get_input_embeddings().weight
            head.forward = lambda states: functional.linear(states, full_tensor(head.weight))
        outside = [name for name, each in model.named_parameters() if not isinstance(each, DTensor)]
        if outside:
            raise InputError(
                f"{type(model).__name__} has weights outside of its decoder and head ({outside[0]}), which fsdp2 does not "
                "shard: use trainer.strategy ddp"
            )
        if not self.is_global_zero:
            buffers = dict(model.named_buffers())
            model.to_empty(device=self.root_device)
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
            if tied:
                head.weight = model.get_input_embeddings().weight
        model.to(self.root_device)
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(model, loaded, options=options)
        return model

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        """Write a folder of shards, or rank 0 writes one file."""
        path = Path(self.broadcast(filepath))
        if self.sharded_checkpoints:
            save_sharded(checkpoint, path)
        elif self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, path)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Map a checkpoint into memory; each rank then reads its own shards of it."""
        return read_checkpoint(Path(self.broadcast(checkpoint_path)))

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning calls `load_optimizer_state_dict`."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return this rank's shards for sharded checkpoints, else the full weights on rank 0 alone."""
        assert self.model is not None
        return self.model.state_dict() if self.sharded_checkpoints else super().lightning_module_state_dict()

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Copy this rank's shards of the checkpoint's weights into the model."""
        assert self.model is not None
        targets = self.model.state_dict().items()
        wanted = {
            f"state_dict.{name}": each for name, each in targets if strict or name in checkpoint["state_dict"]
        }
        load_into(wanted, checkpoint)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the state, numbered as on a single device: shards, or full tensors on rank 0 alone."""
        state: dict[str, Any] = getattr(optimizer, "optimizer", optimizer).state_dict()
        if self.sharded_checkpoints:
            return state
        gathered: dict[int, dict[str, Any]] = {}
        for number, entries in state["state"].items():
            gathered[number] = {}
            for name, value in entries.items():
                # One at a time, kept in the memory of rank 0.
                value = full_tensor(value) if isinstance(value, Tensor) else value
                if self.is_global_zero:
                    gathered[number][name] = value.cpu() if isinstance(value, Tensor) else value
        return state | {"state": gathered} if self.is_global_zero else {}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Copy this rank's shards of the checkpoint's optimizer states into the optimizers."""
        assert self.model is not None
        for place, optimizer in enumerate(self.optimizers):
            # Makes torch create the state that a first step would, sharded as the weights are.
            get_optimizer_state_dict(self.model, optimizer)
            own = optimizer.state_dict()["state"]
            given = checkpoint["optimizer_states"][place]
            state: dict[int, dict[str, Any]] = {}
            targets: dict[str, Tensor] = {}
            for number, entries in given["state"].items():
                state[number] = dict(entries)
                for name in entries:
                    if isinstance(target := own[number].get(name), Tensor):
                        state[number][name] = target
                        targets[f"optimizer_states.{place}.state.{number}.{name}"] = target
            load_into(targets, checkpoint)
            optimizer.load_state_dict({"state": state, "param_groups": given["param_groups"]})


for _name in ("fsdp", "fsdp2"):
    StrategyRegistry.register(_name, FSDP2Strategy, "Fully sharded data parallel (FSDP2)", override=True)
