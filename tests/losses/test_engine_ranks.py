"""The engine under DDP and FSDP2 in two real processes: the gradients of one."""

import forked
import pytest
import torch
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
            lengths, own = batch.sections[name].lengths, states[name]
            sections[name] = Section(loss, own, targets[name], lengths, 0.5 * own.detach())
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


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two gloo processes got, by case."""
    folder = tmp_path_factory.mktemp("engine")

    def run(rank):
        with forked.gloo(folder, rank):
            torch.save(
                {name: case(tied, rank) for name, (case, tied) in CASES.items()}, folder / f"{rank}.pt"
            )

    forked.run_ranks(run, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_have_the_gradients_of_one(ranks, case):
    """Each has half of the rows; DiPO's mean over sequences is the mean of the ranks' means. Float32 rounding."""
    expected = single(CASES[case][1])
    for found in ranks:
        assert found[case].keys() == expected.keys()
        for name, gradient in expected.items():
            limit = 2e-6 * float(gradient.abs().max())
            torch.testing.assert_close(found[case][name], gradient, rtol=0, atol=limit)
