"""Weights of low-rank adapters in a model: their names, merged into its own weights, and as a file."""

import copy
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from dipo_pl.distributed import full_tensor
from dipo_pl.errors import InputError, short_message

# Name of the adapters in peft.
NAME = "default"


def adapted_layers(model: PreTrainedModel) -> dict[str, Any]:
    """Return the layers with adapters (`peft.tuners.lora.LoraLayer`) by name, none for a model without adapters."""
    if not hasattr(model, "peft_config"):
        return {}
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def adapted_weights(model: PreTrainedModel) -> dict[str, str]:
    """Return the name of each layer with adapters by the name that the weight under them has without adapters."""
    return {
        plain_name(f"{name}.{getattr(layer, 'parameter_name', 'weight')}"): name
        for name, layer in adapted_layers(model).items()
    }


def plain_name(name: str) -> str:
    """Return the name of a weight in the model without adapters."""
    return re.sub(r"(\.base_layer)+(?=\.|$)", "", name)


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
def merged(model: PreTrainedModel, weights: dict[str, Tensor], exact: bool = False) -> dict[str, Tensor]:
    """Return `weights` with the adapters merged: W + (alpha / rank) B A in place of W, A and B.

    The sum is computed in float32 or higher and rounded once to the dtype of W. The model is not changed.

    Args:
        model: a model with adapters.
        weights: tensors named as in that model.
        exact: do not round the sum.

    Returns:
        Tensors named as in the model without adapters.
    """
    weights = {plain_name(name) if ".lora_" not in name else name: each for name, each in weights.items()}
    layers = adapted_layers(model)
    for weight, name in adapted_weights(model).items():
        layer, base = layers[name], weights[weight]
        kind = torch.promote_types(base.dtype, torch.float32)
        a, b = (weights.pop(f"{name}.lora_{each}.{NAME}.weight").to(base.device, kind) for each in "AB")
        whole = base.to(kind) + layer.scaling[NAME] * _product(layer, a, b)
        whole = whole if exact else whole.to(base.dtype)
        # Moved to the CPU one by one, so that a GPU does not hold the model twice.
        weights[weight] = whole if whole.is_meta else whole.cpu()
    return weights


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


def _product(layer: Any, a: Tensor, b: Tensor) -> Tensor:
    """Return B A, of a tensor of experts [experts, out, in], transposed where the model holds that."""
    experts: int = getattr(layer, "num_experts", 0)
    if not experts:
        return (b @ a).T if layer.fan_in_fan_out else b @ a
    lower, upper = a.view(experts, -1, a.shape[1]), b.view(b.shape[0], -1, experts)
    form = "eio" if getattr(layer.get_base_layer(), "is_transposed", False) else "eoi"
    return torch.einsum(f"ore,eri->{form}", upper, lower)


def check_export(model: PreTrainedModel) -> None:
    """Try the merging of adapters and the names of the merged weights, without contents.

    Raises:
        InputError: the model with adapters cannot be exported as a plain one.
    """
    empty = {name: torch.empty_like(each, device="meta") for name, each in model.state_dict().items()}
    try:
        whole = merged(model, empty)
        revert_weight_conversion(model, dict(whole))
    except Exception as error:
        raise InputError(
            f"the adapters cannot be merged into {type(model).__name__} ({type(error).__name__}: {short_message(error)}): "
            "set export.adapter to true, or leave layers out of model.policy.adapter.targets"
        ) from error


def check_adapter_export(model: PreTrainedModel, trust_remote_code: bool = False) -> None:
    """Try whether peft will put saved adapters where they were trained: of some models it renames the layers.

    Raises:
        InputError: it would not.
    """
    from peft import inject_adapter_in_model

    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(model.config, trust_remote_code=trust_remote_code)
    wanted, why = adapted_weights(model).keys(), ""
    try:
        config = copy.deepcopy(model.peft_config[NAME])
        inject_adapter_in_model(config, plain, NAME, low_cpu_mem_usage=True)
        different = wanted ^ adapted_weights(plain).keys()
        if different:
            why = f"it adapts other layers, such as {min(different)}"
        elif _shapes(plain) != _shapes(model):
            why = "it adapts them with another rank"
    except Exception as error:
        why = short_message(error)
    if why:
        raise InputError(
            f"peft {metadata.version('peft')} cannot read adapters of these layers of {type(model).__name__} ({why}): set "
            "export.adapter to false, which merges them, or leave layers out of model.policy.adapter.targets"
        )


def _shapes(model: PreTrainedModel) -> list[torch.Size]:
    return [each.shape for name, each in model.named_parameters() if ".lora_" in name]
