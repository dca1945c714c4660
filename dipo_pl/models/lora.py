"""Low-rank adapters, which are trained in place of the weights of the model itself."""

import copy
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dipo_pl.distributed import full_tensor
from dipo_pl.errors import InputError, check_count, check_number, check_share

NAME = "default"


class LoRA:
    r"""Low-rank adapters on linear layers; the weights of the model itself are frozen.

        y = W x + (alpha / rank) B A x

    A [rank, in] is initialized uniformly in +-1 / sqrt(in) and B [out, rank] with 0, so that training starts from
    the unchanged model. A and B are float32 even where W is bfloat16 or float16, unless trainer.precision
    (bf16-true, 16-true) casts the whole policy. Needs peft: pip install 'dipo-pl[lora]'.

    Source: LoRA, arXiv:2106.09685, Section 4.1.

    Args:
        rank: rank of B A, at least 1.
        alpha: scale of B A, which is divided by the rank, > 0.
        dropout: probability in training that A does not see an entry of x, in [0, 1).
        targets: `all-linear` for every linear layer except the output head; else names of layers
            ([q_proj, v_proj]), or a regular expression that matches their full names.
        seed: seed of A; null takes seed_everything on the command line, else 0.

    Raises:
        InputError: an argument is out of range, or `targets` is empty.
    """

    def __init__(
        self,
        rank: int = 16,
        alpha: float = 32.0,
        dropout: float = 0.0,
        targets: str | list[str] = "all-linear",
        seed: int | None = None,
    ) -> None:
        check_count("model.policy.adapter.rank", rank)
        check_number("model.policy.adapter.alpha", alpha, above=0)
        check_share("model.policy.adapter.dropout", dropout, zero=True, one=False)
        if not targets:
            raise InputError("model.policy.adapter.targets is empty: name layers, or all-linear")
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self.targets = targets
        self.seed = seed or 0

    def apply(self, model: PreTrainedModel) -> None:
        """Add adapters to the model, in place, and freeze all other weights.

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
            # The layers of GPT-2 hold the transpose of W.
            fan_in_fan_out=any(isinstance(each, Conv1D) for each in model.modules()),
            base_model_name_or_path=model.name_or_path or None,
        )
        # A depends on this seed only: not on the global generator, nor on the default device.
        with torch.random.fork_rng(), torch.device("cpu"):
            torch.manual_seed(self.seed)
            # A model on the meta device gets adapters on the meta device.
            inject_adapter_in_model(
                config, model, NAME, low_cpu_mem_usage=model.get_input_embeddings().weight.is_meta
            )
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))

    def _layers(self, model: PreTrainedModel) -> list[str]:
        """Return the full names of the layers that get adapters."""
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
                    f"model.policy.adapter.targets: {target!r} is not a regular expression ({error})"
                ) from error
            if not matches:
                kinds = sorted({name.rpartition(".")[2] for name in linear})
                raise InputError(
                    f"model.policy.adapter.targets: {target!r} matches no linear layer of {type(model).__name__}: "
                    f"give all-linear, or a list of {', '.join(kinds)}"
                )
            chosen += matches
        return chosen


def adapted_layers(model: PreTrainedModel) -> dict[str, Any]:
    """Return the layers with adapters (`peft.tuners.lora.LoraLayer`) by name, none for a model without adapters."""
    if not hasattr(model, "peft_config"):
        return {}
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def weights_in_use(model: PreTrainedModel) -> nn.ParameterList:
    """Return the parameters except adapters with B = 0, so that equal functions have equal weights.

    A collective if they are sharded.
    """
    unused = {
        id(parameter)
        for layer in adapted_layers(model).values()
        if not any(full_tensor(each.weight).any() for each in layer.lora_B.values())
        for name, parameter in layer.named_parameters()
        if not name.startswith("base_layer.")
    }
    return nn.ParameterList(each for each in model.parameters() if id(each) not in unused)


@torch.no_grad()
def merged(model: PreTrainedModel, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `weights` with the adapters merged: W + (alpha / rank) B A in place of W, A and B.

    The sum is computed in float32 or higher and rounded once to the dtype of W. The model is not changed.

    Args:
        model: a model with adapters.
        weights: tensors named as in that model.

    Returns:
        Tensors named as in the model without adapters.
    """
    weights = dict(weights)
    for name, layer in adapted_layers(model).items():
        base = weights[f"{name}.base_layer.weight"]
        exact = torch.promote_types(base.dtype, torch.float32)
        a, b = (weights.pop(f"{name}.lora_{each}.{NAME}.weight").to(base.device, exact) for each in "AB")
        change = layer.scaling[NAME] * (b @ a)
        whole = base.to(exact) + (change.T if layer.fan_in_fan_out else change)
        # Moved to the CPU one by one, so that a GPU does not hold the model twice.
        weights[f"{name}.base_layer.weight"] = whole.to(base.dtype).cpu()
    return {name.replace(".base_layer.", "."): tensor for name, tensor in weights.items()}


def save_adapter(model: PreTrainedModel, weights: dict[str, Tensor], folder: Path) -> None:
    """Write the adapters in a format that `PeftModel.from_pretrained` reads.

    Args:
        model: the model with adapters.
        weights: tensors named as in that model.
        folder: gets adapter_config.json and adapter_model.safetensors.
    """
    from peft import get_peft_model_state_dict

    config = copy.copy(model.peft_config[NAME])
    config.inference_mode = True
    # A set has no order, and files of equal adapters should be equal.
    config.target_modules = sorted(config.target_modules)
    config.save_pretrained(folder)
    # Whether embeddings changed is a question that peft would ask the hub.
    adapters = get_peft_model_state_dict(model, weights, NAME, save_embedding_layers=False)
    save_file(
        {f"base_model.model.{name}": tensor.cpu().contiguous() for name, tensor in adapters.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
