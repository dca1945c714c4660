"""DeepSpeed: every device holds its part of gradients and of the optimizer (ZeRO-2), and of weights too (ZeRO-3)."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from lightning import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, StrategyRegistry
from lightning.pytorch.strategies.strategy import Strategy
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from dipo_pl.distributed import ShardingStrategy, twin, whole_weights
from dipo_pl.errors import InputError
from dipo_pl.models.hidden_states import decoder_layers
from dipo_pl.storage.sharded_checkpoint import with_whole_tensors


class ZeROStrategy(DeepSpeedStrategy):
    """ZeRO with the steps, and the checkpoints of one file, that every other strategy has.

    Lightning's own asks the loader for a batch size that it need not have, leaves the last batches of an epoch to the
    first step of the next, and writes folders of pickles.
    """

    def _init_optimizers(self) -> tuple[Optimizer, LRSchedulerConfig | None]:
        if None not in getattr(self.lightning_module, "layers", {None}):
            raise InputError(
                "DeepSpeed's ZeRO takes a gradient for every trained weight, and no loss here looks at the output head: set "
                "trainer.strategy fsdp2"
            )
        optimizer, schedule = super()._init_optimizers()
        if len(optimizer.param_groups) > 1:
            raise InputError(
                f"model.optimizer {type(optimizer).__name__} has {len(optimizer.param_groups)} groups of parameters, which "
                "DeepSpeed lays flat apart: give one group, or set trainer.strategy fsdp2"
            )
        return optimizer, schedule

    @property
    def handles_gradient_accumulation(self) -> bool:
        return False

    def _format_batch_size_and_grad_accum_config(self) -> None:
        super()._format_batch_size_and_grad_accum_config()
        assert isinstance(self.config, dict)
        # Batches are counted, and losses divided by their number, by Lightning.
        self.config["gradient_accumulation_steps"] = 1

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        self.deepspeed_engine.set_gradient_accumulation_boundary(False)
        try:
            yield
        finally:
            self.deepspeed_engine.set_gradient_accumulation_boundary(True)

    @abstractmethod
    def gradient_norm(self) -> Tensor:
        """Of all gradients together, before they are clipped."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole state on the first process, numbered as by a single device."""
        from deepspeed.utils import safe_get_full_optimizer_state

        inner: Optimizer = self._zero.optimizer
        (group,) = inner.param_groups
        own = inner.state[self._flat]
        states: dict[int, dict[str, Any]] = {}
        for number, parameter in enumerate(self._trained if own else ()):
            # One count of steps for all would be counted up by each.
            states[number] = {
                key: safe_get_full_optimizer_state(parameter, key) if value.dim() else value.clone()
                for key, value in own.items()
            }
        if not self.is_global_zero:
            return {}
        settings = {key: value for key, value in group.items() if key != "params"}
        return {"state": states, "param_groups": [settings | {"params": list(range(len(self._trained)))}]}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        inner: Optimizer = self._zero.optimizer
        (saved,), (group,) = checkpoint["optimizer_states"], inner.param_groups
        group.update({key: value for key, value in saved["param_groups"][0].items() if key != "params"})
        inner.state[self._flat] = {
            key: torch.zeros_like(self._flat) if value.dim() else value.clone()
            for key, value in saved["state"].get(0, {}).items()
        }
        self._link()
        for number, parameter in enumerate(self._trained):
            for key, value in saved["state"].get(number, {}).items():
                if value.dim():
                    self._fill(parameter, value.to(self.root_device), key)

    @property
    @abstractmethod
    def _flat(self) -> Tensor:
        """What the optimizer changes: this rank's part of all trained parameters, one after another."""

    def _link(self) -> None:
        """Called when the optimizer has a new state."""

    @abstractmethod
    def _fill(self, parameter: nn.Parameter, value: Tensor, key: str) -> None:
        """Takes this rank's part of a parameter's optimizer state."""

    @property
    def _zero(self) -> Any:
        return self.deepspeed_engine.optimizer

    @property
    def _trained(self) -> list[nn.Parameter]:
        assert self.lightning_module is not None
        return [each for each in self.lightning_module.parameters() if each.requires_grad]


class ZeRO2Strategy(ZeROStrategy):
    """Every device holds a whole model."""

    def __init__(self) -> None:
        super().__init__(stage=2, logging_batch_size_per_gpu=1)

    def gradient_norm(self) -> Tensor:
        norm: Tensor = self._zero.scaled_global_norm()
        return norm

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        from deepspeed.utils import safe_set_full_fp32_param

        Strategy.load_model_state_dict(self, checkpoint, strict)
        for parameter in self._trained if self.optimizers else ():
            # What the optimizer changes is a copy of it.
            safe_set_full_fp32_param(parameter, parameter.detach().float())

    @property
    def _flat(self) -> Tensor:
        (group,) = self._zero.optimizer.param_groups
        flat: Tensor = group["params"][0]
        return flat

    def _link(self) -> None:
        self._zero._hp_optimizer_states_linked = False
        self._zero._lazy_init_hp_params_optimizer_state()

    def _fill(self, parameter: nn.Parameter, value: Tensor, key: str) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        safe_set_full_optimizer_state(parameter, value, key)


class ZeRO3Strategy(ShardingStrategy, ZeROStrategy):
    """Every device holds a part of each weight too, but for the time that a layer computes with it."""

    def __init__(self) -> None:
        super().__init__(stage=3, logging_batch_size_per_gpu=1)
        self._hooks: list[RemovableHandle] = []

    def _format_batch_size_and_grad_accum_config(self) -> None:
        super()._format_batch_size_and_grad_accum_config()
        assert isinstance(self.config, dict)
        # What an evaluation has gathered and kept would be of no use to a later backward pass.
        self.config["zero_optimization"]["stage3_param_persistence_threshold"] = 0

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        # The model is whole on the first process until it is sharded.
        yield

    def load(self, make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
        model = super().load(make)
        # Nothing of these is in memory before it is written to.
        return (
            model if self.is_global_zero else twin(model, lambda each: torch.empty_like(each, device="cpu"))
        )

    def shard(self, model: PreTrainedModel) -> PreTrainedModel:
        from deepspeed.runtime.zero import Init

        # Hands out the first process's weights, one by one.
        Init(module=model, mem_efficient_linear=False, dtype=model.dtype)
        model.to(self.root_device)
        layers = list(decoder_layers(model))
        in_layers = {id(each) for layer in layers for each in layer.parameters()}
        decoder: Any = model.get_decoder()
        rest = [each for each in decoder.parameters() if id(each) not in in_layers]
        self._hooks = [*_whole_within(decoder, rest)]
        for layer in layers:
            self._hooks += _whole_within(layer, list(layer.parameters()))
        return model

    def setup(self, trainer: Trainer) -> None:
        # The policy's, which is sharded last: from now on DeepSpeed's own are in their place.
        while self._hooks:
            self._hooks.pop().remove()
        super().setup(trainer)

    def gradient_norm(self) -> Tensor:
        (norm,) = self._zero._get_norm_groups()
        # By a norm of -1 it says that one is not finite.
        return torch.where(norm < 0, torch.nan, norm)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return with_whole_tensors(super().load_checkpoint(checkpoint_path, weights_only))

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return whole_weights(self.lightning_module)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        from deepspeed.runtime.zero import GatheredParameters

        assert self.lightning_module is not None
        given = checkpoint["state_dict"]
        for name, target in self.lightning_module.state_dict(keep_vars=True).items():
            if strict or name in given:
                with GatheredParameters([target], modifier_rank=0), torch.no_grad():
                    target.copy_(given[name])
        if self.optimizers:
            # What the optimizer changes is a copy of them.
            self._zero.refresh_fp32_params()

    @property
    def _flat(self) -> Tensor:
        (flat,) = self._zero.fp32_partitioned_groups_flat
        return cast(Tensor, flat)

    def _fill(self, parameter: nn.Parameter, value: Tensor, key: str) -> None:
        from deepspeed.utils import safe_set_local_optimizer_state

        zero: Any = parameter
        size = zero.ds_tensor.numel()
        padded = functional.pad(value.flatten(), (0, size * self.world_size - value.numel()))
        safe_set_local_optimizer_state(parameter, padded.narrow(0, size * self.global_rank, size), key)


def _whole_within(part: nn.Module, weights: list[Any]) -> list[RemovableHandle]:
    """For forward passes without gradients of what DeepSpeed has not, or not yet, made an engine of."""
    return [
        part.register_forward_pre_hook(lambda *_: weights[0].all_gather(weights)),
        part.register_forward_hook(lambda *_: weights[0].partition(weights), always_call=True),
    ]


StrategyRegistry.register("deepspeed_stage_2", ZeRO2Strategy, "DeepSpeed's ZeRO-2", override=True)
StrategyRegistry.register("deepspeed_stage_3", ZeRO3Strategy, "DeepSpeed's ZeRO-3", override=True)
