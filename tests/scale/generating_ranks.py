"""What each rank generates for `test_generation_ranks`: apart, since spawned processes import it by name."""

import datetime
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

from dipo_pl.models.generation import generate

# Rank 0 has more rows than it may hold at a time, rank 1 one that ends early, and then none.
PROMPTS = ([[1, 2, 3], [4, 5], [6, 7, 8, 9]], [[7, 7]])
LENGTH = 11


class Letters:
    """A tokenizer as far as generation needs one."""

    # Some of these rows generate it, and others never do.
    eos_token_id = 1

    def batch_decode(self, rows, **_):
        return [" ".join(map(str, row)) for row in rows]


def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=23, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=1.0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def texts(policy, prompts):
    letters = Letters()
    return generate(policy, letters, prompts, LENGTH, cache_tokens=30) + generate(policy, letters, [], LENGTH)


def run(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )  # fmt: skip
    policy = model()
    for part in (*policy.model.layers, policy.model, policy.lm_head):
        fully_shard(part, mesh=init_device_mesh("cpu", (2,)), reshard_after_forward=True)
    torch.save(texts(policy, PROMPTS[rank]), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
