"""FSDP1: every device holds a part of each decoder layer laid flat, and of all else that a model has."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning import Trainer
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FullyShardedDataParallel, OptimStateKeyType
from torch.optim import Optimizer
from transformers import PreTrainedModel

from dipo_pl.distributed import FullyShardedStrategy, full, unit_of, whole_ends
from dipo_pl.errors import InputError
from dipo_pl.models.hidden_states import decoder_layers
from dipo_pl.storage.sharded_checkpoint import with_whole_tensors


class FSDP1Strategy(FullyShardedStrategy):
    """Each decoder layer is a unit, whole while it computes; all else is one more, whole for the whole of a step.

    Lightning's own FSDPStrategy wraps a module that is whole on every device, and computes in bf16-mixed without
    autocast, all in bfloat16.
    """

    def shard(self, model: PreTrainedModel) -> PreTrainedModel:
        """See ShardingStrategy; refuses true half precision, several dtypes, and losses that leave the head alone."""
        if None not in getattr(self.lightning_module, "layers", {None}):
            raise InputError(
                "trainer.strategy fsdp gives gradients of zero to the output head, which no loss looks at here, and the "
                "optimizer would decay its weights: set trainer.strategy fsdp2"
            )
        precision = self.precision_plugin.precision
        if precision not in ("32-true", "bf16-mixed"):
            raise InputError(
                f"trainer.precision {precision} converts weights that trainer.strategy fsdp has in parts by then: set "
                "bf16-mixed, or 32-true with model.policy.dtype bfloat16, or trainer.strategy fsdp2"
            )
        layers = decoder_layers(model)
        for place, layer in enumerate(layers):
            layers[place] = self._unit(layer)
        self._unit(_Root(model))
        # In inference mode its first use would make tensors that no backward pass can use.
        with whole_ends(model):
            return model

    def _unit(self, module: nn.Module) -> FullyShardedDataParallel:
        dtypes = {each.dtype for each in module.parameters() if unit_of(each) is None}
        if len(dtypes) > 1:
            raise InputError(
                f"{type(module).__name__} has weights of several dtypes ({', '.join(sorted(map(str, dtypes)))}), which "
                "trainer.strategy fsdp lays out as one: set model.policy.dtype float32, or trainer.strategy fsdp2"
            )
        self._hand_out(module)
        unit = FullyShardedDataParallel(
            module, device_id=self.root_device, use_orig_params=True, limit_all_gathers=True
        )
        for parameter in unit.parameters():
            if unit_of(parameter) is None:
                # Not in a table of its own, which would keep models of runs that are over.
                parameter._unit = unit  # type: ignore[attr-defined]
        return unit

    def _hand_out(self, module: nn.Module) -> None:
        """Moves a unit's weights from the first process to all; FSDP1's own way to do so is for GPUs alone."""
        handed: dict[nn.Parameter, nn.Parameter] = {}
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is None or unit_of(parameter) is not None:
                    continue
                if parameter not in handed:
                    there = parameter.is_meta
                    new = (
                        parameter.new_empty(parameter.shape, device=self.root_device) if there else parameter
                    )
                    data = new.detach().to(self.root_device).contiguous()
                    dist.broadcast(data, 0)
                    handed[parameter] = nn.Parameter(data, parameter.requires_grad)
                part._parameters[name] = handed[parameter]

    def setup(self, trainer: Trainer) -> None:
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        module: Any = self.lightning_module
        root = unit_of(module.language_model.get_input_embeddings().weight)
        assert root is not None
        self.model = root
        # Of the gradients' norms a rank knows but its parts'.
        self.precision_plugin.clip_grad_by_norm = lambda _, limit: root.clip_grad_norm_(limit)  # type: ignore[method-assign, assignment, misc]
        self.barrier()
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def training_step(self, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        assert self.lightning_module is not None
        return self._within(self.lightning_module.training_step, *args, **kwargs)

    def validation_step(self, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        assert self.lightning_module is not None
        return self._within(self.lightning_module.validation_step, *args, **kwargs)

    def _within(self, step: Callable[..., STEP_OUTPUT], *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        assert self.model is not None
        with self.precision_plugin.forward_context():
            output: STEP_OUTPUT = self.model(lambda: step(*args, **kwargs))
        return output

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return with_whole_tensors(super().load_checkpoint(checkpoint_path, weights_only))

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.model is not None
        options = StateDictOptions(full_state_dict=True, strict=strict)
        set_model_state_dict(self.model, dict(checkpoint["state_dict"]), options=options)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.model is not None
        weights: dict[str, Any] = get_model_state_dict(self.model, options=full(self.model))
        return weights if self.is_global_zero else {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole state on the first process, numbered as by a single device."""
        assert self.model is not None
        optimizer = getattr(optimizer, "_optimizer", optimizer)
        state = get_optimizer_state_dict(self.model, optimizer, options=full(self.model))
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


class _Root(nn.Module):
    """Runs what it is given: within this forward pass embedding and head are whole, and gradients reach them."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, step: Callable[[], Any]) -> Any:
        return step()


StrategyRegistry.register(
    "fsdp", FSDP1Strategy, "Fully sharded data parallel, PyTorch's first", override=True
)


def _keyed(
    state: Mapping[str, Any], by: OptimStateKeyType, model: nn.Module, optimizer: Optimizer
) -> dict[str, Any]:
    keyed: dict[str, Any] = FullyShardedDataParallel.rekey_optim_state_dict(
        dict(state), by, model, optim=optimizer
    )
    return keyed
