"""Training on compiled layers is training on layers as they are, with few graphs, and nothing else is touched by it."""

import os
import subprocess
import sys

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.plugins import MixedPrecision
from safetensors.torch import load_file
from training import batches, model, train, unlearning

from dipo_pl.errors import InputError
from dipo_pl.losses import DiPO, DiPORetain
from dipo_pl.models.compiled_layers import compile_layers, uncompiled
from dipo_pl.models.lora import LoRA
from dipo_pl.references.adapter_off import AdapterOff
from dipo_pl.references.frozen_copy import FrozenCopy

CPU = torch.device("cpu")
# Rows of every batch: as many shapes, with and without padding.
SIZES = [2, 3, 1, 2, 4, 5, 6, 3]
PATHS = {
    "all weights": {"lora": False},
    "recomputed": {"lora": False, "checkpointing": True},
    "LoRA": {"lora": True},
    "LoRA, recomputed": {"lora": True, "checkpointing": True},
}


class Graphs:
    """A backend that runs graphs as they are, and counts them."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph, inputs):
        self.count += 1
        return graph.forward


def module(lora, checkpointing=False, compiled=False):
    torch.manual_seed(0)
    policy = model(num_hidden_layers=3)
    if lora:
        LoRA(rank=2, alpha=4.0).apply(policy)
    if checkpointing:
        policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    reference = AdapterOff() if lora else FrozenCopy()
    made = unlearning(
        None, DiPO(0.3), DiPORetain(0.3), policy=policy.train(), reference=reference,
        optimizer=lambda weights: torch.optim.AdamW(weights, lr=1e-3),
    )  # fmt: skip
    if compiled:
        compile_layers(made.model, CPU)
        if not lora:
            compile_layers(made.reference.model, CPU)
    return made


@pytest.mark.parametrize("path", PATHS)
def test_losses_are_those_of_layers_as_they_are_and_graphs_are_few(path):
    """Three layers and eight batch shapes would be two dozen."""
    theirs = module(**PATHS[path])
    expected = train(theirs, batches(theirs, SIZES)).losses
    graphs = Graphs()
    torch.compiler.reset()
    with torch.compiler.set_stance("default", force_backend=graphs):
        ours = module(**PATHS[path], compiled=True)
        before = graphs.count
        found = train(ours, batches(ours, SIZES)).losses
    assert found == pytest.approx(expected, rel=1e-6)
    # With padding or without, with gradients or without; under LoRA the first layer's input needs none, and where
    # activations are recomputed the reference has two of each.
    assert 2 <= graphs.count - before <= (4 if path == "all weights" else 6)


def test_nothing_is_compiled_outside_of_training():
    graphs = Graphs()
    torch.compiler.reset()
    with torch.compiler.set_stance("default", force_backend=graphs):
        ours = module(lora=False, compiled=True)
        before = graphs.count
        ids = torch.randint(3, 13, (2, 6))
        with uncompiled():
            inside = ours.model(ids).logits
            ours.model.generate(ids, max_new_tokens=2, do_sample=False)
        assert graphs.count == before
        outside = ours.model(ids).logits
        assert graphs.count > before
    torch.testing.assert_close(inside, outside)


def test_names_and_weights_are_those_of_the_model():
    plain, ours = module(lora=True), module(lora=True, compiled=True)
    assert list(ours.state_dict()) == list(plain.state_dict())
    assert type(ours.model.model.layers[0]) is type(plain.model.model.layers[0])


@pytest.mark.skipif(os.system("g++ --version > /dev/null 2>&1") != 0, reason="there is no C++ compiler")
def test_kernels_of_the_compiler_give_the_same_training():
    """Rounded otherwise, also under autocast."""
    for mixed, limit in ((False, 1e-5), (True, 1e-2)):
        ended = []
        for compiled in (False, True):
            made = module(lora=False, compiled=compiled)
            options = {"plugins": [MixedPrecision("bf16-mixed", "cpu")]} if mixed else {}
            ended.append(train(made, batches(made, [2, 3]), **options).losses)
        assert ended[0] == pytest.approx(ended[1], rel=limit)


def test_a_machine_without_a_compiler_is_named(tmp_path):
    """A process of its own: torch reads CXX when it is imported."""
    code = (
        "import torch; from tiny_models import tiny_model; from dipo_pl.models.compiled_layers import compile_layers\n"
        "compile_layers(tiny_model(), torch.device('cpu'))"
    )
    environment = os.environ | {
        "CXX": "/nowhere/g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ended.returncode == 1
    line = ended.stderr.splitlines()[-1]
    assert "model.policy.compile is true, and torch.compile does not work here (" in line
    assert "install a C++ compiler" in line


def test_losses_of_hidden_states_are_refused(cli):
    ended = cli("fit", "--config", "smoke.yaml", "--config", "rmu.yaml", "--model.policy.compile", "true")
    assert ended.code == 2
    assert len(ended.errors) == 1
    assert "model.policy.compile is true, and a loss reads the hidden states of a layer" in ended.errors[0]


def test_several_devices_are_refused():
    module = unlearning(None, DiPO(), DiPORetain())
    module.policy.compile = True
    module.trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False)
    with pytest.raises(InputError, match=r"^model\.policy\.compile is true, and training is on 2 devices"):
        module.setup("fit")


def test_a_run_with_it_ends_where_one_without_does(cli):
    """With evaluations in between, generated answers, a checkpoint and an export."""
    run = (
        "fit",
        "--config",
        "smoke.yaml",
        "--trainer.max_steps",
        "4",
        "--forget_quality.max_new_tokens",
        "4",
    )
    assert cli(*run, "--name", "plain").code == 0
    graphs = Graphs()
    torch.compiler.reset()
    with torch.compiler.set_stance("default", force_backend=graphs):
        ended = cli(*run, "--model.policy.compile", "true", "--name", "compiled")
    assert ended.code == 0, ended.err
    # One tries the compiler.
    assert 3 <= graphs.count <= 6
    ours, theirs = (load_file(f"runs/{name}/hf/model.safetensors") for name in ("compiled", "plain"))
    assert ours.keys() == theirs.keys()
    for name, each in ours.items():
        torch.testing.assert_close(each, theirs[name], rtol=0.0, atol=2e-5)
    checkpoints = [
        torch.load(f"runs/{name}/checkpoints/last.ckpt", weights_only=True)["state_dict"].keys()
        for name in ("compiled", "plain")
    ]
    assert checkpoints[0] == checkpoints[1]
