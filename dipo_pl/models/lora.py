"""Low-rank adapters: what is trained in place of the model's own weights."""

import copy
import math
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dipo_pl.errors import InputError

NAME = "default"


class LoRA:
    r"""Trains low-rank adapters and leaves the model's own weights as they are.

        y = W x + (alpha / rank) B A x

    W is frozen; A [rank, in] starts uniform within 1 / sqrt(in) of 0 and B [out, rank] at 0, so that
    training starts from the model as it is. Source: LoRA, arXiv:2106.09685, Section 4.1.

    A and B are float32 also where W is bfloat16 or float16, unless trainer.precision (bf16-true, 16-true)
    casts the whole policy. Needs peft: pip install 'dipo-pl[lora]'.

    Args:
        rank: of B A, at least 1.
        alpha: factor on B A, divided by the rank, > 0.
        dropout: chance of each entry of x to be hidden from A in training, in [0, 1).
        targets: `all-linear` is every linear layer but the output head; else names of layers
            ([q_proj, v_proj]), or a regular expression that their full names match.
        seed: of A; null takes seed_everything on the command line, else 0.
    """

    def __init__(
        self,
        rank: int = 16,
        alpha: float = 32.0,
        dropout: float = 0.0,
        targets: str | list[str] = "all-linear",
        seed: int | None = None,
    ) -> None:
        if rank < 1:
            raise InputError(f"model.policy.adapter.rank must be at least 1, got {rank}")
        if not 0 < alpha < math.inf:
            raise InputError(f"model.policy.adapter.alpha must be a finite number > 0, got {alpha}")
        if not 0 <= dropout < 1:
            raise InputError(f"model.policy.adapter.dropout must be in [0, 1), got {dropout}")
        if not targets:
            raise InputError("model.policy.adapter.targets is empty: name layers, or all-linear")
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self.targets = targets
        self.seed = seed or 0

    def apply(self, model: PreTrainedModel) -> None:
        """Puts adapters into the model, in place, and freezes all else.

        Raises:
            InputError: peft is not installed, or the model has no such layers.
        """
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise InputError(
                f"model.policy.adapter needs peft ({error}): pip install 'dipo-pl[lora]'"
            ) from error
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self._layers(model),
            # GPT-2's layers hold the transpose of W.
            fan_in_fan_out=any(isinstance(each, Conv1D) for each in model.modules()),
            base_model_name_or_path=model.name_or_path or None,
            revision=getattr(model.config, "_commit_hash", None),
        )
        # Apart from the global generator, and on the CPU: A depends on this seed alone.
        with torch.random.fork_rng(), torch.device("cpu"):
            torch.manual_seed(self.seed)
            # Of a model that has shapes alone, so have the adapters.
            inject_adapter_in_model(
                config, model, NAME, low_cpu_mem_usage=model.get_input_embeddings().weight.is_meta
            )
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))

    def _layers(self, model: PreTrainedModel) -> list[str]:
        """Full names of the layers that are adapted."""
        head = model.get_output_embeddings()
        linear = [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and module is not head
        ]
        if self.targets == "all-linear":
            return linear
        if isinstance(self.targets, str):
            patterns = {self.targets: self.targets}
        else:
            patterns = {each: rf"(.*\.)?{re.escape(each)}" for each in self.targets}
        chosen: list[str] = []
        for target, pattern in patterns.items():
            try:
                matches = [name for name in linear if re.fullmatch(pattern, name)]
            except re.error as error:
                raise InputError(
                    f"model.policy.adapter.targets: {target!r} is no regular expression ({error})"
                ) from error
            if not matches:
                kinds = sorted({name.rpartition(".")[2] for name in linear})
                raise InputError(
                    f"model.policy.adapter.targets: {target!r} is no layer of {type(model).__name__} that can be "
                    f"adapted: give all-linear, or a list of {', '.join(kinds)}"
                )
            chosen += matches
        return chosen


def adapted_layers(model: PreTrainedModel) -> dict[str, Any]:
    """peft's layers by name; none where the model has no adapters."""
    if not hasattr(model, "peft_config"):
        return {}
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


@torch.no_grad()
def merged(model: PreTrainedModel, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """`weights`, named as in the adapted model, as those of a plain one: W + (alpha / rank) B A in place of W.

    Computed in float32 at least, returned in W's dtype. The model itself stays as it is.
    """
    weights = dict(weights)
    for name, layer in adapted_layers(model).items():
        base = weights[f"{name}.base_layer.weight"]
        exact = torch.promote_types(base.dtype, torch.float32)
        a, b = (weights.pop(f"{name}.lora_{each}.{NAME}.weight").to(base.device, exact) for each in "AB")
        change = layer.scaling[NAME] * (b @ a)
        whole = base.to(exact) + (change.T if layer.fan_in_fan_out else change)
        # To the CPU one by one: a GPU need not hold the model twice.
        weights[f"{name}.base_layer.weight"] = whole.to(base.dtype).cpu()
    return {name.replace(".base_layer.", "."): tensor for name, tensor in weights.items()}


def save_adapter(model: PreTrainedModel, weights: dict[str, Tensor], folder: Path) -> None:
    """Writes the adapters in `weights`, named as in the model, as `PeftModel.from_pretrained` reads them."""
    from peft import get_peft_model_state_dict

    config = copy.copy(model.peft_config[NAME])
    config.inference_mode = True
    # A set: in no order of its own.
    config.target_modules = sorted(config.target_modules)
    config.save_pretrained(folder)
    # Without the embeddings, which peft would ask the hub about.
    adapters = get_peft_model_state_dict(model, weights, NAME, save_embedding_layers=False)
    save_file(
        {f"base_model.model.{name}": tensor.cpu().contiguous() for name, tensor in adapters.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
