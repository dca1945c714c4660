"""Stored states: the losses of a frozen copy, in any precision, shared by runs; refusals that change nothing."""

import copy
import gc
import weakref
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch.plugins import HalfPrecision
from reference_problems import (
    FULL,
    IDENTITY,
    SHARD,
    attached,
    batch,
    contents,
    count_forwards,
    encoded,
    frozen_copy,
    model,
    sequences,
)  # fmt: skip
from tiny_models import ARCHITECTURES
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from dipo_pl.errors import InputError
from dipo_pl.models.head import OutputHead
from dipo_pl.models.lora import LoRA
from dipo_pl.references.stored_states import StoredStates

AUTOCAST = {"precision": lambda: torch.autocast("cpu", dtype=torch.bfloat16)}

# What losses see of them.


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize(
    "rows", [{}, {"forget": [4, 0, 4], "retain": [6, 1, 1]}, {"retain": [3], "forget": [2]}]
)
def test_states_and_head_are_those_of_a_frozen_copy(tmp_path, kind, rows):
    """States agree to float32 rounding: in another batch a sequence has other padding."""
    policy, layers, given = model(kind), {None, 0, 1}, batch(**rows)
    stored, copied = attached(tmp_path, policy, layers=layers), frozen_copy(policy, layers=layers)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05
    assert_close(stored.states(given, layers), copied.states(given, layers), atol=1e-5, rtol=1e-5)
    assert_close(vars(stored.head), vars(copied.head), atol=0, rtol=0)


@pytest.mark.parametrize("layer", [None, 1])
def test_states_are_bitwise_what_the_model_gives_the_same_batch(tmp_path, layer):
    policy, given = model("gpt2"), sequences()
    reference = attached(tmp_path, policy, arguments={"batch_tokens": 1}, layers={None, 1})
    for name, rows in given.items():
        for row in range(len(rows)):
            one = batch(given, **{name: [row]})
            stored = reference.states(one, {layer})
            assert list(stored) == [layer]
            assert torch.equal(stored[layer], frozen_copy(policy).states(one, {layer})[layer])


def test_states_are_mapped_and_not_read_into_memory(tmp_path):
    reference = attached(tmp_path)
    address = next(iter(reference._shards._shards.values()))["last layer"].data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(each, 16) for each in line.split()[0].split("-"))
        if start <= address < end:
            assert line.endswith(".safetensors")
            return
    pytest.fail("the address is in no mapping")


def called(given, **rows):
    """The batch with other numbers of its rows, or as another kind."""
    (section,) = given.sections.values()
    return replace(given, sections={"forget": replace(section, rows=rows)})


@pytest.mark.parametrize("given", [
    batch({"forget": [encoded(9, 5)]}, forget=[0]),  # 4 tokens of answer, and 5 were stored
    called(batch(forget=[0, 1]), forget=(1, 0)),
    called(batch(forget=[0]), forget=(5,)),
    called(batch(forget=[4]), forget=(-1,)),
    called(batch(forget=[0]), alternate=(0,)),
], ids=["length", "order", "row", "negative row", "section"])  # fmt: skip
def test_a_batch_of_other_sequences_is_refused(tmp_path, given):
    reference = attached(tmp_path)
    with pytest.raises(InputError, match="training_sequences must be the sequences of its batches"):
        reference.states(given)


def test_before_attach_there_are_no_states():
    with pytest.raises(RuntimeError, match=r"before attach\(\) has given it states"):
        StoredStates().states(FULL)
    with pytest.raises(RuntimeError, match=r"before attach\(\) has given it a head"):
        _ = StoredStates().head


# What happens to the policy.


@pytest.mark.parametrize("fails", [False, True])
def test_the_policy_is_as_it_was(tmp_path, fails):
    policy = model("gpt2")
    policy.get_decoder().h[1].eval()
    modes = [each.training for each in policy.modules()]
    assert len(set(modes)) == 2
    before, state = copy.deepcopy(policy.state_dict()), torch.get_rng_state()
    with pytest.raises(InputError, match="a loss acts on layer 7") if fails else nullcontext():
        attached(tmp_path, policy, layers={7} if fails else {None})
    assert [each.training for each in policy.modules()] == modes
    assert all(each.requires_grad and each.grad is None for each in policy.parameters())
    assert all(torch.equal(each, before[name]) for name, each in policy.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert bool(contents(tmp_path)) is not fails


def test_a_default_device_does_not_matter(tmp_path):
    policy = model()
    with torch.device("meta"):
        states = attached(tmp_path, policy).states(FULL)[None]
    assert torch.equal(states, attached(tmp_path, policy).states(FULL)[None])


def test_no_model_is_held(tmp_path):
    policy = model()
    weights = [weakref.ref(each) for each in policy.parameters()]
    head = policy.lm_head.weight.detach().clone()
    reference = attached(tmp_path, policy)
    with torch.no_grad():
        policy.lm_head.weight.zero_()
    del policy
    gc.collect()
    assert not any(each() is not None for each in weights)
    assert torch.equal(reference.head.weight, head)
    assert not reference.head.weight.requires_grad


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_frozen_head_is_the_policys_own_and_follows_it(tmp_path, kind):
    policy = model(kind)
    policy.get_output_embeddings().requires_grad_(False)
    reference = attached(tmp_path, policy)
    assert (reference.head.scale, reference.head.softcap) == (1.0, OutputHead.of(policy).softcap)
    policy.double()
    reference.apply(lambda tensor: tensor.double())
    assert reference.head.weight.data_ptr() == policy.get_output_embeddings().weight.data_ptr()


def test_a_head_whose_bias_alone_is_trained_is_copied(tmp_path):
    policy = model("phi")
    policy.lm_head.weight.requires_grad_(False)
    reference = attached(tmp_path, policy)
    bias = policy.lm_head.bias.detach().clone()
    with torch.no_grad():
        policy.lm_head.bias += 1
    assert torch.equal(reference.head.bias, bias)


def test_layers_alone_need_no_copy_of_the_head(tmp_path):
    policy = model()
    assert attached(tmp_path, policy, layers={1}).head.weight.data_ptr() == policy.lm_head.weight.data_ptr()


def test_a_copied_head_is_cast_and_keeps_its_cap(tmp_path):
    reference = attached(tmp_path, policy := model("gemma2"))
    reference.apply(lambda tensor: tensor.double())
    assert (reference.head.weight.dtype, reference.head.softcap) == (torch.float64, 0.5)
    assert OutputHead.of(policy).weight.dtype == torch.float32


# Precision.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_on_disk_may_be_chosen(tmp_path, dtype):
    policy = model()
    states = attached(tmp_path, policy, arguments={"dtype": dtype}).states(FULL)[None]
    assert states.dtype == getattr(torch, dtype)
    exact = frozen_copy(policy).states(FULL)[None]
    assert_close(states.float(), exact, atol=1e-5, rtol=2 * torch.finfo(states.dtype).eps)


def test_under_autocast_the_last_states_are_rounded_as_the_head_rounds_them(tmp_path):
    policy, one, layers = model(), batch(retain=[4]), {None, 1}
    states = attached(tmp_path, policy, arguments={"batch_tokens": 1}, layers=layers, **AUTOCAST).states(
        one, layers
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        theirs = frozen_copy(policy).states(one, layers)
    assert (states[None].dtype, states[1].dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(states[None], theirs[None].bfloat16())
    assert torch.equal(states[1], theirs[1])


def test_true_half_precision_is_that_of_the_weights_to_be(tmp_path):
    """Lightning casts them after the reference has been attached."""
    precision = HalfPrecision("bf16-true")
    policy, one = model(), batch(retain=[4])
    copied = frozen_copy(policy)
    reference = attached(tmp_path, policy, arguments={"batch_tokens": 1}, precision=precision.forward_context)
    for each in (copied, reference):
        each.apply(lambda tensor: tensor.bfloat16())
    with precision.forward_context():
        theirs = copied.states(one)[None]
    assert reference.states(one)[None].dtype == torch.bfloat16
    assert torch.equal(reference.states(one)[None], theirs)
    assert torch.equal(reference.head.weight, copied.head.weight)


def test_states_beyond_the_dtype_are_refused(tmp_path):
    policy = model()
    with torch.no_grad():
        policy.get_decoder().norm.weight *= 1e6
    with pytest.raises(InputError, match=r"are not finite in torch\.float16: set model\.reference\.dtype"):
        attached(tmp_path, policy, arguments={"dtype": "float16"})
    attached(tmp_path, policy)


# Sharing.


def test_states_that_are_there_are_read_and_the_model_never_run(tmp_path):
    shared = {"path": str(tmp_path / "deep/shared")}
    states = attached(tmp_path / "one", arguments=shared).states(FULL)[None]
    before, policy = contents(tmp_path), model()
    calls = count_forwards(policy)
    # The size of batches does not matter any more.
    again = attached(tmp_path / "other", policy, arguments=shared | {"batch_tokens": 7})
    assert not calls
    assert torch.equal(again.states(FULL)[None], states)
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


def test_more_layers_and_sections_serve_a_run_that_wants_less(tmp_path):
    more = {"alternate": [encoded(8, 2, 7), encoded(4, 3, 8)], **sequences()}
    attached(tmp_path, layers={None, 0, 1}, sequences=more, identity=IDENTITY | {"alternate answers": "a"})
    calls = count_forwards(policy := model())
    given = batch(retain=[6, 0])
    states = attached(tmp_path, policy, layers={1}, sequences=sequences("retain")).states(given, {1})[1]
    assert not calls
    assert_close(states, frozen_copy(policy).states(given, {1})[1], atol=1e-5, rtol=1e-5)


def test_where_the_model_came_from_does_not_matter(tmp_path):
    policy, shared = model(), {"path": str(tmp_path / "shared")}
    states = attached(tmp_path, policy, arguments=shared).states(FULL)[None]
    policy.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(attached(tmp_path, loaded, arguments=shared).states(FULL)[None], states)


def test_adapters_that_are_still_zero_do_not_matter(tmp_path):
    adapted, other = model(), model()
    LoRA(rank=2, seed=1).apply(adapted)
    LoRA(rank=3, seed=2).apply(other)
    attached(tmp_path, adapted)
    assert attached(tmp_path, other).head.weight.data_ptr() == other.lm_head.weight.data_ptr()
    attached(tmp_path)
    with torch.no_grad():
        next(each for name, each in other.named_parameters() if "lora_B" in name)[0, 0] = 0.1
    with pytest.raises(InputError, match=r"\(different: model\)"):
        attached(tmp_path, other)


def changed(section, row, **values):
    given = sequences()
    given[section][row] = replace(given[section][row], **values)
    return given


def swapped():
    """Swap two rows of one length, so that only the fingerprint can tell."""
    given = sequences()
    given["forget"][0], given["forget"][3] = given["forget"][3], given["forget"][0]
    given["forget"][0] = replace(given["forget"][0], answer_start=4)
    given["forget"][3] = replace(given["forget"][3], answer_start=8)
    return given


def one_weight_changed():
    policy = model()
    with torch.no_grad():
        policy.get_decoder().layers[1].mlp.up_proj.weight[3, 2] += 1e-6
    return policy


TOKENS = sequences()["retain"][2].ids
DIFFERENT = [
    ({"policy": lambda: model(seed=1)}, "model"),
    ({"policy": one_weight_changed}, "model"),
    ({"policy": lambda: model().bfloat16()}, "model"),
    ({"policy": lambda: model(rms_norm_eps=1e-3)}, "model configuration"),
    (AUTOCAST, "precision: torch.float32 there, torch.bfloat16 autocast here"),
    ({"precision": HalfPrecision("bf16-true").forward_context}, "precision: torch.float32 there, torch.bfloat16 here"),
    ({"identity": IDENTITY | {"tokenizer": "u" * 64}}, "tokenizer"),
    ({"identity": IDENTITY | {"alternate answers": "a" * 64}}, "alternate answers"),
    ({"sequences": changed("retain", 2, ids=(*TOKENS[:4], (TOKENS[4] + 1) % 61, *TOKENS[5:]))}, "retain sequences"),
    ({"sequences": changed("forget", 4, ids=sequences()["forget"][4].ids[:15])}, "forget sequences"),
    ({"sequences": changed("forget", 1, answer_start=4)}, "forget sequences"),
    ({"sequences": swapped()}, "forget sequences"),
    ({"sequences": {**sequences(), "alternate": [encoded(5, 2)]}}, "alternate sequences"),
    ({"layers": {None, 1}}, "layer 1 states: none there, lossless here"),
    ({"arguments": {"dtype": "bfloat16"}}, "last layer states: lossless there, bfloat16 here"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "named"), DIFFERENT)
@pytest.mark.parametrize("complete", [True, False])
def test_another_reference_is_refused_by_name_and_changes_nothing(tmp_path, changes, named, complete):
    attached(tmp_path)
    if not complete:
        (tmp_path / "reference/manifest.json").unlink()
    before = contents(tmp_path)
    policy = changes.get("policy", model)()
    calls = count_forwards(policy)
    with pytest.raises(InputError) as refused:
        attached(tmp_path, **changes | {"policy": policy})
    assert str(refused.value) == (
        f"{tmp_path}/reference holds the states of another reference (different: {named}): set model.reference.path "
        "to another folder, or remove that one"
    )
    assert contents(tmp_path) == before
    assert not calls


def edit(name, change):
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def flip(place):
    return lambda old: old[:place] + bytes([old[place] ^ 1]) + old[place:][1:]


DAMAGES = {
    "cut": (edit(SHARD, lambda old: old[:-1]), f"{SHARD} is missing or damaged: "),
    "longer": (edit(SHARD, lambda old: old + b"0"), f"{SHARD} is missing or damaged: "),
    "bit": (edit(SHARD, flip(-1)), f"{SHARD} is missing or damaged: its checksum differs"),
    "bit of its sequences": (edit(SHARD, lambda old: old.replace(b"4, 19", b"3, 19")), "its checksum differs"),
    "empty": (edit(SHARD, lambda old: b""), f"{SHARD} is missing or damaged: "),
    "lost": (lambda folder: (folder / SHARD).unlink(), f"{SHARD} is missing or damaged: "),
    "fewer listed": (edit("manifest.json", lambda old: old.replace(f'"{SHARD}",'.encode(), b"")), "lack sequences"),
    "manifest cut": (edit("manifest.json", lambda old: old[:-9]), "manifest.json cannot be read, JSONDecodeError"),
    "list": (edit("manifest.json", lambda old: b"[]"), "manifest.json cannot be read, TypeError"),
    "nothing in it": (edit("manifest.json", lambda old: b"{}"), "manifest.json cannot be read, KeyError"),
    "format": (edit("manifest.json", lambda old: old.replace(b"2", b"1", 1)), "its format is 1, not 2"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "said"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_refused_and_changes_nothing(tmp_path, change, said):
    attached(tmp_path)
    intact = contents(tmp_path)
    change(tmp_path / "reference")
    before = contents(tmp_path)
    assert before != intact
    with pytest.raises(InputError) as refused:
        attached(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path}/reference holds no usable reference states (")
    assert said in str(refused.value)
    assert contents(tmp_path) == before
