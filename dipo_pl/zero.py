"""DeepSpeed's ZeRO-2: every device holds a whole model, and its part of gradients and of the optimizer."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, StrategyRegistry
from lightning.pytorch.strategies.strategy import Strategy
from torch import Tensor, nn
from torch.optim import Optimizer


class ZeRO2Strategy(DeepSpeedStrategy):
    """ZeRO-2 with the steps, and the checkpoints of one file, that every other strategy has.

    Lightning's own asks the loader for a batch size that it need not have, leaves the last batches of an epoch to the
    first step of the next, and writes folders of pickles.
    """

    def __init__(self) -> None:
        super().__init__(stage=2, logging_batch_size_per_gpu=1)

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

    def gradient_norm(self) -> Tensor:
        """Of all gradients together, before they are clipped."""
        norm: Tensor = self._zero.scaled_global_norm()
        return norm

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

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        from deepspeed.utils import safe_set_full_fp32_param

        Strategy.load_model_state_dict(self, checkpoint, strict)
        for parameter in self._trained if self.optimizers else ():
            # What the optimizer changes is a copy of it.
            safe_set_full_fp32_param(parameter, parameter.detach().float())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole state on the first process, numbered as by a single device."""
        from deepspeed.utils import safe_get_full_optimizer_state

        inner: Optimizer = self._zero.optimizer
        (group,) = inner.param_groups
        own = inner.state[group["params"][0]]
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
        from deepspeed.utils import safe_set_full_optimizer_state

        inner: Optimizer = self._zero.optimizer
        (saved,), (group,) = checkpoint["optimizer_states"], inner.param_groups
        group.update({key: value for key, value in saved["param_groups"][0].items() if key != "params"})
        flat = group["params"][0]
        inner.state[flat] = {
            key: torch.zeros_like(flat) if value.dim() else value.clone()
            for key, value in saved["state"].get(0, {}).items()
        }
        self._zero._hp_optimizer_states_linked = False
        self._zero._lazy_init_hp_params_optimizer_state()
        for number, parameter in enumerate(self._trained):
            for key, value in saved["state"].get(number, {}).items():
                if value.dim():
                    safe_set_full_optimizer_state(parameter, value.to(parameter.device), key)

    @property
    def _zero(self) -> Any:
        return self.deepspeed_engine.optimizer

    @property
    def _trained(self) -> list[nn.Parameter]:
        assert self.lightning_module is not None
        return [each for each in self.lightning_module.parameters() if each.requires_grad]


StrategyRegistry.register("deepspeed_stage_2", ZeRO2Strategy, "DeepSpeed's ZeRO-2", override=True)
