"""Measured and planned peak of a training step: `measured.py CASE` prints both in bytes.

The peak is that of the resident set during steps in Lightning's order, minus its size before the model is made; malloc
returns everything that is freed. The weights are random, and stored states are mapped from a file, as in a run.
"""

import json
import sys
import warnings
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from worker import ResidentMemory

from dipo_pl.batch import Encoded, collate
from dipo_pl.commands.plan.machine import Machine
from dipo_pl.commands.plan.step import Shapes, memory_of
from dipo_pl.losses import NPO, CrossEntropy, DiPO, DiPORetain, GradientAscent
from dipo_pl.models.from_config import FromConfig
from dipo_pl.models.lora import LoRA
from dipo_pl.modules.fused_update import fused_update
from dipo_pl.modules.unlearning import Unlearning
from dipo_pl.references.base import ReferenceContext
from dipo_pl.references.frozen_copy import FrozenCopy
from dipo_pl.references.stored_states import StoredStates
from dipo_pl.steps.gradient_rectified import GradientRectified
from dipo_pl.steps.sharpness_aware import SharpnessAware

LOSSES = {
    "DiPO": lambda: (DiPO(), DiPORetain()),
    "NPO": lambda: (NPO(), CrossEntropy()),
    "GradDiff": lambda: (GradientAscent(), CrossEntropy()),
}
TIME = 96


@dataclass(frozen=True)
class Case:
    losses: str = "DiPO"
    reference: type | None = FrozenCopy
    lora: bool = False
    checkpointing: bool = False
    rows: int = 8
    vocabulary: int = 32_000
    accumulates: bool = False
    autocast: bool = False
    step: type | None = None
    model: str = "llama"
    width: int = 384
    layers: int = 6

    def shape(self, tiny: bool) -> dict:
        width, layers = (32, 2) if tiny else (self.width, self.layers)
        vocabulary = 64 if tiny else self.vocabulary
        if self.model == "gpt2":
            shape = {"n_embd": width, "n_layer": layers, "n_head": 2 if tiny else 6, "n_positions": TIME}
            dropout = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
            return {"model_type": "gpt2", "vocab_size": vocabulary, **shape, **dropout}
        return {
            "model_type": "llama",
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": 64 if tiny else 8 * width // 3,
            "num_hidden_layers": layers,
            "num_attention_heads": 2 if tiny else 6,
            "max_position_embeddings": TIME,
        }

    def module(self, tiny: bool = False) -> Unlearning:
        forget, retain = LOSSES[self.losses]()
        policy = FromConfig(
            self.shape(tiny),
            adapter=LoRA() if self.lora else None,
            gradient_checkpointing=self.checkpointing,
        )
        reference, step = (None if each is None else each() for each in (self.reference, self.step))
        return Unlearning(policy, forget, retain, reference=reference, step=step)

    def training(self, tiny: bool = False) -> dict[str, list[Encoded]]:
        draw = torch.Generator().manual_seed(0)
        vocabulary = 64 if tiny else self.vocabulary
        return {
            name: [
                Encoded(tuple(torch.randint(vocabulary, (TIME,), generator=draw).tolist()), TIME // 3)
                for _ in range(self.rows)
            ]
            for name in ("forget", "retain")
        }

    def planned(self):
        shapes = Shapes(self.training(), (1, 2), (0, 2), self.accumulates)
        machine = Machine(1, "single device", False, True, None, "bfloat16" if self.autocast else None)
        return memory_of(self.module(), shapes, machine, self.vocabulary)


# Small enough for tests.
SMALL = {
    "StoredStates, accumulation": Case(
        reference=StoredStates, accumulates=True, vocabulary=1_000, width=192, layers=3
    ),
    "LoRA, checkpointing": Case(
        reference=None, lora=True, checkpointing=True, rows=2, vocabulary=16_000, width=192, layers=3
    ),
    "SharpnessAware": Case(
        "GradDiff", None, rows=2, vocabulary=16_000, width=192, layers=3, step=SharpnessAware
    ),
    "GradientRectified": Case(
        "GradDiff", None, rows=2, vocabulary=16_000, width=192, layers=3, step=GradientRectified
    ),
}
CASES = {
    "DiPO, FrozenCopy": Case(),
    "DiPO, StoredStates": Case(reference=StoredStates),
    "DiPO, LoRA": Case(reference=None, lora=True),
    "DiPO, FrozenCopy, checkpointing": Case(checkpointing=True),
    "DiPO, LoRA, checkpointing": Case(reference=None, lora=True, checkpointing=True),
    "DiPO, StoredStates, 2 + 2 rows": Case(reference=StoredStates, rows=2),
    "DiPO, StoredStates, 2 + 2 rows, checkpointing": Case(reference=StoredStates, rows=2, checkpointing=True),
    "DiPO, FrozenCopy, vocabulary 8,000": Case(vocabulary=8_000),
    "DiPO, FrozenCopy, accumulation": Case(accumulates=True),
    "NPO, StoredStates": Case("NPO", StoredStates),
    "GradDiff": Case("GradDiff"),
    "DiPO, FrozenCopy, GPT-2": Case(model="gpt2"),
    "DiPO, FrozenCopy, autocast": Case(autocast=True),
    "DiPO, FrozenCopy, autocast, checkpointing": Case(autocast=True, checkpointing=True),
}


class Steps:
    """Complete steps of a real model in Lightning's order."""

    def __init__(self, case: Case, tiny: bool = False) -> None:
        self.case, self.module = case, case.module(tiny)
        self.model = self.module.model = _model(self.module.policy)
        sequences = case.training(tiny)
        self.batch = collate(sequences, [*range(case.rows)] * 2)
        with TemporaryDirectory() as folder, redirect_stderr(StringIO()):
            if self.module.reference_layers:
                self.module.reference.attach(
                    self.model,
                    ReferenceContext(
                        {None}, sequences, {}, Path(folder), torch.device("cpu"), self.precision, 0, 1, int
                    ),
                )
        self.trained = [each for each in self.model.parameters() if each.requires_grad]
        self.optimizer = fused_update(self.module.optimizer(self.trained))
        self.module.step.prepare(self.module.trained_weights)

    def precision(self):
        return torch.autocast("cpu", torch.bfloat16, self.case.autocast, cache_enabled=False)

    def take(self) -> None:
        with self.precision():
            loss = self.module.training_step(self.batch, 0)
        if not self.case.accumulates:
            self.optimizer.zero_grad()
        self.module.backward(loss)
        self.module.step.finish(self.module.objective, 1)
        self.optimizer.step()


def _model(policy: FromConfig) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_config(policy.configuration())
    if policy.adapter is not None:
        policy.adapter.apply(model)
    return policy.prepare(model)


def measured(case: Case) -> float:
    torch.set_num_threads(1)
    memory = ResidentMemory()
    # Kernels are loaded by the first steps.
    warm = Steps(case, tiny=True)
    warm.take()
    warm.take()
    del warm
    before = memory.now()
    steps = Steps(case)
    steps.take()
    memory.reset_peak()
    steps.take()
    return memory.peak() - before


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if len(sys.argv) < 2:
        raise SystemExit(f"measured.py CASE: {'; '.join(CASES | SMALL)}")
    case = (CASES | SMALL)[sys.argv[1]]
    real, planned = measured(case), case.planned()
    print(
        json.dumps({"measured": real, "planned": max(planned.forward, planned.backward, planned.optimizer)})
    )
