"""FSDP2: every device holds a part of each layer, of its gradients and of the optimizer's state."""

from collections.abc import Mapping

from lightning.pytorch.strategies import StrategyRegistry
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional
from transformers import PreTrainedModel

from dipo_pl.errors import InputError
from dipo_pl.hidden_states import decoder_layers
from dipo_pl.sharding import ShardingStrategy, whole


class FSDP2Strategy(ShardingStrategy):
    """Decoder layers, embedding and head are in shards, each of whose tensors knows its own (DTensor)."""

    def shard(self, model: PreTrainedModel) -> PreTrainedModel:
        """See ShardingStrategy; refuses a model with weights outside of its decoder and head."""
        loaded = model.state_dict() if self.is_global_zero else {}
        head = model.get_output_embeddings()
        decoder = model.get_decoder()
        tied = head.weight is model.get_input_embeddings().weight
        for part in (*decoder_layers(model), decoder, *(() if tied else (head,))):
            # Also the outermost: what stays whole after an evaluation would not be what the optimizer changes.
            fully_shard(part, mesh=self.device_mesh["data_parallel"], reshard_after_forward=True)
        if tied:
            # The head's forward pass is no part of the decoder's, which alone has the embedding whole.
            head.weight = model.get_input_embeddings().weight
            head.forward = lambda states: functional.linear(states, whole(head.weight))
        outside = [name for name, each in model.named_parameters() if not isinstance(each, DTensor)]
        if outside:
            raise InputError(
                f"{type(model).__name__} has weights outside of its decoder and head ({outside[0]}), which fsdp2 does not "
                "shard: use trainer.strategy ddp"
            )
        if not self.is_global_zero:
            buffers = dict(model.named_buffers())
            model.to_empty(device=self.root_device)
            _restore_buffers(model, buffers)
            if tied:
                head.weight = model.get_input_embeddings().weight
        model.to(self.root_device)
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(model, loaded, options=options)
        return model


StrategyRegistry.register("fsdp2", FSDP2Strategy, description="Fully sharded data parallel, PyTorch's second")


def _restore_buffers(model: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
