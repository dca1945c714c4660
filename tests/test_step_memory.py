"""What a whole training step holds: no logits but those of a group, however many rows there are."""

import warnings
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from dipo_pl.batch import Encoded, collate
from dipo_pl.losses import NPO, CrossEntropy, DiPO, DiPORetain, GradientAscent
from dipo_pl.models.from_config import FromConfig
from dipo_pl.modules.unlearning import Unlearning
from dipo_pl.references.base import ReferenceContext

# A prime, so that whatever has a multiple of it in elements has a vocabulary in its shape.
VOCABULARY = 1009
TIME, PROMPT = 12, 4
# Two rows' answers: a group.
BUDGET = 2 * (TIME - PROMPT)

METHODS = {
    "DiPO": (DiPO(), DiPORetain()),
    "NPO": (NPO(), CrossEntropy()),
    "GradDiff": (GradientAscent(), CrossEntropy()),
}


class VocabularyTensors(TorchDispatchMode):
    """Watches what operations return that has a vocabulary in its shape; the weights themselves are left out.

    Attributes:
        largest: elements of the largest one.
        most: elements of all storages that were alive at once, at most.
    """

    def __init__(self, *models):
        super().__init__()
        self.largest = self.most = 0
        self.weights = {each.untyped_storage()._cdata for model in models for each in model.parameters()}
        self.alive = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(each, torch.Tensor) and each.numel() and each.numel() % VOCABULARY == 0:
                self._see(each)
        return result

    def _see(self, tensor):
        storage = tensor.untyped_storage()
        if storage._cdata in self.weights:
            return
        self.largest = max(self.largest, tensor.numel())
        # While it is watched its address is given to no other.
        self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes() // tensor.element_size()
        self.alive = {at: (ref, size) for at, (ref, size) in self.alive.items() if not ref.expired()}
        self.most = max(self.most, sum(size for _, size in self.alive.values()))


def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def batch_of(rows):
    tokens = torch.randint(VOCABULARY, (2, rows, TIME), generator=torch.Generator().manual_seed(0)).tolist()
    forget, retain = ([Encoded(tuple(each), PROMPT) for each in section] for section in tokens)
    return collate({"forget": forget, "retain": retain}, [*range(rows)] * 2)


def step(method, rows, budget=BUDGET):
    """One whole training step with a frozen copy, watched."""
    forget, retain = METHODS[method]
    module = Unlearning(FromConfig({"model_type": "llama"}), forget, retain, token_budget=budget)
    module.model = model()
    context = ReferenceContext({None}, {}, {}, Path(), torch.device("cpu"), nullcontext, 0, 1, lambda: None)
    module.reference.attach(module.model, context)
    batch = batch_of(rows)
    with warnings.catch_warnings(), VocabularyTensors(module.model, module.reference.model) as watched:
        warnings.simplefilter("ignore")  # without a trainer nothing is logged
        module.training_step(batch, 0).backward()
    assert all(each.grad.abs().sum() > 0 for each in module.model.parameters())
    return watched


@pytest.mark.parametrize("method", METHODS)
def test_a_step_never_holds_the_logits_of_a_batch(method):
    rows = 16
    answers = 2 * rows * (TIME - PROMPT)
    watched = step(method, rows)
    assert 0 < watched.largest <= BUDGET * VOCABULARY
    # Of all that has a vocabulary in its shape, gradients of the weights included.
    assert watched.most < answers * VOCABULARY


@pytest.mark.parametrize("method", METHODS)
def test_what_a_step_holds_of_the_vocabulary_does_not_grow_with_the_batch(method):
    few, many = step(method, 4), step(method, 16)
    assert few.largest == many.largest
    assert few.most == many.most


def test_the_watch_sees_logits_where_there_are_any():
    policy, batch = model(), batch_of(4)
    with VocabularyTensors(policy) as watched:
        policy(input_ids=batch.input_ids, labels=batch.input_ids).loss.backward()
    logits = 2 * 4 * TIME * VOCABULARY
    assert watched.largest == logits
    # Log-probabilities and the gradient by them, at least.
    assert watched.most >= 2 * logits
    # Ours as well, where the budget lets all answers of a set pass at once.
    assert step("DiPO", 4, budget=1000).largest == 4 * (TIME - PROMPT) * VOCABULARY
