"""The engine with losses of one's own against plain autograd, and what holds for every loss."""

import itertools
import random

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from dipo_pl.batch import Encoded, collate
from dipo_pl.losses import NPO, RMU, CrossEntropy, DiPO, DiPORetain, GradientAscent, Loss
from dipo_pl.losses.base import Section, Terms
from dipo_pl.losses.engine import joint_objective, sequence_objective
from dipo_pl.models.head import OutputHead
from dipo_pl.models.hidden_states import decoder_states
from dipo_pl.preferences.constructors import LogitModulation
from dipo_pl.preferences.filters import TopFraction

CONSTRUCTOR = LogitModulation(TopFraction(0.1))
PER_SEQUENCE = [DiPO(0.2, CONSTRUCTOR), DiPORetain(0.2, CONSTRUCTOR), NPO(0.2)]
PER_TOKEN = [GradientAscent(), CrossEntropy()]
SHIPPED = PER_SEQUENCE + PER_TOKEN


def name(loss):
    return type(loss).__name__


class Inputs:
    """Random states, head and reference; as keyword arguments of `sequence_objective`."""

    def __init__(self, lengths, vocabulary=31, width=6, bias=True, seed=0, **head):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=generator)

        positions = sum(lengths)
        self.states = normal(positions, width).requires_grad_()
        self.weight = normal(vocabulary, width).requires_grad_()
        self.bias = normal(vocabulary).requires_grad_() if bias else None
        self.targets = torch.randint(vocabulary, (positions,), generator=generator)
        self.lengths = lengths
        self.head = head
        self.reference_states = normal(positions, width)
        self.reference_weight = normal(vocabulary, width)

    @property
    def leaves(self):
        return [each for each in (self.states, self.weight, self.bias) if each is not None]

    def arguments(self, **changes):
        arguments = {
            "states": self.states,
            "targets": self.targets,
            "lengths": self.lengths,
            "head": OutputHead(self.weight, self.bias, **self.head),
            "reference_states": self.reference_states,
            "reference_head": OutputHead(self.reference_weight),
        }
        return {**arguments, **changes}

    def evaluate(self, loss, **changes):
        return sequence_objective(loss=loss, **self.arguments(**changes))

    def gradients(self, loss_value):
        return torch.autograd.grad(loss_value, self.leaves)


class Curved(Loss):
    """Only `terms` and f: nothing in closed form; the reference and the lengths matter."""

    uses_reference = True

    def terms(self, logits, targets, reference_logits):
        log_p = logits.log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        chosen = log_p.gather(-1, targets[:, None])[:, 0]
        return entropy + 0.3 * chosen * torch.tanh(logits - reference_logits).mean(-1)

    def sequence_loss(self, sums, lengths):
        return torch.log1p((sums / lengths) ** 2)

    def sequence_parts(self, sums, lengths):
        return {"per_token": sums / lengths}


class CurvedOverTokens(Curved):
    mean_over = "tokens"


class TermsOnly(Loss):
    """As little as a loss can be; its gradient by the logits is one number seen V times."""

    def terms(self, logits, targets, reference_logits):
        assert reference_logits is None
        return logits.sum(-1)


def plainly(loss, inputs):
    """The base class's definition in float64, all logits at once, through autograd."""
    leaves = [leaf.detach().double().requires_grad_() for leaf in inputs.leaves]
    states, weight = leaves[:2]
    logits = states @ weight.T
    if inputs.bias is not None:
        logits = logits + leaves[2]
    logits = logits * inputs.head.get("scale", 1.0)
    if inputs.head.get("softcap") is not None:
        logits = inputs.head["softcap"] * torch.tanh(logits / inputs.head["softcap"])
    reference = inputs.reference_states.double() @ inputs.reference_weight.double().T
    terms = loss.terms(logits, inputs.targets, reference if loss.uses_reference else None)
    sums = torch.stack([part.sum() for part in torch.split(terms, inputs.lengths)])
    over_tokens = loss.mean_over == "tokens"
    values = sums if over_tokens else loss.sequence_loss(sums, torch.tensor(inputs.lengths))
    count = sum(inputs.lengths) if loss.mean_over == "tokens" else len(inputs.lengths)
    value = values.sum() / count
    return value.detach(), torch.autograd.grad(value, leaves)


def close(ours, theirs, tolerance):
    """Within a share of the largest entry."""
    limit = tolerance * theirs.detach().abs().max().item()
    torch.testing.assert_close(ours.detach().double(), theirs.detach().double(), rtol=0, atol=limit)


@pytest.mark.parametrize("budget", [1, 3, 6, 13, 512])
@pytest.mark.parametrize("loss", [Curved(), CurvedOverTokens(), TermsOnly()], ids=name)
@pytest.mark.parametrize("head", [{}, {"scale": 0.7}, {"scale": 0.7, "softcap": 2.0}], ids=str)
def test_a_loss_of_ones_own(loss, head, budget):
    """float32 against float64: 2e-5 of the largest entry (the entropies cancel a little)."""
    inputs = Inputs([6, 2, 5], **head)
    objective = inputs.evaluate(loss, token_budget=budget)
    value, gradients = plainly(loss, inputs)
    close(objective.loss, value, 2e-5)
    for ours, theirs in zip(inputs.gradients(objective.loss), gradients, strict=True):
        close(ours, theirs, 2e-5)


class OneLogit(Loss):
    """Its terms are a view of its logits, whose memory the next piece's take."""

    def terms(self, logits, targets, reference_logits):
        return logits[:, 3]

    def sequence_loss(self, sums, lengths):
        return torch.nn.functional.softplus(sums)


@pytest.mark.parametrize("budget", [1, 3, 100])
def test_terms_that_are_a_view_of_the_logits(budget):
    inputs = Inputs([10, 4])
    value, gradients = plainly(OneLogit(), inputs)
    objective = inputs.evaluate(OneLogit(), token_budget=budget)
    close(objective.loss.detach(), value, 1e-5)
    for ours, theirs in zip(inputs.gradients(objective.loss), gradients, strict=True):
        close(ours, theirs, 1e-5)


def test_a_loss_on_a_layer_leaves_the_head_alone():
    """No gradient at all, where one of zeros would let weight decay move the head."""
    inputs = Inputs([6, 2, 5], bias=False)
    inputs.evaluate(RMU(layer=0)).loss.backward()
    assert inputs.weight.grad is None
    assert inputs.states.grad.abs().max() > 0


def test_a_head_that_both_models_share_is_cast_once(monkeypatch):
    inputs, casts = Inputs([6, 2]), []
    cast = OutputHead.cast
    monkeypatch.setattr(OutputHead, "cast", lambda head, dtype: casts.append(dtype) or cast(head, dtype))
    shared = OutputHead(inputs.weight, inputs.bias)
    with torch.autocast("cpu", torch.bfloat16):
        inputs.evaluate(DiPO(0.2, CONSTRUCTOR), reference_head=shared)
    assert casts == [torch.bfloat16]
    with torch.autocast("cpu", torch.bfloat16):
        inputs.evaluate(DiPO(0.2, CONSTRUCTOR))
    assert len(casts) == 3


class Linear(Loss):
    """Its derivative by the logits is the same whatever their rounding."""

    def __init__(self, factor):
        self.factor = factor

    def terms(self, logits, targets, reference_logits):
        return self.factor * (logits * torch.linspace(-1, 1, logits.shape[-1])).sum(-1)


@pytest.mark.parametrize("factor", [1e-9, 1.0, 1e7])
@pytest.mark.parametrize("weight", [1e-5, 1.0, 1e5])
def test_float16_loses_no_small_derivative_and_overflows_at_no_large_one(factor, weight):
    """Float16 ends at 6e-8 and 65,504, and a loss scaler multiplies only what has been summed up."""
    inputs = Inputs([40, 30], vocabulary=211, width=16, bias=False)
    half = [each.detach().half().requires_grad_() for each in (inputs.states, inputs.weight)]
    same = [each.detach().float().requires_grad_() for each in half]
    found = []
    for states, head in (half, same):
        section = Section(Linear(factor), states, inputs.targets, [40, 30], weight=weight)
        loss = joint_objective({"": section}, OutputHead(head)).loss / (factor * weight)
        found.append(torch.autograd.grad(loss, (states, head)))
    for ours, theirs in zip(*found, strict=True):
        close(ours, theirs, 4e-3)


def test_parts_of_ones_own():
    class Watched(Curved):
        def terms_and_gradient(self, logits, targets, reference_logits):
            values, gradient, _ = super().terms_and_gradient(logits, targets, reference_logits)
            return Terms(values, gradient, {"target": targets.float()})

    inputs = Inputs([6, 0, 2, 5])
    whole = inputs.evaluate(Watched()).parts
    assert whole["target"].item() == pytest.approx(inputs.targets.float().mean().item())
    for budget in (1, 4, 8):
        parts = inputs.evaluate(Watched(), token_budget=budget).parts
        assert parts.keys() == whole.keys() == {"target", "per_token"}
        for key in parts:
            assert parts[key].item() == pytest.approx(whole[key].item(), rel=1e-5)


# What holds for every loss, with a real decoder before the engine.


@pytest.fixture(scope="module")
def llamas():
    """Policy and reference: two random models with tied embeddings."""
    config = AutoConfig.for_model(
        "llama",
        vocab_size=47,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config), AutoModelForCausalLM.from_config(config)


def encode(*shapes, seed=0):
    """Sequences of given (prompt, answer) lengths."""
    rng = random.Random(seed)
    return [
        Encoded(tuple(rng.randrange(3, 47) for _ in range(prompt + answer)), prompt)
        for prompt, answer in shapes
    ]


SEQUENCES = encode((3, 5), (7, 2), (1, 9), (4, 6))


def evaluate(llamas, loss, sections, section="forget", token_budget=512, pad=0):
    """Loss and gradient on all of the policy's parameters, flattened: as LanguageModel has it."""
    policy, reference = llamas
    batch = collate(sections, range(sum(len(each) for each in sections.values())))
    ids = batch.input_ids.masked_fill(~batch.attention_mask, pad)

    def states(model):
        states = decoder_states(model, ids, batch.attention_mask)
        return batch.by_section(states.flatten(0, 1).index_select(0, batch.positions))[section]

    with torch.no_grad():
        reference_states = states(reference)
    objective = sequence_objective(
        states(policy),
        batch.by_section(batch.targets)[section],
        batch.sections[section].lengths,
        OutputHead.of(policy),
        loss,
        reference_states,
        OutputHead.of(reference),
        token_budget,
    )
    gradients = torch.autograd.grad(objective.loss, list(policy.parameters()))
    return objective.loss.detach(), torch.cat([each.flatten() for each in gradients])


def same(one, other, tolerance=1e-5):
    close(one[0], other[0], tolerance)
    close(one[1], other[1], tolerance)


@pytest.mark.parametrize("loss", SHIPPED, ids=name)
def test_padding_changes_nothing(llamas, loss):
    """Rows of 8 to 10 tokens alone, and beside one of 40; whatever id the padding has."""
    alone = evaluate(llamas, loss, {"forget": SEQUENCES})
    padded = {"forget": SEQUENCES, "retain": encode((10, 30), seed=1)}
    same(evaluate(llamas, loss, padded), alone)
    same(evaluate(llamas, loss, padded, pad=13), alone)


@pytest.mark.parametrize("loss", SHIPPED, ids=name)
def test_sections_do_not_touch_each_other(llamas, loss):
    others = encode((2, 4), (5, 3), seed=2)
    alone = evaluate(llamas, loss, {"retain": SEQUENCES}, "retain")
    same(evaluate(llamas, loss, {"forget": others, "retain": SEQUENCES}, "retain"), alone)


@pytest.mark.parametrize("budget", [7, 512])
@pytest.mark.parametrize("loss", SHIPPED, ids=name)
def test_order_of_a_batch_changes_nothing(llamas, loss, budget):
    shuffled = [SEQUENCES[index] for index in (2, 0, 3, 1)]
    same(
        evaluate(llamas, loss, {"forget": shuffled}, token_budget=budget),
        evaluate(llamas, loss, {"forget": SEQUENCES}),
    )


def micro_batches(llamas, loss):
    """Value and gradient of the whole batch, and of its four sequences one by one."""
    whole = evaluate(llamas, loss, {"forget": SEQUENCES})
    return whole, [evaluate(llamas, loss, {"forget": [sequence]}) for sequence in SEQUENCES]


@pytest.mark.parametrize("loss", PER_SEQUENCE, ids=name)
def test_four_micro_batches_are_one_batch(llamas, loss):
    whole, each = micro_batches(llamas, loss)
    same([sum(values) / 4 for values in zip(*each, strict=True)], whole)


@pytest.mark.parametrize("loss", PER_TOKEN, ids=name)
def test_token_means_depend_on_micro_batches(llamas, loss):
    """The documented exception: answers of 5, 2, 9 and 6 tokens weigh by their length in one batch only."""
    whole, each = micro_batches(llamas, loss)
    lengths = [sequence.answer_length for sequence in SEQUENCES]
    same(
        [
            sum(length * value for length, value in zip(lengths, values, strict=True)) / sum(lengths)
            for values in zip(*each, strict=True)
        ],
        whole,
    )
    mean = sum(value for value, _ in each) / 4
    assert abs(mean - whole[0]) > 1e-3 * abs(whole[0])


@pytest.mark.parametrize("loss", SHIPPED, ids=name)
def test_equals_the_models_own_logits_in_one_go(llamas, loss):
    """Positions, targets, head and reference, all from the models' forward passes and the tokens."""
    policy, reference = llamas
    total = torch.zeros((), dtype=torch.float64)
    for sequence in SEQUENCES:
        ids = torch.tensor([sequence.ids])
        answer = slice(sequence.answer_start - 1, len(sequence.ids) - 1)
        with torch.no_grad():
            logits, reference_logits = (
                model(input_ids=ids).logits[0, answer].double() for model in (policy, reference)
            )
        targets = ids[0, sequence.answer_start :]
        terms = loss.terms(logits, targets, reference_logits if loss.uses_reference else None)
        total += loss.sequence_loss(terms.sum()[None], torch.tensor([len(targets)])).sum()
    count = 22 if loss.mean_over == "tokens" else 4
    value, _ = evaluate(llamas, loss, {"forget": SEQUENCES}, token_budget=6)
    close(value, total / count, 1e-5)


# How it is computed.


@pytest.mark.parametrize("budget", [3, 512])
@pytest.mark.parametrize("loss", [*SHIPPED, Curved()], ids=name)
def test_upstream_gradient_scales_all_gradients(loss, budget):
    inputs = Inputs([6, 2, 5])
    plain = inputs.gradients(inputs.evaluate(loss, token_budget=budget).loss)
    value = inputs.evaluate(loss, token_budget=budget).loss
    scaled = inputs.gradients(-3 * value + 7)
    for one, three in zip(plain, scaled, strict=True):
        close(three, -3 * one, 1e-6)


def test_two_losses_on_one_graph_add_up():
    """As forget and retain do in a step: on shared states, head and backward pass."""
    inputs = Inputs([6, 2, 5])
    forget, retain = DiPO(0.2, CONSTRUCTOR), CrossEntropy()
    both = inputs.gradients(inputs.evaluate(forget).loss + 0.5 * inputs.evaluate(retain).loss)
    one = inputs.gradients(inputs.evaluate(forget).loss)
    other = inputs.gradients(inputs.evaluate(retain).loss)
    for ours, first, second in zip(both, one, other, strict=True):
        close(ours, first + 0.5 * second, 1e-6)


def test_a_second_backward_is_refused():
    """The gradients were scaled in place and handed over: they would come out scaled twice."""
    inputs = Inputs([6, 2, 5])
    value = inputs.evaluate(DiPO(0.2, CONSTRUCTOR)).loss
    torch.autograd.grad(value, inputs.leaves, retain_graph=True)
    with pytest.raises(RuntimeError, match="backward\\(\\) a second time"):
        torch.autograd.grad(value, inputs.leaves)


def test_second_derivatives_are_refused():
    """Only the first are there: a gradient penalty on the loss squared, say, would silently lose a part."""
    inputs = Inputs([6, 2, 5])
    value = inputs.evaluate(CrossEntropy()).loss
    (gradient,) = torch.autograd.grad(value**2, inputs.states, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.pow(2).sum().backward()


@pytest.mark.parametrize("loss", SHIPPED, ids=name)
def test_value_without_gradients(loss):
    inputs = Inputs([6, 2, 5])
    expected = inputs.evaluate(loss).loss.item()
    with torch.no_grad():
        value = inputs.evaluate(loss).loss
    assert not value.requires_grad
    assert value.item() == expected
    for leaf in inputs.leaves:
        leaf.requires_grad_(False)
    assert inputs.evaluate(loss).loss.item() == expected


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)], ids=str)
@pytest.mark.parametrize("budget", [3, 512])
def test_gradients_that_are_not_wanted_change_no_other(wanted, budget):
    inputs = Inputs([6, 2, 5], softcap=3.0)
    every = inputs.gradients(inputs.evaluate(NPO(), token_budget=budget).loss)
    leaves = inputs.leaves
    for index, leaf in enumerate(leaves):
        leaf.requires_grad_(index in wanted)
    inputs.evaluate(NPO(), token_budget=budget).loss.backward()
    for index, leaf in enumerate(leaves):
        if index in wanted:
            assert torch.equal(leaf.grad, every[index])
        else:
            assert leaf.grad is None


def test_a_frozen_head_costs_no_memory():
    """Nothing of its size is kept for the backward pass."""
    inputs = Inputs([6, 2, 5])
    weight, bias, states = inputs.evaluate(DiPO(0.2, CONSTRUCTOR)).loss.grad_fn.gradients
    assert [each.shape for each in (states, weight, bias)] == [leaf.shape for leaf in inputs.leaves]
    inputs.weight.requires_grad_(False)
    inputs.bias.requires_grad_(False)
    assert inputs.evaluate(DiPO(0.2, CONSTRUCTOR)).loss.grad_fn.gradients[:2] == [None, None]


def test_many_groups_add_up_in_float32():
    """600 equal contributions of bfloat16, one by one: a bfloat16 sum would stop growing at 256 of them."""
    one = Inputs([1])
    weight, bias = (leaf.detach().bfloat16().requires_grad_() for leaf in (one.weight, one.bias))
    states = one.states.detach().bfloat16().repeat(600, 1)
    head = OutputHead(weight, bias)

    def gradients(budget):
        objective = sequence_objective(
            states, one.targets.repeat(600), [1] * 600, head, CrossEntropy(), token_budget=budget
        )
        return torch.autograd.grad(objective.loss, [weight, bias])

    for single, whole in zip(gradients(1), gradients(600), strict=True):
        close(single, whole, 1e-2)


@pytest.mark.parametrize("loss", [*SHIPPED, Curved()], ids=name)
def test_inputs_are_left_alone(loss):
    inputs = Inputs([6, 2, 5], scale=0.5, softcap=3.0)
    tensors = [*inputs.leaves, inputs.targets, inputs.reference_states, inputs.reference_weight]
    before = [tensor.detach().clone() for tensor in tensors]
    for budget in (3, 512):
        inputs.evaluate(loss, token_budget=budget).loss.backward()
    assert all(torch.equal(one, other) for one, other in zip(before, tensors, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("loss", SHIPPED, ids=name)
def test_default_dtype_changes_nothing(loss, dtype):
    """Lightning sets it during a step with precision `bf16-true`, `16-true` or `64-true`."""
    inputs = Inputs([6, 2, 5])
    for budget in (3, 512):
        expected = inputs.evaluate(loss, token_budget=budget)
        gradients = inputs.gradients(expected.loss)
        try:
            torch.set_default_dtype(dtype)
            objective = inputs.evaluate(loss, token_budget=budget)
        finally:
            torch.set_default_dtype(torch.float32)
        assert objective.loss.dtype == torch.float32
        assert objective.loss.item() == expected.loss.item()
        assert all(part.dtype == torch.float32 for part in objective.parts.values())
        ours = inputs.gradients(objective.loss)
        assert all(torch.equal(one, other) for one, other in zip(ours, gradients, strict=True))


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(each, torch.Tensor):
                self.largest = max(self.largest, each.numel())
        return result


@pytest.mark.parametrize("lengths", [[5] * 12, [3, 7, 1, 40, 2, 7], [60]], ids=str)
@pytest.mark.parametrize("loss", [*SHIPPED, Curved()], ids=name)
def test_no_tensor_outgrows_the_budget(loss, lengths):
    """60 positions, 211 tokens, 2 dimensions: 8 x 211 is more than any tensor but logits needs."""
    inputs = Inputs(lengths, vocabulary=211, width=2)
    with LargestTensor() as recorder:
        inputs.evaluate(loss, token_budget=8).loss.backward()
    assert 0 < recorder.largest <= 8 * 211
    # The recorder does see it where the budget allows more.
    with LargestTensor() as recorder:
        inputs.evaluate(loss, token_budget=60).loss.backward()
    assert recorder.largest == 60 * 211


@pytest.mark.parametrize("lengths", [[5] * 12, [3, 7, 1, 40, 2, 7], [60]], ids=str)
@pytest.mark.parametrize("loss", SHIPPED, ids=name)
def test_no_two_groups_logits_exist_at_a_time(monkeypatch, loss, lengths):
    places, sizes = set(), []
    logits_of = OutputHead.logits

    def spy(head, states, out):
        logits = logits_of(head, states, out)
        places.add(logits.data_ptr())
        sizes.append(len(logits))
        return logits

    monkeypatch.setattr(OutputHead, "logits", spy)
    Inputs(lengths).evaluate(loss, token_budget=8)
    heads = 2 if loss.uses_reference else 1
    assert max(sizes) <= 8
    # Twice over the long sequences, once over the others; a token mean needs no sequence's sum.
    twice = loss.mean_over == "sequences"
    passes = sum(length * (2 if twice and length > 8 else 1) for length in lengths)
    assert sum(sizes) == passes * heads
    # One group's stand where the last one's stood; each head's memory may have grown as groups did.
    growth = len(set(itertools.accumulate(sizes, max)))
    assert len(places) <= heads * growth


def test_shapes_that_disagree_are_refused():
    inputs = Inputs([6, 2, 5])
    loss = CrossEntropy()
    with pytest.raises(ValueError, match="13 states, 13 targets and 12 positions in `lengths`"):
        inputs.evaluate(loss, lengths=[6, 1, 5])
    with pytest.raises(ValueError, match="13 states, 12 targets and 13 positions"):
        inputs.evaluate(loss, targets=inputs.targets[1:])
    with pytest.raises(ValueError, match="12 states, 13 targets"):
        inputs.evaluate(loss, states=inputs.states[1:])
    for wrong in (inputs.reference_states[1:], torch.cat([inputs.reference_states] * 2)):
        with pytest.raises(ValueError, match=f"13 states and {len(wrong)} reference states"):
            inputs.evaluate(NPO(), reference_states=wrong)


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_below_1_is_refused(budget):
    with pytest.raises(ValueError, match=rf"token_budget must be at least 1 \(got {budget}\)"):
        Inputs([2]).evaluate(CrossEntropy(), token_budget=budget)


@pytest.mark.parametrize("missing", ["reference_states", "reference_head"])
def test_a_missing_reference_is_refused(missing):
    with pytest.raises(ValueError, match="NPO needs reference_states and reference_head"):
        Inputs([2]).evaluate(NPO(), **{missing: None})
    Inputs([2]).evaluate(CrossEntropy(), **{missing: None})
