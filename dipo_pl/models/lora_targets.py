"""Parts of a model that an adapter can be added to, found by what they do: linear layers, routers, experts in one tensor."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dipo_pl.errors import InputError
from dipo_pl.models.eval_mode import eval_mode
from dipo_pl.models.hidden_states import decoder_of

# A setting of a configuration that is the number of experts: num_experts, n_routed_experts, num_local_experts.
EXPERT_COUNT = re.compile(r"(?!.*(shared|_per_)).*(num|n)_.*experts?$")


@dataclass(frozen=True)
class Adaptable:
    """Parts of a model that an adapter can be added to, by their full names.

    Attributes:
        linear: layers whose output is W x + b and nothing else, without the output head and the routers.
        routers: such layers that weigh experts, which keep their choice where all others are adapted.
        experts: tensors [experts, ., .] that hold the weights of several experts.
    """

    linear: tuple[str, ...]
    routers: tuple[str, ...]
    experts: tuple[str, ...]

    @classmethod
    def of(cls, model: PreTrainedModel) -> Self:
        """Return the parts of a model."""
        counts = _expert_counts(model)
        layers = dict(_linear_layers(model, counts))
        routers = [name for name in layers if _is_router(model, name, counts)]
        experts = [
            name
            for name, each in model.named_parameters()
            if each.ndim == 3 and each.shape[0] in counts and each.shape[0] > 1
        ]
        return cls(tuple(each for each in layers if each not in routers), tuple(routers), tuple(experts))

    def chosen(self, targets: str | list[str], owner: str) -> list[str]:
        """Return the parts that `targets` of a LoRA names.

        Args:
            targets: `all-linear`, `all`, a regular expression, or ends of names.
            owner: class of the model, for messages.

        Raises:
            InputError: a target names nothing, or is no regular expression.
        """
        if targets in ("all-linear", "all"):
            found = [*self.linear, *(self.experts if targets == "all" else ())]
            if not found:
                raise InputError(
                    f"model.policy.adapter.targets: {targets!r} matches no linear layer of {owner}: train its weights "
                    "instead, without model.policy.adapter"
                )
            return found
        parts = [*self.linear, *self.routers, *self.experts]
        if isinstance(targets, str):
            patterns = {targets: targets}
        else:
            patterns = {each: rf"(.*\.)?{re.escape(each)}" for each in targets}
        chosen: list[str] = []
        for target, pattern in patterns.items():
            try:
                matches = [name for name in parts if re.fullmatch(pattern, name)]
            except re.error as error:
                raise InputError(
                    f"model.policy.adapter.targets: {target!r} is not a regular expression ({error})"
                ) from error
            if not matches:
                raise InputError(
                    f"model.policy.adapter.targets: {target!r} matches no linear layer of {owner}: give all-linear, or a "
                    f"list of {', '.join(sorted({_kind(name) for name in parts}))}"
                )
            chosen += [each for each in matches if each not in chosen]
        return chosen

    def summary(self, model: PreTrainedModel, chosen: list[str]) -> str:
        """Return one line that says what is adapted and what is left frozen, with shares of the model's weights."""
        sizes = {name: each.numel() for name, each in model.named_parameters()}
        whole = sum(sizes.values())

        def share(names: list[str]) -> str:
            return f"{sum(sizes.get(name, sizes.get(f'{name}.weight', 0)) for name in names) / whole:.1%}"

        kinds = [_kind(name) for name in chosen]
        counted = ", ".join(f"{kinds.count(each)} {each}" for each in sorted(set(kinds)))
        text = f"adapters on {len(chosen)} layers with {share(chosen)} of the weights ({counted})"
        frozen = []
        if left := [each for each in self.experts if each not in chosen]:
            advice = "--model.policy.adapter.targets all adapts them too"
            frozen.append(f"experts in {len(left)} tensors with {share(left)} ({advice})")
        if left := [each for each in self.linear if each not in chosen]:
            frozen.append(f"{len(left)} other linear layers with {share(left)}")
        if left := [each for each in self.routers if each not in chosen]:
            frozen.append(f"{len(left)} routers")
        return f"{text}; left without: {', '.join([*frozen, 'embeddings, output head and norms'])}"


def _linear_layers(model: PreTrainedModel, counts: set[int]) -> Iterator[tuple[str, nn.Module]]:
    head, decoder = model.get_output_embeddings(), {id(each) for each in decoder_of(model).modules()}
    candidates = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and id(module) in decoder
    }
    with torch.no_grad(), eval_mode(model):
        called = _called(model, candidates)
        for name, module in candidates.items():
            # Experts that no token was sent to are not called.
            is_expert = any(
                isinstance(model.get_submodule(each), nn.ModuleList)
                and len(model.get_submodule(each)) in counts  # type: ignore[arg-type]
                for each in _ancestors(name)
            )
            if (name in called or is_expert) and _is_linear(module):
                yield name, module


def _called(model: PreTrainedModel, candidates: dict[str, Any]) -> set[str]:
    """Return the layers that the model calls: of others it reads the weights, past an adapter, or nothing."""
    called: set[str] = set()
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: called.add(name))
        for name, module in candidates.items()
    ]
    ids = torch.zeros(1, 4, dtype=torch.long, device=model.get_input_embeddings().weight.device)
    try:
        decoder_of(model)(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    except Exception:
        # Without contents experts cannot be chosen.
        if ids.is_meta:
            return set(candidates)
        raise
    finally:
        for hook in hooks:
            hook.remove()
    return called


def _is_linear(module: Any) -> bool:
    weight: Tensor = module.weight
    weight = weight.T if isinstance(module, Conv1D) else weight
    width = weight.shape[1]
    values = torch.linspace(-1, 1, 2 * width, device=weight.device).to(weight.dtype).view(2, width)
    try:
        output = module(values)
    except Exception:
        return False
    expected = nn.functional.linear(values, weight, module.bias)
    if not isinstance(output, Tensor) or output.shape != expected.shape:
        return False
    return output.is_meta or torch.allclose(
        output, expected, rtol=0.05, atol=0.01 * float(expected.abs().max())
    )


def _is_router(model: PreTrainedModel, name: str, counts: set[int]) -> bool:
    """Return whether a layer gives one number for each expert, or one for an expert that all tokens share."""
    module: Any = model.get_submodule(name)
    outputs = module.weight.shape[1 if isinstance(module, Conv1D) else 0]
    if outputs not in {1, *counts}:
        return False
    # A router stands beside the experts, or within a module that is beside them.
    return any(_holds_experts(model.get_submodule(each), counts) for each in _ancestors(name)[:2])


def _holds_experts(block: nn.Module, counts: set[int]) -> bool:
    return any(
        (isinstance(child, nn.ModuleList) and len(child) in counts)
        or any(each.ndim == 3 and each.shape[0] in counts for each in child.parameters(recurse=False))
        for child in block.children()
    )


def _ancestors(name: str) -> list[str]:
    """Return the names of the modules that a module lies in, the nearest first, without the model itself."""
    parts = name.split(".")[:-1]
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _expert_counts(model: PreTrainedModel) -> set[int]:
    values: dict[str, Any] = model.config.get_text_config().to_dict()
    for nested in [each for each in values.values() if isinstance(each, dict)]:
        values = values | nested
    return {
        value
        for name, value in values.items()
        if isinstance(value, int) and value > 1 and EXPERT_COUNT.match(str(name))
    }


def _kind(name: str) -> str:
    """Return the last part of a name; of a part that is only a number or `weight`, also the part before."""
    *front, last = name.split(".")
    return f"{front[-1]}.{last}" if front and (last.isdecimal() or last == "weight") else last
