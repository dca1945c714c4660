"""What is compared: the plain implementations, and ours with each reference and each method."""

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import plain
import torch
from floor import Floor
from sizes import Size
from torch import Tensor
from transformers import PreTrainedModel

from dipo_pl.batch import collate
from dipo_pl.losses import (
    CEU,
    DPO,
    KTO,
    NPO,
    PDU,
    RMU,
    SHRED,
    UNDIAL,
    WGA,
    CrossEntropy,
    DiPO,
    DiPORetain,
    GradientAscent,
    InvertedHinge,
    Loss,
    MaximumEntropy,
    ReferenceKL,
    RMURetain,
    SatImp,
    SimNPO,
)
from dipo_pl.models.compiled_layers import compile_layers
from dipo_pl.models.from_config import FromConfig
from dipo_pl.models.lora import LoRA
from dipo_pl.modules.unlearning import Unlearning
from dipo_pl.references.adapter_off import AdapterOff
from dipo_pl.references.base import Reference, ReferenceContext
from dipo_pl.references.frozen_copy import FrozenCopy
from dipo_pl.references.stored_states import StoredStates
from dipo_pl.steps.base import StepScheme
from dipo_pl.steps.gradient_rectified import GradientRectified
from dipo_pl.steps.sharpness_aware import SharpnessAware

PLAIN_GRADDIFF, PLAIN_NPO, PLAIN_DIPO = "plain GradDiff", "plain NPO", "plain DiPO"
PLAIN_CHUNKED = f"{PLAIN_GRADDIFF}, chunked"
PLAIN_THREE_SETS, PLAIN_LORA = "plain GradDiff, three sets", "plain GradDiff, LoRA"
PLAIN_DPO, PLAIN_KTO, PLAIN_DIPO_LORA = "plain DPO", "plain KTO", "plain DiPO, LoRA"

# What training_step logs goes nowhere, since there is no trainer.
warnings.filterwarnings("ignore", r".*self\.log\(\)")


@dataclass
class Step:
    """What a case has made ready.

    Attributes:
        loss: the forward half of a training step.
        backward: the other half, which leaves gradients on the parameters.
        store_seconds, store_mib: what it took to make stored states, and what they take.
    """

    loss: Callable[[], Tensor]
    backward: Callable[[Tensor], None] = Tensor.backward
    store_seconds: float | None = None
    store_mib: float | None = None


@dataclass(frozen=True, kw_only=True)
class Case(ABC):
    """A method with a reference.

    Attributes:
        lora: only adapters are trained.
        compiled: by torch.compile.
        like: the plain case of the same rows and the same trained weights, the strongest one of the same loss, or the key of
            the case that differs in the step scheme alone.
        equals: the plain case whose loss and gradient this must give.
    """

    name: str
    lora: bool = False
    compiled: bool = False
    like: str = PLAIN_GRADDIFF
    equals: str | None = None

    @property
    @abstractmethod
    def reference_name(self) -> str: ...

    @property
    @abstractmethod
    def sets(self) -> int:
        """Of rows."""

    @property
    def key(self) -> str:
        return f"{self.name}, {self.reference_name}"

    @property
    def floor(self) -> Floor:
        return Floor(self.sets, self.lora)

    def policy(self, size: Size) -> PreTrainedModel:
        policy = size.policy()
        if self.lora:
            LoRA().apply(policy)
        return policy

    @abstractmethod
    def prepare(self, policy: PreTrainedModel, size: Size) -> Step:
        """Makes the reference from the policy as it is now, and the step."""

    def needs(self, size: Size) -> int:
        """Bytes, roughly, beside weights and optimizer."""
        return 0


@dataclass(frozen=True, kw_only=True)
class Plain(Case):
    """
    Attributes:
        full_logits: how many tensors of one set's logits exist at once, at most.
    """

    method: Callable[..., Tensor]
    full_logits: int
    two_models: bool = False
    sections: tuple[str, ...] = ("forget", "retain")

    @property
    def reference_name(self) -> str:
        return "second model" if self.two_models else "none"

    @property
    def sets(self) -> int:
        return len(self.sections)

    def prepare(self, policy: PreTrainedModel, size: Size) -> Step:
        reference = copy.deepcopy(policy).eval().requires_grad_(False) if self.two_models else None
        models: list[Any] = [policy, reference]
        if self.compiled:
            models = [model and torch.compile(model) for model in models]
        sets = {}
        for name, rows in size.sequences(self.sections).items():
            batch = collate({name: rows}, range(len(rows))).to(torch.device(size.device))
            labels = batch.input_ids.clone()
            labels[:, : size.prompt] = plain.IGNORED
            sets[name] = plain.Rows(batch.input_ids, batch.attention_mask, labels)
        return Step(partial(self.method, *models, sets))

    def needs(self, size: Size) -> int:
        return self.full_logits * size.set_logits


@dataclass(frozen=True, kw_only=True)
class Ours(Case):
    """
    Attributes:
        scheme: null is JointStep.
    """

    forget: Loss
    retain: Loss
    scheme: type[StepScheme] | None = None
    reference: type[Reference] = StoredStates

    def policy(self, size: Size) -> PreTrainedModel:
        policy = super().policy(size)
        if self.compiled:
            compile_layers(policy, torch.device(size.device))
        return policy

    @property
    def reference_name(self) -> str:
        uses_reference = self.forget.uses_reference or self.retain.uses_reference
        return self.reference.__name__ if uses_reference else "none"

    @property
    def sets(self) -> int:
        return 2 + len(self.forget.companions)

    def prepare(self, policy: PreTrainedModel, size: Size) -> Step:
        module = Unlearning(
            FromConfig({"model_type": "llama"}),
            self.forget,
            self.retain,
            reference=self.reference(),
            step=None if self.scheme is None else self.scheme(),
        )
        module.model = policy
        module.train()
        module.step.prepare(module.trained_weights)
        sequences = size.sequences([kind for kinds in module.sections.values() for kind in kinds])
        rows = [row for some in sequences.values() for row in range(len(some))]
        batch = collate(sequences, rows, module.sections).to(torch.device(size.device))

        def backward(loss: Tensor) -> None:
            module.backward(loss)
            module.step.finish(module.objective, 1)

        step = Step(lambda: module.training_step(batch, 0), backward)
        if module.reference_layers:
            # What has been mapped stays when its file's name goes. No progress bar among the results.
            with TemporaryDirectory() as folder, redirect_stderr(StringIO()):
                context = ReferenceContext(
                    layers=module.reference_layers,
                    sequences=sequences,
                    identity={},
                    folder=Path(folder),
                    device=torch.device(size.device),
                    precision=nullcontext,
                    rank=0,
                    world_size=1,
                    barrier=lambda: None,
                )
                start = perf_counter()
                module.reference.attach(policy, context)
                if isinstance(module.reference, StoredStates):
                    step.store_seconds = perf_counter() - start
                    files = [each for each in Path(folder).rglob("*") if each.is_file()]
                    step.store_mib = sum(each.stat().st_size for each in files) / 2**20
        return step


def _with_cross_entropy(name: str, forget: Loss, **options: Any) -> Ours:
    """On retain rows, so that all methods see as many rows."""
    name = f"{name} + CE, LoRA" if options.get("lora") else f"{name} + CE"
    return Ours(name=name, forget=forget, retain=CrossEntropy(), **options)


def _with_scheme(scheme: type[StepScheme]) -> tuple[Ours, ...]:
    """Two pairs of losses, without a reference and with one, beside the same pairs in a JointStep."""
    joint = (_with_cross_entropy("GradientAscent", GradientAscent()), _dipo(StoredStates))
    return tuple(
        replace(each, name=f"{each.name}, {scheme.__name__}", scheme=scheme, like=each.key) for each in joint
    )


def _dipo(reference: type[Reference], **options: Any) -> Ours:
    name = "DiPO, LoRA" if options.get("lora") else "DiPO"
    name += ", compiled" if options.get("compiled") else ""
    return Ours(name=name, forget=DiPO(), retain=DiPORetain(), reference=reference, **options)


def _also_compiled(case: Plain) -> tuple[Plain, Plain]:
    return case, replace(case, name=f"{case.name}, compiled", compiled=True, equals=case.name)


def _comparing(name: str, method: Callable[..., Tensor], companion: str) -> Plain:
    """Two models on forget rows with a companion, and on retain rows."""
    sections = ("forget", companion, "retain")
    return Plain(
        name=name, method=method, sections=sections, two_models=True, full_logits=10, like=PLAIN_THREE_SETS
    )


# Layer 1 of 6, as layer 7 of 32 in RMU's paper.
_LAYER = 1

CASES: dict[str, Case] = {
    case.key: case
    for case in (
        *_also_compiled(Plain(name=PLAIN_GRADDIFF, method=plain.graddiff, full_logits=6)),
        Plain(
            name=PLAIN_CHUNKED,
            method=plain.chunked_graddiff,
            full_logits=0,
            equals=PLAIN_GRADDIFF,
        ),
        *_also_compiled(Plain(name=PLAIN_NPO, method=plain.npo, two_models=True, full_logits=8)),
        Plain(name=PLAIN_DIPO, method=plain.dipo, two_models=True, full_logits=16),
        Plain(
            name=PLAIN_THREE_SETS,
            method=plain.graddiff,
            sections=("forget", "alternate", "retain"),
            full_logits=8,
        ),
        _comparing(PLAIN_DPO, plain.dpo, "alternate"),
        _comparing(PLAIN_KTO, plain.kto, "mismatched"),
        Plain(name=PLAIN_LORA, method=plain.graddiff, lora=True, full_logits=6),
        Plain(
            name=f"{PLAIN_LORA}, chunked",
            method=plain.chunked_graddiff,
            lora=True,
            full_logits=0,
            like=PLAIN_LORA,
            equals=PLAIN_LORA,
        ),
        Plain(
            name=PLAIN_DIPO_LORA,
            method=plain.dipo,
            lora=True,
            two_models=True,
            full_logits=16,
            like=PLAIN_LORA,
        ),
        _dipo(FrozenCopy, equals=PLAIN_DIPO),
        _dipo(StoredStates, equals=PLAIN_DIPO),
        _dipo(StoredStates, equals=PLAIN_DIPO, compiled=True),
        _dipo(AdapterOff, lora=True, like=PLAIN_LORA, equals=PLAIN_DIPO_LORA),
        _dipo(StoredStates, lora=True, like=PLAIN_LORA, equals=PLAIN_DIPO_LORA),
        _with_cross_entropy("GradientAscent", GradientAscent(), like=PLAIN_CHUNKED, equals=PLAIN_GRADDIFF),
        _with_cross_entropy(
            "GradientAscent", GradientAscent(), lora=True, like=f"{PLAIN_LORA}, chunked", equals=PLAIN_LORA
        ),
        Ours(name="GradientAscent + ReferenceKL", forget=GradientAscent(), retain=ReferenceKL()),
        _with_cross_entropy("NPO", NPO(), equals=PLAIN_NPO),
        _with_cross_entropy("SimNPO", SimNPO()),
        _with_cross_entropy("DPO", DPO(), like=PLAIN_THREE_SETS, equals=PLAIN_DPO),
        _with_cross_entropy("KTO", KTO(), like=PLAIN_THREE_SETS, equals=PLAIN_KTO),
        _with_cross_entropy("UNDIAL", UNDIAL()),
        _with_cross_entropy("WGA", WGA()),
        _with_cross_entropy("SatImp", SatImp()),
        _with_cross_entropy("CE-U", CEU()),
        _with_cross_entropy("PDU", PDU()),
        _with_cross_entropy("MaximumEntropy", MaximumEntropy()),
        _with_cross_entropy("InvertedHinge", InvertedHinge()),
        _with_cross_entropy("SHRED", SHRED()),
        *_with_scheme(SharpnessAware),
        *_with_scheme(GradientRectified),
        Ours(name="RMU + RMURetain", forget=RMU(layer=_LAYER), retain=RMURetain(layer=_LAYER)),
    )
}
