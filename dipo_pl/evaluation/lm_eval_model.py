"""A model in memory as lm-eval sees it. Imported only where lm-eval is installed."""

import copy
import logging

import torch
import torch.distributed as dist
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

# It warns of every model that it has not loaded itself.
logging.getLogger(HFLM.__module__).addFilter(lambda record: "`pretrained`" not in record.getMessage())


class HarnessModel(HFLM):
    """Model of lm-eval that is in memory already, whole on each rank; ranks share the documents of each task.

    It computes in the precision of the autocast around it, if there is one.

    Args:
        model: the language model.
        tokenizer: its tokenizer, which stays as it is.
        batch_size: sequences in a forward pass.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> None:
        kind = model.device.type
        super().__init__(
            pretrained=model,
            backend="causal",
            # lm-eval chooses a padding token where there is none.
            tokenizer=copy.deepcopy(tokenizer),
            batch_size=batch_size,
            mixed_precision_dtype=torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None,
        )

    @property
    def rank(self) -> int:
        """Rank of this process."""
        return dist.get_rank() if dist.is_initialized() else 0

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return dist.get_world_size() if dist.is_initialized() else 1

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all ranks as one."""
        if self.world_size == 1:
            return tensor
        gathered = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(gathered, tensor)
        return torch.stack(gathered)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()
