"""Stored states: a frozen copy's losses, refusals that change nothing, and real kills that leave no trace."""

import copy
import datetime
import gc
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import weakref
import zlib
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.plugins import HalfPrecision
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM

from dipo_pl.batch import Encoded, collate
from dipo_pl.errors import InputError
from dipo_pl.losses import NPO, CrossEntropy, DiPO, DiPORetain, Loss
from dipo_pl.losses.engine import Section, joint_objective
from dipo_pl.models.head import OutputHead
from dipo_pl.models.hidden_states import answer_states
from dipo_pl.models.lora import LoRA
from dipo_pl.preferences.constructors import LogitModulation
from dipo_pl.preferences.filters import TopFraction
from dipo_pl.references import state_store
from dipo_pl.references.base import FrozenCopy, Surroundings
from dipo_pl.references.state_store import LayerFormat, Manifest, StateStore
from dipo_pl.references.stored_states import StoredStates

VOCABULARY = 48
FAMILIES = {
    "llama": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "pad_token_id": None,
    },
    # Dropout, and a head that is tied to the embedding.
    "gpt2": {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 64},
    # A head with a bias.
    "phi": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2},
    # A soft cap on logits.
    "gemma2": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "final_logit_softcapping": 2.0,
    },
}
IDENTITY = {"tokenizer": "t", "prompt format": "p", "forget rows": "f", "retain rows": "r"}


def model(family="llama", seed=0, **changes):
    config = AutoConfig.for_model(family, vocab_size=VOCABULARY, **FAMILIES[family] | changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).train()


def encoded(length, answer_start, seed):
    return Encoded(tuple(random.Random(seed).choices(range(VOCABULARY), k=length)), answer_start)


LENGTHS = {
    "forget": [(9, 4), (12, 3), (5, 1), (9, 8), (20, 6)],
    "retain": [(7, 2), (16, 9), (9, 3), (3, 1), (30, 11), (11, 5), (12, 6)],
}


def sequences(*names):
    return {
        name: [encoded(*each, seed=100 * place + row) for row, each in enumerate(LENGTHS[name])]
        for place, name in enumerate(LENGTHS)
        if name in (names or LENGTHS)
    }


def surroundings(folder, **changes):
    given = {
        "layers": {None},
        "sequences": sequences(),
        "identity": IDENTITY,
        "folder": Path(folder),
        "device": torch.device("cpu"),
        "precision": nullcontext,
        "rank": 0,
        "world_size": 1,
        "barrier": lambda: None,
    }
    return Surroundings(**given | changes)


def attached(folder, policy=None, arguments=None, **changes):
    """32 tokens at a time are six chunks of these sequences."""
    reference = StoredStates(**{"batch_tokens": 32} | (arguments or {}))
    reference.attach(model() if policy is None else policy, surroundings(folder, **changes))
    return reference


def frozen_copy(policy, folder, **changes):
    reference = FrozenCopy()
    reference.attach(policy, surroundings(folder, **changes))
    return reference


def batch(given=None, **rows):
    """Of some rows of each section."""
    given = given or sequences()
    rows = rows or {name: range(len(each)) for name, each in given.items()}
    return collate(
        {name: [given[name][row] for row in each] for name, each in rows.items()},
        [row for each in rows.values() for row in each],
    )


FULL = batch()


def contents(folder):
    """All that a person sees of a folder."""
    return {
        path.relative_to(folder): (path.read_bytes() if path.is_file() else None, path.stat().st_mtime_ns)
        for path in Path(folder).rglob("*")
    }


def data(store):
    return {path.name: path.read_bytes() for path in store.iterdir() if not path.name.startswith(".")}


def count_forwards(policy):
    calls = []
    policy.get_decoder().register_forward_hook(lambda *_: calls.append(1))
    return calls


# What losses see of it.


class Distance(Loss):
    """To the reference, in one layer."""

    uses_reference = True

    def __init__(self, layer):
        self.layer = layer

    def terms(self, states, targets, reference_states):
        return ((states - reference_states) ** 2).mean(-1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "rows", [{}, {"forget": [4, 0, 4], "retain": [6, 1, 1]}, {"retain": [3], "forget": [2]}]
)
def test_losses_and_gradients_are_those_of_a_frozen_copy(tmp_path, family, rows):
    """To float32 rounding: in another batch a sequence has other padding, and sums have another order."""
    policy, layers = model(family), {None, 0, 2}
    references = [
        attached(tmp_path, policy, layers=layers),
        frozen_copy(policy, tmp_path, layers=layers),
    ]
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    policy.eval()
    given = batch(**rows)
    results = []
    for reference in references:
        policy.zero_grad()
        states = answer_states(policy, given, layers)
        theirs = reference.states(given, layers)
        constructor = LogitModulation(TopFraction(0.2))
        losses = {
            "forget": [NPO(0.2), DiPO(0.2, constructor), Distance(0)],
            "retain": [CrossEntropy(), DiPORetain(0.2, constructor), Distance(2)],
        }
        sections = {
            f"{name} {type(loss).__name__}": Section(
                loss,
                states[loss.layer][tokens],
                given.targets[tokens],
                given.lengths[numbers],
                theirs[loss.layer][tokens],
            )
            for name, (numbers, tokens) in given.section_slices().items()
            for loss in losses[name]
        }
        objective = joint_objective(sections, OutputHead.of(policy), reference.head)
        objective.loss.backward()
        values = {name: each.loss for name, each in objective.sections.items()}
        results.append((values, {name: each.grad for name, each in policy.named_parameters()}))
    assert all(0 < value < 1e3 for value in results[0][0].values())
    assert_close(results[0], results[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", [None, 1])
def test_states_are_bitwise_what_the_model_gives_the_same_batch(tmp_path, layer):
    policy, given = model("gpt2"), sequences()
    reference = attached(tmp_path, policy, {"batch_tokens": 1}, layers={None, 1})
    copied = frozen_copy(policy, tmp_path)
    for name, rows in given.items():
        for row in range(len(rows)):
            one = batch(given, **{name: [row]})
            stored = reference.states(one, {layer})
            assert list(stored) == [layer]
            assert torch.equal(stored[layer], copied.states(one, {layer})[layer])


@pytest.mark.parametrize(
    "given",
    [
        batch({"forget": [encoded(9, 5, 0)]}, forget=[0]),  # 4 tokens of answer, and 5 were stored
        replace(batch(forget=[0, 1]), rows=(1, 0)),
        replace(batch(forget=[0]), rows=(5,)),
        replace(batch(forget=[4]), rows=(-1,)),
        replace(batch(forget=[0]), sections={"alternate": 1}),
    ],
    ids=["length", "order", "row", "negative row", "section"],
)
def test_a_batch_of_other_sequences_is_refused(tmp_path, given):
    reference = attached(tmp_path)
    with pytest.raises(InputError, match="training_sequences must be those that it makes batches of"):
        reference.states(given)


def test_before_attach_it_says_so():
    with pytest.raises(RuntimeError, match="attach"):
        StoredStates().states(batch())
    with pytest.raises(RuntimeError, match="attach"):
        _ = StoredStates().head


@pytest.mark.parametrize("tokens", [0, -1])
def test_batch_tokens_must_be_positive(tokens):
    with pytest.raises(InputError, match=f"StoredStates.batch_tokens must be at least 1, got {tokens}"):
        StoredStates(batch_tokens=tokens)


# What happens to the policy.


def test_the_policy_is_as_it_was(tmp_path):
    policy = model("gpt2")
    policy.get_decoder().h[1].eval()
    modes = [each.training for each in policy.modules()]
    assert len(set(modes)) == 2
    before = copy.deepcopy(policy.state_dict())
    state = torch.get_rng_state()
    attached(tmp_path, policy)
    assert [each.training for each in policy.modules()] == modes
    assert all(each.requires_grad and each.grad is None for each in policy.parameters())
    assert all(torch.equal(each, before[name]) for name, each in policy.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


def test_the_policy_is_as_it_was_also_after_a_failure(tmp_path):
    policy = model("gpt2")
    with pytest.raises(InputError, match="a loss acts on layer 7"):
        attached(tmp_path, policy, layers={7})
    assert all(each.training for each in policy.modules())
    assert contents(tmp_path) == {}


def test_a_default_device_does_not_matter(tmp_path):
    policy = model()
    with torch.device("meta"):
        reference = attached(tmp_path, policy)
        states = reference.states(FULL)[None]
    assert torch.equal(states, attached(tmp_path, policy).states(FULL)[None])


def test_no_model_is_held(tmp_path):
    policy = model()
    weights = [weakref.ref(each) for each in policy.parameters()]
    head = policy.lm_head.weight.detach().clone()
    reference = attached(tmp_path, policy)
    assert torch.equal(reference.head.weight, head)
    with torch.no_grad():
        policy.lm_head.weight.zero_()
    del policy
    gc.collect()
    assert not any(each() is not None for each in weights)
    assert torch.equal(reference.head.weight, head)
    assert not reference.head.weight.requires_grad


@pytest.mark.parametrize("family", FAMILIES)
def test_a_frozen_head_is_the_policys_own_and_follows_it(tmp_path, family):
    policy = model(family)
    policy.get_output_embeddings().requires_grad_(False)
    reference = attached(tmp_path, policy)
    own = OutputHead.of(policy)
    assert reference.head.weight.data_ptr() == own.weight.data_ptr()
    assert (reference.head.scale, reference.head.softcap) == (own.scale, own.softcap)
    policy.double()
    reference.apply(lambda tensor: tensor.double())
    assert reference.head.weight.dtype == torch.float64
    assert reference.head.weight.data_ptr() == policy.get_output_embeddings().weight.data_ptr()


def test_a_head_is_copied_where_only_its_bias_is_trained(tmp_path):
    policy = model("phi")
    policy.lm_head.weight.requires_grad_(False)
    reference = attached(tmp_path, policy)
    bias = policy.lm_head.bias.detach().clone()
    with torch.no_grad():
        policy.lm_head.bias += 1
    assert torch.equal(reference.head.bias, bias)


def test_layers_alone_need_no_copy_of_the_head(tmp_path):
    policy = model()
    reference = attached(tmp_path, policy, layers={1})
    assert reference.head.weight.data_ptr() == policy.lm_head.weight.data_ptr()
    assert not (tmp_path / "reference/last.bin").exists()


def test_the_copied_head_is_cast_and_keeps_its_cap(tmp_path):
    policy = model("gemma2")
    reference = attached(tmp_path, policy)
    reference.apply(lambda tensor: tensor.double())
    assert reference.head.weight.dtype == torch.float64
    assert reference.head.softcap == 2.0
    assert OutputHead.of(policy).weight.dtype == torch.float32


# Precision.


def stored_dtype(folder, layer="last"):
    formats = json.loads((folder / "reference/manifest.json").read_text())["layers"]
    return {each["layer"]: each["dtype"] for each in formats}[None if layer == "last" else layer]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_on_disk(tmp_path, dtype):
    policy = model()
    reference = attached(tmp_path, policy, {"dtype": dtype})
    states = reference.states(FULL)[None]
    exact = frozen_copy(policy, tmp_path).states(FULL)[None]
    assert stored_dtype(tmp_path) == dtype
    assert states.dtype == getattr(torch, dtype)
    assert (tmp_path / "reference/last.bin").stat().st_size == exact.numel() * states.itemsize
    assert_close(states.float(), exact, atol=1e-5, rtol=2 * torch.finfo(states.dtype).eps)


def test_under_autocast_last_states_are_kept_as_the_head_will_get_them(tmp_path):
    """The engine rounds them so itself; those of a layer it takes as they are."""
    policy = model()
    autocast = {"precision": lambda: torch.autocast("cpu", dtype=torch.bfloat16), "layers": {None, 1}}
    reference = attached(tmp_path, policy, {"batch_tokens": 1}, **autocast)
    assert stored_dtype(tmp_path) == "bfloat16"
    assert stored_dtype(tmp_path, 1) == "float32"
    one = batch(retain=[4])
    states = reference.states(one, {None, 1})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        theirs = frozen_copy(policy, tmp_path).states(one, {None, 1})
    assert torch.equal(states[None], theirs[None].bfloat16())
    assert torch.equal(states[1], theirs[1])


def test_true_half_precision_is_that_of_the_weights_to_be(tmp_path):
    """Lightning casts them after the reference has been attached."""
    precision = HalfPrecision("bf16-true")
    policy = model()
    copied = frozen_copy(policy, tmp_path)
    reference = attached(tmp_path, policy, {"batch_tokens": 1}, precision=precision.forward_context)
    copied.apply(lambda tensor: tensor.bfloat16())
    reference.apply(lambda tensor: tensor.bfloat16())
    one = batch(retain=[4])
    with precision.forward_context():
        theirs = copied.states(one)[None]
    assert stored_dtype(tmp_path) == "bfloat16"
    assert torch.equal(reference.states(one)[None], theirs)
    assert torch.equal(reference.head.weight, copied.head.weight)


def test_states_beyond_the_dtype_are_refused(tmp_path):
    policy = model()
    with torch.no_grad():
        policy.get_decoder().norm.weight *= 1e6
    with pytest.raises(InputError, match=r"not finite in float16: set model\.reference.dtype to float32"):
        attached(tmp_path, policy, {"dtype": "float16"})
    with pytest.raises(InputError, match="dtype of the last layer, float16 there and float32 here"):
        attached(tmp_path, policy)
    attached(tmp_path, policy, {"path": str(tmp_path / "other")})


# A store that is there.


def test_a_whole_store_is_read_and_the_model_never_run(tmp_path):
    states = attached(tmp_path).states(FULL)[None]
    before = contents(tmp_path)
    policy = model()
    calls = count_forwards(policy)
    # Neither does the size of batches matter any more, nor is anything written.
    again = attached(tmp_path, policy, {"batch_tokens": 7})
    assert not calls
    assert torch.equal(again.states(FULL)[None], states)
    assert contents(tmp_path) == before


def test_a_path_lets_runs_share_a_store(tmp_path):
    shared = {"path": str(tmp_path / "deep/shared")}
    attached(tmp_path / "one", arguments=shared)
    policy = model()
    calls = count_forwards(policy)
    attached(tmp_path / "other", policy, shared)
    assert not calls
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep"]


def test_a_store_of_more_layers_and_sections_serves_a_run_that_wants_less(tmp_path):
    more = {"alternate": [encoded(8, 2, 7), encoded(4, 3, 8)], **sequences()}
    identity = {**IDENTITY, "alternate answers": "a"}
    attached(tmp_path, layers={None, 0, 1}, sequences=more, identity=identity)
    policy = model()
    calls = count_forwards(policy)
    less = {"layers": {1}, "sequences": sequences("retain")}
    states = attached(tmp_path, policy, **less).states(batch(retain=[6, 0]), {1})[1]
    assert not calls
    expected = frozen_copy(policy, tmp_path).states(batch(retain=[6, 0]), {1})[1]
    assert_close(states, expected, atol=1e-5, rtol=1e-5)


def test_half_a_store_of_more_is_filled_as_far_as_it_is_wanted(tmp_path):
    more = {"alternate": [encoded(8, 2, 7)], **sequences()}
    whole = tmp_path / "whole"
    attached(whole, sequences=more, layers={None, 1}, arguments={"batch_tokens": 1})
    half = tmp_path / "half"
    shutil.copytree(whole, half)
    checksums = half / "reference/checksums.bin"
    checksums.write_bytes(b"\xff" * checksums.stat().st_size)
    for name in ("last.bin", "layer-1.bin"):
        path = half / "reference" / name
        path.write_bytes(bytes(path.stat().st_size))
    attached(half, sequences=sequences("retain"), arguments={"batch_tokens": 1})
    assert data(half / "reference") != data(whole / "reference")
    attached(half, sequences=more, arguments={"batch_tokens": 1})
    assert data(half / "reference") == data(whole / "reference")


def one_token_changed():
    given = sequences()
    ids = given["retain"][2].ids
    given["retain"][2] = replace(given["retain"][2], ids=(*ids[:4], (ids[4] + 1) % VOCABULARY, *ids[5:]))
    return given


def cut():
    given = sequences()
    given["forget"][4] = replace(given["forget"][4], ids=given["forget"][4].ids[:15], cut=True)
    return given


def answer_begins_later():
    given = sequences()
    given["forget"][1] = replace(given["forget"][1], answer_start=4)
    return given


def rows_swapped():
    """Of one length, so that nothing but the fingerprint can tell."""
    given = sequences()
    given["forget"][0], given["forget"][1] = given["forget"][1], given["forget"][0]
    return given


def one_weight_changed():
    policy = model()
    with torch.no_grad():
        policy.get_decoder().layers[1].mlp.up_proj.weight[3, 2] += 1e-6
    return policy


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"policy": lambda: model(seed=1)}, "different: model"),
        ({"policy": one_weight_changed}, "different: model"),
        ({"policy": lambda: model().bfloat16()}, "different: model"),
        ({"policy": lambda: model(rms_norm_eps=1e-3)}, "different: model configuration"),
        ({"precision": lambda: torch.autocast("cpu", dtype=torch.bfloat16)}, "different: precision"),
        ({"precision": HalfPrecision("bf16-true").forward_context}, "different: precision"),
        ({"identity": IDENTITY | {"tokenizer": "u"}}, "different: tokenizer"),
        ({"identity": IDENTITY | {"prompt format": "q"}}, "different: prompt format"),
        ({"identity": IDENTITY | {"forget rows": "g"}}, "different: forget rows"),
        ({"identity": IDENTITY | {"retain rows": "g"}}, "different: retain rows"),
        ({"identity": IDENTITY | {"alternate answers": "a"}}, "it lacks alternate answers"),
        ({"sequences": one_token_changed()}, "different: retain sequences"),
        ({"sequences": cut()}, "different: forget sequences"),
        ({"sequences": answer_begins_later()}, "different: forget sequences"),
        ({"sequences": rows_swapped()}, "different: forget sequences"),
        ({"sequences": {**sequences(), "alternate": [encoded(5, 2, 0)]}}, "it lacks alternate sequences"),
        ({"layers": {None, 1}}, "it lacks layer 1"),
        ({"arguments": {"dtype": "bfloat16"}}, "different: dtype of the last layer, float32 there and bfloat16 here"),
    ],
)  # fmt: skip
def test_another_reference_is_refused_by_name_and_changes_nothing(tmp_path, changes, named):
    attached(tmp_path)
    before = contents(tmp_path)
    policy = changes.get("policy", model)()
    calls = count_forwards(policy)
    with pytest.raises(InputError) as refused:
        attached(tmp_path, **changes | {"policy": policy})
    assert f"({named}" in str(refused.value)
    assert str(tmp_path / "reference") in str(refused.value)
    assert "give model.reference.path another folder" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert contents(tmp_path) == before
    assert not calls


def test_where_the_model_came_from_does_not_matter(tmp_path):
    policy = model()
    states = attached(tmp_path / "one", policy, {"path": str(tmp_path / "shared")}).states(FULL)[None]
    policy.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    again = attached(tmp_path / "two", loaded, {"path": str(tmp_path / "shared")})
    assert torch.equal(again.states(FULL)[None], states)


def test_adapters_that_are_still_nothing_do_not_matter(tmp_path):
    pytest.importorskip("peft")
    plain, adapted, other = model(), model(), model()
    LoRA(rank=2, seed=1).apply(adapted)
    LoRA(rank=3, seed=2).apply(other)
    attached(tmp_path, adapted)
    reference = attached(tmp_path, other)
    assert reference.head.weight.data_ptr() == other.lm_head.weight.data_ptr()
    attached(tmp_path, plain)
    with torch.no_grad():
        next(each for name, each in other.named_parameters() if "lora_B" in name)[0, 0] = 0.1
    with pytest.raises(InputError, match=r"\(different: model\)"):
        attached(tmp_path, other)


def damage(store, name, change):
    path = store / name
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda store: damage(store, "last.bin", lambda old: old[:-1]), "last.bin has 5,"),
        (lambda store: damage(store, "last.bin", lambda old: old + b"0"), "last.bin has 5,"),
        (lambda store: (store / "last.bin").unlink(), "last.bin is missing"),
        (
            lambda store: damage(store, "last.bin", lambda old: old[:3] + bytes([old[3] ^ 1]) + old[4:]),
            "last.bin is damaged at row 0 of forget",
        ),
        (
            lambda store: damage(store, "last.bin", lambda old: old[:-1] + bytes([old[-1] ^ 1])),
            "last.bin is damaged at row 6 of retain",
        ),
        (lambda store: damage(store, "last.bin", lambda old: bytes(len(old))), "last.bin is damaged"),
        (lambda store: damage(store, "checksums.bin", lambda old: old[:-8]), "checksums.bin has 88 bytes"),
        (lambda store: damage(store, "checksums.bin", lambda old: bytes(len(old))), "last.bin is damaged"),
        (lambda store: damage(store, "manifest.json", lambda old: old[:-9]), "manifest.json cannot be read"),
        (lambda store: damage(store, "manifest.json", lambda old: b"[]"), "manifest.json cannot be read"),
        (lambda store: damage(store, "manifest.json", lambda old: b"{}"), "manifest.json cannot be read"),
        (
            lambda store: damage(store, "manifest.json", lambda old: old.replace(b"float32", b"floating")),
            "manifest.json cannot be read",
        ),
        (
            lambda store: damage(
                store, "manifest.json", lambda old: old.replace(b'"format": 1', b'"format": 2')
            ),
            "it is of format 2, not 1",
        ),
        (
            lambda store: damage(store, "manifest.json", lambda old: old.replace(b"      5,", b"      6,")),
            "manifest.json counts 6 rows",
        ),
        (lambda store: (store / "manifest.json").unlink(), "manifest.json cannot be read"),
    ],
)  # fmt: skip
def test_damage_is_refused_and_changes_nothing(tmp_path, change, said):
    attached(tmp_path)
    intact = contents(tmp_path)
    change(tmp_path / "reference")
    before = contents(tmp_path)
    assert before != intact
    with pytest.raises(InputError) as refused:
        attached(tmp_path)
    assert said in str(refused.value)
    assert "holds no stored states that can be used" in str(refused.value)
    assert contents(tmp_path) == before


def test_a_folder_or_file_that_is_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("more of it")
    before = contents(tmp_path)
    for path in ("mine", "file"):
        with pytest.raises(InputError, match="holds no stored states"):
            attached(tmp_path, arguments={"path": str(tmp_path / path)})
    with pytest.raises(InputError, match=r"cannot write the reference's states to .*file/below"):
        attached(tmp_path, arguments={"path": str(tmp_path / "file/below")})
    assert contents(tmp_path) == before


def test_a_disk_too_small_is_told_before_anything_is_written(tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)
    needed = sum(each.answer_length for rows in sequences().values() for each in rows) * 16 * 4
    monkeypatch.setattr(state_store, "disk_usage", lambda path: free._replace(free=needed - 1))
    with pytest.raises(InputError, match=r"need 0\.0 MiB and the disk of .*reference has 0\.0 MiB left: set"):
        attached(tmp_path)
    assert contents(tmp_path) == {}
    monkeypatch.setattr(state_store, "disk_usage", lambda path: free._replace(free=needed))
    attached(tmp_path)
    monkeypatch.setattr(state_store, "disk_usage", lambda path: free._replace(free=0))
    attached(tmp_path)


# Kills. A forked process has all that this one has, and dies in earnest.


def forked(function, *arguments, **keywords):
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments, kwargs=keywords)
    process.start()
    return process


def exit_code(process):
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def attach_and_die(folder, when, **arguments):
    when()
    attached(folder, arguments=arguments)


def at_forward(number):
    """Of the model; the first is of one short sequence alone."""

    def arm():
        left = [number]

        def answer_states_or_die(*arguments):
            if left[0] == 0:
                die()
            left[0] -= 1
            return answer_states(*arguments)

        sys.modules["dipo_pl.references.stored_states"].answer_states = answer_states_or_die

    return arm


def within_a_write(number):
    """When some sequences of a chunk have been handed to the system, and others have not."""

    def arm():
        left = [number]

        def checksum_or_die(data):
            if left[0] == 0:
                die()
            left[0] -= 1
            return zlib.crc32(data)

        state_store.zlib = type("", (), {"crc32": staticmethod(checksum_or_die)})

    return arm


def at_file_access(folder, number):
    """Just before the store's file system is touched for the nth time: a folder made, a file opened, renamed, cut."""

    def arm():
        left = [number]

        def die_at(event, arguments):
            if event in ("open", "os.mkdir", "os.rename", "os.truncate", "os.remove") and str(folder) in str(
                arguments
            ):
                if left[0] == 0:
                    die()
                left[0] -= 1

        sys.addaudithook(die_at)

    return arm


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    attached(folder)
    return data(folder / "reference")


CHUNKS = 6


@pytest.mark.parametrize("number", range(CHUNKS + 1))
def test_killed_at_a_chunk_it_goes_on_with_that_chunk(tmp_path, uninterrupted, number):
    assert exit_code(forked(attach_and_die, tmp_path, at_forward(number))) == -signal.SIGKILL
    policy = model()
    calls = count_forwards(policy)
    reference = attached(tmp_path, policy)
    # The first is the short sequence, which tells what a store that is not there yet will be like.
    assert len(calls) == (1 + CHUNKS if number == 0 else CHUNKS + 1 - number)
    assert data(tmp_path / "reference") == uninterrupted
    assert_close(
        reference.states(FULL)[None],
        frozen_copy(policy, tmp_path).states(FULL)[None],
        atol=1e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize("number", [0, 1, 4, 11])
def test_killed_within_a_write(tmp_path, uninterrupted, number):
    assert exit_code(forked(attach_and_die, tmp_path, within_a_write(number))) == -signal.SIGKILL
    attached(tmp_path)
    assert data(tmp_path / "reference") == uninterrupted


def test_killed_at_every_access_to_a_file(tmp_path):
    """Two chunks are enough: what is done for one more is the same."""
    two = {"batch_tokens": 150}
    attached(tmp_path / "whole", arguments=two)
    number = 0
    while True:
        folder = tmp_path / str(number)
        folder.mkdir()
        code = exit_code(forked(attach_and_die, folder, at_file_access(folder, number), **two))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        attached(folder, arguments=two)
        assert data(folder / "reference") == data(tmp_path / "whole/reference"), number
        number += 1
    assert number > 20


def test_killed_again_and_again(tmp_path, uninterrupted):
    kills = 0
    while code := exit_code(forked(attach_and_die, tmp_path, at_file_access(tmp_path, 17))):
        assert code == -signal.SIGKILL
        kills += 1
        assert kills < 50
    assert kills > 2
    assert data(tmp_path / "reference") == uninterrupted


def test_another_size_of_batches_goes_on_from_what_there_is(tmp_path):
    """What is finished stays bitwise; the rest agrees to rounding."""
    assert exit_code(forked(attach_and_die, tmp_path, at_forward(4))) == -signal.SIGKILL
    checksums = (tmp_path / "reference/checksums.bin").read_bytes()
    assert 0 < checksums.count(b"\xff" * 8) < len(checksums) // 8
    reference = attached(tmp_path, arguments={"batch_tokens": 1000})
    after = (tmp_path / "reference/checksums.bin").read_bytes()
    pairs = [(checksums[at : at + 8], after[at : at + 8]) for at in range(0, len(after), 8)]
    assert all(new == old or old == b"\xff" * 8 for old, new in pairs)
    theirs = frozen_copy(model(), tmp_path).states(FULL)[None]
    assert_close(reference.states(FULL)[None], theirs, atol=1e-5, rtol=1e-5)
    attached(tmp_path)


def test_what_is_there_is_not_written_again(tmp_path):
    """New states with the old checksum would be damage, were the process killed between the two."""
    formats = (LayerFormat(None, 3, "float32", "float32"), LayerFormat(1, 2, "float32", "float32"))
    store = StateStore(tmp_path, Manifest({}, formats, {"forget": (3, 6)}), {"forget": [1, 2, 3]})
    store.prepare()
    old = {None: torch.full((3, 3), 1.0), 1: torch.full((3, 2), 2.0)}
    new = {None: torch.full((5, 3), 3.0), 1: torch.full((5, 2), 4.0)}
    store.write([0, 1], old)
    assert store.missing().tolist() == [2]
    store.write([1, 2], new)
    assert store.missing().tolist() == []
    store.check()
    store.open()
    assert store.states(None, torch.arange(6))[:, 0].tolist() == [1, 1, 1, 3, 3, 3]
    assert store.states(1, torch.arange(6))[:, 0].tolist() == [2, 2, 2, 4, 4, 4]


def test_a_sequence_that_lacks_one_layer_is_computed_again(tmp_path):
    """A kill may come between two pages of checksums, and so between two layers of a sequence."""
    store = tmp_path / "reference"
    attached(tmp_path, layers={None, 1})
    whole = data(store)
    damage(store, "checksums.bin", lambda old: old[:8] + b"\xff" * 8 + old[16:])
    damage(store, "layer-1.bin", lambda old: bytes(16) + old[16:])
    attached(tmp_path, layers={None, 1})
    assert data(store) == whole


def test_an_error_of_the_file_system_is_one_line_and_can_be_gone_on_from(tmp_path, uninterrupted):
    def limited():
        # The file is longer than a process may write.
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
        try:
            attached(tmp_path)
        except InputError as error:
            (tmp_path / "said").write_text(str(error))

    assert exit_code(forked(limited)) == 0
    said = (tmp_path / "said").read_text()
    assert said.startswith(
        f"cannot write the reference's states to {tmp_path}/reference (File too large): set"
    )
    attached(tmp_path)
    assert data(tmp_path / "reference") == uninterrupted


# Several processes.


def rank_attaches(folder, rank, world_size, die_at=None):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/{world_size}-ranks",
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=30),
    )
    if die_at is not None:
        at_forward(die_at)()
    policy = model()
    calls = count_forwards(policy)
    reference = attached(folder, policy, rank=rank, world_size=world_size, barrier=dist.barrier)
    torch.save((len(calls), reference.states(FULL)[None], reference.head.weight), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def run_ranks(folder, world_size, die_at=None):
    processes = [
        forked(rank_attaches, folder, rank, world_size, die_at if rank == 1 else None)
        for rank in range(world_size)
    ]
    return [exit_code(each) for each in processes]


def test_two_ranks_fill_one_store_and_read_it(tmp_path, uninterrupted):
    assert run_ranks(tmp_path, 2) == [0, 0]
    assert data(tmp_path / "reference") == uninterrupted
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    # Each first looks at the short sequence.
    assert [calls - 1 for calls, *_ in results] == [3, 3]
    alone = attached(tmp_path)
    for _, states, head in results:
        assert torch.equal(states, alone.states(FULL)[None])
        assert torch.equal(head, alone.head.weight)


def test_one_rank_is_killed_and_two_finish(tmp_path, uninterrupted):
    assert exit_code(forked(attach_and_die, tmp_path, at_forward(4))) == -signal.SIGKILL
    assert run_ranks(tmp_path, 2) == [0, 0]
    assert data(tmp_path / "reference") == uninterrupted
    assert [torch.load(tmp_path / f"{rank}.pt")[0] for rank in range(2)] == [1, 2]


def test_one_of_two_ranks_is_killed_and_one_process_finishes(tmp_path, uninterrupted):
    codes = run_ranks(tmp_path, 2, die_at=2)
    assert codes[1] == -signal.SIGKILL
    assert codes[0] != 0
    policy = model()
    calls = count_forwards(policy)
    attached(tmp_path, policy)
    assert 0 < len(calls) < CHUNKS
    assert data(tmp_path / "reference") == uninterrupted


def test_runs_that_begin_together_do_the_work_once(tmp_path, uninterrupted):
    def run(number):
        policy = model()
        calls = count_forwards(policy)
        attached(tmp_path, policy)
        (tmp_path / f"calls-{number}").write_text(str(len(calls)))

    processes = [forked(run, number) for number in range(3)]
    assert [exit_code(each) for each in processes] == [0, 0, 0]
    assert data(tmp_path / "reference") == uninterrupted
    calls = [int((tmp_path / f"calls-{number}").read_text()) for number in range(3)]
    # Each may have looked at the short sequence.
    assert CHUNKS < sum(calls) <= CHUNKS + 3


def test_ranks_that_do_not_share_the_folder_are_told(tmp_path):
    with pytest.raises(InputError, match=r"set model\.reference\.path to a folder that all ranks share"):
        attached(tmp_path, rank=1, world_size=2)
    with pytest.raises(InputError, match=r"set model\.reference\.path to a folder that all ranks share"):
        attached(tmp_path, rank=0, world_size=2)


# On the command line.

RUN = (
    "fit", "--config", "smoke.yaml", "--forget_quality.generate_every", "0", "--data.evaluation_rows", "2",
    "--model.schedule", "constant_with_warmup", "--model.warmup", "0",
)  # fmt: skip
STORED = ("--config", "stored_states.yaml", "--model.reference.path", "store")


def logged(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(f"runs/{run}").Reload()
    return {
        name: [each.value for each in events.Scalars(f"train/{name}")]
        for name in ("loss", "forget", "retain")
    }


def test_training_is_that_with_a_frozen_copy_also_when_resumed(cli):
    """To float32 rounding of states, which AdamW's first steps enlarge: they divide a gradient by its own size."""
    assert cli(*RUN, "--model.reference", "FrozenCopy", "--name", "copied").code == 0
    begun = cli(*RUN, *STORED, "--name", "stored", "--trainer.max_epochs", "1")
    assert begun.code == 0, begun.err
    assert "reference's states (0.4 MiB): 100%" in begun.err
    store = contents("store")
    resumed = cli(*RUN, *STORED, "--name", "stored")
    assert resumed.code == 0, resumed.err
    assert "the reference's states are read from store (0.4 MiB)" in resumed.err
    assert contents("store") == store
    copied, stored = logged("copied"), logged("stored")
    assert len(copied["loss"]) == 6
    assert copied["loss"][-1] < copied["loss"][0] - 1e-3
    assert_close(stored, copied, atol=1e-5, rtol=0)


def test_other_runs_are_refused_by_name_in_one_line(cli):
    assert cli(*RUN, *STORED, "--name", "first", "--trainer.max_steps", "1").code == 0
    store, runs = contents("store"), contents("runs")
    for arguments, named in [
        (("--data.prompt", "Llama2Chat"), "prompt format; forget sequences; retain sequences"),
        (
            ("--data.prompt", "QuestionAnswer", "--data.prompt.answer_start", "\n"),
            "prompt format; forget sequences; retain sequences",
        ),
        (("--data.max_length", "60", "--data.too_long", "truncate"), "retain sequences"),
        (("--model.policy.seed", "1"), "model"),
        (("--model.policy.vocab_size", "500"), "model; model configuration; tokenizer; forget seq"),
        (("--data.authors", "3"), "tokenizer; forget rows; retain rows; forget seq"),
        (("--model.reference.dtype", "float16"), "dtype of the last layer, float32 there and float16 here"),
        (("--trainer.precision", "bf16-mixed"), "precision"),
    ]:
        ended = cli(*RUN, *STORED, "--name", "second", *arguments)
        assert ended.code == 2
        assert len(ended.errors) == 1
        assert f"store holds another reference's states (different: {named}" in ended.errors[0]
        assert contents("store") == store
        assert contents("runs") == runs


DYING = """
import os
import signal

from dipo_pl.models.from_config import FromConfig


class Dying(FromConfig):
    def model(self):
        model = super().model()
        left = [5]

        def die(*_):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        model.get_decoder().register_forward_hook(die)
        return model
"""


def test_a_killed_run_goes_on_with_what_it_has_computed(cli, process, tmp_path):
    (tmp_path / "dying.py").write_text(DYING)
    stored = (
        *RUN,
        "--config",
        "stored_states.yaml",
        "--model.reference.batch_tokens",
        "400",
        "--trainer.max_steps",
        "1",
    )
    killed = process(*stored, "--model.policy", "dying.Dying", modules=tmp_path)
    assert killed.code == -signal.SIGKILL, killed.err
    store = Path("runs/smoke-stored_states/reference")
    half = (store / "checksums.bin").read_bytes()
    assert 0 < half.count(b"\xff" * 8) < len(half) // 8
    ended = cli(*stored)
    assert ended.code == 0, ended.err
    first = next(line for line in ended.err.splitlines() if line.startswith("reference's states"))
    assert " 0%" not in first
    whole = (store / "checksums.bin").read_bytes()
    assert b"\xff" * 8 not in whole
    pairs = [(half[at : at + 8], whole[at : at + 8]) for at in range(0, len(whole), 8)]
    assert all(new == old or old == b"\xff" * 8 for old, new in pairs)
