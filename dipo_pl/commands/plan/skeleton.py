"""Model without weights: its tensors are fake ones, which have shapes only."""

from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from dipo_pl.commands.plan.machine import Machine
from dipo_pl.errors import InputError
from dipo_pl.models.from_config import FromConfig
from dipo_pl.models.pretrained import Pretrained
from dipo_pl.models.source import ModelSource, short_message
from dipo_pl.private_names import FakeTensorMode


class CopyableFakeTensorMode(FakeTensorMode):
    """FakeTensorMode in which a model can be copied with deepcopy."""

    def __deepcopy__(self, memo: Any) -> Self:
        return self


def skeleton(policy: ModelSource, machine: Machine, vocabulary: int | None) -> PreTrainedModel:
    """Return the policy's model in train mode on the meta device, made from its configuration alone.

    Args:
        policy: source of the model.
        machine: its dtype is the model's.
        vocabulary: tokens of the tokenizer, for a model that is made from a configuration.

    Raises:
        InputError: the policy is quantized, or its model cannot be made.
    """
    if policy.quantization is not None:
        raise InputError(
            f"model.policy.quantization is {policy.quantization}, and a quantized policy cannot be trained: leave it out"
        )
    config: Any = policy.configuration()
    options: dict[str, Any] = {"attn_implementation": policy.attention} if policy.attention else {}
    if isinstance(policy, FromConfig):
        if vocabulary is not None:
            text = config.get_text_config()
            text.vocab_size = vocabulary
            # A padding token beyond the vocabulary is refused, and the tokenizer's is not known.
            text.bos_token_id = text.eos_token_id = text.pad_token_id = None
    elif isinstance(policy, Pretrained):
        dtype = config.dtype if policy.dtype == "auto" else getattr(torch, policy.dtype)
        options |= {"dtype": dtype or torch.float32, "trust_remote_code": policy.trust_remote_code}
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, **options)
    except Exception as error:
        raise InputError(
            f"cannot make the model of {policy.source} from its configuration: {short_message(error)}"
        ) from error
    if policy.adapter is not None:
        policy.adapter.apply(model)
    if machine.dtype is not None:
        model.to(getattr(torch, machine.dtype))
    return policy.prepare(model)


def make_fake(model: PreTrainedModel) -> None:
    """Replace the tensors of a model on the meta device, in place, by fake ones of the active FakeTensorMode."""
    fakes: dict[int, Tensor] = {}
    for module in model.modules():
        own: dict[str, Tensor] = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        own |= dict(module.named_buffers(recurse=False, remove_duplicate=False))
        for name, each in own.items():
            if id(each) not in fakes:
                empty = torch.empty(each.shape, dtype=each.dtype)
                is_parameter = isinstance(each, nn.Parameter)
                fakes[id(each)] = nn.Parameter(empty, each.requires_grad) if is_parameter else empty
            setattr(module, name, fakes[id(each)])
