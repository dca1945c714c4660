"""Ranks with unequal work generate from a model in shards what each would alone, and none waits for ever."""

import forked
import torch
from tiny_models import tiny_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from dipo_pl.models.generation import generate

# Rank 0 has more rows than it may hold at a time, rank 1 one that ends early, and then none.
PROMPTS = ([[1, 2, 3], [4, 5], [6, 7, 8, 9]], [[7, 7]])


class Letters:
    """A tokenizer as far as generation needs one."""

    # Some of these rows generate it, and others never do.
    eos_token_id = 1

    def batch_decode(self, rows, **_):
        return [" ".join(map(str, row)) for row in rows]


def model():
    changes = {"vocab_size": 23, "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": None}
    return tiny_model(initializer_range=1.0, **changes)


def texts(policy, prompts):
    return [text for some in (prompts, []) for text in generate(policy, Letters(), some, 11, cache_tokens=30)]


def test_ranks_generate_what_one_process_does(tmp_path):
    def run(rank):
        with forked.gloo(tmp_path, rank):
            policy = model()
            for part in (*policy.model.layers, policy.model, policy.lm_head):
                fully_shard(part, mesh=init_device_mesh("cpu", (2,)), reshard_after_forward=True)
            torch.save(texts(policy, PROMPTS[rank]), tmp_path / f"{rank}.pt")

    forked.run_ranks(run, tmp_path)
    expected = [texts(model(), each) for each in PROMPTS]
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)] == expected
    # Some rows have ended and others not.
    assert len({len(text.split()) for each in expected for text in each}) > 1
