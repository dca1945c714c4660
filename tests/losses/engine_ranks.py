"""What two processes compute for `test_engine_ranks`: apart, since spawned processes import it by name."""

import datetime
from pathlib import Path

import torch
import torch.distributed as dist
from tiny_models import tiny_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from dipo_pl.batch import Encoded, collate
from dipo_pl.losses import DiPO, DiPORetain
from dipo_pl.losses.base import Section
from dipo_pl.losses.engine import joint_objective
from dipo_pl.models.head import OutputHead
from dipo_pl.models.hidden_states import answer_states
from dipo_pl.preferences.constructors import LogitModulation
from dipo_pl.preferences.filters import TopFraction

RANKS = 2
LENGTHS = [(9, 3), (7, 2), (12, 5), (6, 1)]  # tokens and first answer token, of forget and of retain rows


def model(tied):
    return tiny_model("llama", tie_word_embeddings=tied).train()


def batch(rows):
    generator = torch.Generator().manual_seed(1)
    coded = {
        name: [
            Encoded(tuple(torch.randint(61, (length,), generator=generator).tolist()), start)
            for length, start in LENGTHS
        ]
        for name in ("forget", "retain")
    }
    return collate(
        {name: [all_rows[row] for row in rows] for name, all_rows in coded.items()}, [*rows, *rows]
    )


class Step(torch.nn.Module):
    """A training step as a module's forward, where DDP and FSDP2 have the whole weights."""

    def __init__(self, policy):
        super().__init__()
        self.policy = policy

    def forward(self, batch):
        states, targets = (
            batch.by_section(each) for each in (answer_states(self.policy, batch)[None], batch.targets)
        )
        losses = {"forget": DiPO(0.3, LogitModulation(TopFraction(0.2))), "retain": DiPORetain(0.3)}
        # A reference without a model: other states, and the head as it is now.
        head = OutputHead.of(self.policy)
        reference = OutputHead(head.gathered().weight.detach())
        sections = {}
        for name, loss in losses.items():
            sections[name] = Section(
                loss,
                states[name],
                targets[name],
                batch.sections[name].lengths,
                0.5 * states[name].detach(),
            )
        return joint_objective(sections, head, reference, token_budget=6).loss


def whole(parameter):
    gradient = parameter.grad
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient


def gradients_of(policy, value):
    value.backward()
    return {name: whole(parameter).clone() for name, parameter in policy.named_parameters()}


def single(tied):
    """All rows in one process; DiPO's mean over sequences is then that of the ranks' means."""
    policy = model(tied)
    return gradients_of(policy, Step(policy)(batch(range(len(LENGTHS)))))


def ddp(tied, rank):
    policy = model(tied)
    step = DistributedDataParallel(Step(policy))
    return gradients_of(policy, step(batch(range(rank, len(LENGTHS), RANKS))))


def fsdp2(tied, rank):
    """The whole step is the root, so that its forward has the head's whole weight."""
    policy = model(tied)
    step = Step(policy)
    for part in (*policy.model.layers, step):
        fully_shard(part, mesh=init_device_mesh("cpu", (RANKS,)))
    return gradients_of(policy, step(batch(range(rank, len(LENGTHS), RANKS))))


def fsdp2_sharded_head(tied, rank):
    """Nothing gathers the head but the engine. A tied one cannot be sharded apart from the embedding."""
    policy = model(tied=False)
    for part in (*policy.model.layers, policy.model, policy.lm_head):
        fully_shard(part, mesh=init_device_mesh("cpu", (RANKS,)))
    assert isinstance(policy.lm_head.weight, DTensor)
    return gradients_of(policy, Step(policy)(batch(range(rank, len(LENGTHS), RANKS))))


# By name: the strategy and whether the head is tied to the embedding.
CASES = {
    "ddp": (ddp, False),
    "ddp, tied": (ddp, True),
    "fsdp2": (fsdp2, False),
    "fsdp2, tied": (fsdp2, True),
    "fsdp2, sharded head": (fsdp2_sharded_head, False),
}


def run(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/init",
        rank=rank,
        world_size=RANKS,
        timeout=datetime.timedelta(seconds=60),
    )
    torch.save({name: case(tied, rank) for name, (case, tied) in CASES.items()}, result(folder, rank))
    dist.destroy_process_group()


def result(folder, rank):
    return Path(folder) / f"rank{rank}.pt"
