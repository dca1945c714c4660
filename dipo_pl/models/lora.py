"""Low-rank adapters, which are trained in place of the weights of the model itself."""

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dipo_pl.errors import InputError, check_count, check_number, check_objects, check_share
from dipo_pl.models.adapters import NAME, adapted_weights
from dipo_pl.models.fila import FILA
from dipo_pl.models.lora_targets import Adaptable


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
        targets: `all-linear` for every linear layer except the output head and the routers of experts; `all` for these and
            the experts that a model holds in one tensor; else names of layers ([q_proj, v_proj]), or a regular expression
            that matches their full names.
        initialization: FILA starts A and B from the weights that matter for the forget rows; null is as above.
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
        initialization: FILA | None = None,
    ) -> None:
        check_objects("model.policy.adapter", initialization=initialization)
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
        self.initialization = initialization

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
        parts = Adaptable.of(model)
        chosen = parts.chosen(self.targets, type(model).__name__)
        experts = [each for each in chosen if each in parts.experts]
        if experts and self.dropout:
            raise InputError(
                f"model.policy.adapter.dropout is {self.dropout}, and adapters of experts in one tensor have none: set it "
                "to 0, or leave the experts out of model.policy.adapter.targets"
            )
        summary = parts.summary(model, chosen)
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=[f"model.{each}" for each in chosen if each not in experts],
            target_parameters=[f"model.{each}" for each in experts] or None,
            # The layers of GPT-2 hold the transpose of W.
            fan_in_fan_out=any(isinstance(each, Conv1D) for each in model.modules()),
            base_model_name_or_path=model.name_or_path or None,
        )
        # Under another module: peft renames the targets of some models that it knows by their configuration, and with
        # them layers of the same name that have nothing to do with experts.
        holder = nn.Module()
        holder.model = model
        # A depends on this seed only: not on the global generator, nor on the default device.
        with torch.random.fork_rng(), torch.device("cpu"):
            torch.manual_seed(self.seed)
            # A model on the meta device gets adapters on the meta device.
            inject_adapter_in_model(
                config, holder, NAME, low_cpu_mem_usage=model.get_input_embeddings().weight.is_meta
            )
        config.target_modules = {each for each in chosen if each not in experts}
        config.target_parameters = experts or None
        model.peft_config = {NAME: config}
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
        wanted = {each if each in experts else f"{each}.weight" for each in chosen}
        if different := wanted ^ adapted_weights(model).keys():
            raise InputError(
                f"peft does not adapt what model.policy.adapter.targets names in {type(model).__name__} ({min(different)} "
                f"and {len(different) - 1} others differ): name other layers"
            )
        rank_zero_info(summary)
