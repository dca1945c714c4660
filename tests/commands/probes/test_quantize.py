"""`dipo-pl quantize` on real runs: the same evaluation of a model with rounded weights."""

import json
import math
from pathlib import Path
from unittest.mock import ANY

import pytest
import torch
from safetensors.torch import load_file

from dipo_pl.attacks.quantization import Quantization
from dipo_pl.models.pretrained import Pretrained


def nll_of(run: Path) -> torch.Tensor:
    """[rows, answers], of the last evaluation of the forget set."""
    last = sorted((run / "evaluation").iterdir())[-1]
    rows = json.loads(last.read_text())["sets"]["forget"]["rows"]
    return torch.tensor([row["nll"] for row in rows], dtype=torch.float64)


def test_the_same_evaluation_with_each_rounding(cli, runs, manifest, metrics):
    ended = cli("quantize", "runs/unlearned")
    assert ended.code == 0, ended.err
    exact = nll_of(runs / "unlearned")
    off = []
    kinds = {"int8": 8, "int4": 4, "nf4": 4}
    # What the attack of an audit tries.
    assert list(kinds) == Quantization().kinds
    for kind, bits in kinds.items():
        run = runs / f"unlearned-{kind}"
        written = manifest(run)
        assert written["command"] == "validate"
        assert written["status"] == "finished"
        assert written["probe"] == {
            "kind": "quantization",
            "of": "runs/unlearned",
            "weights": ANY,
            "bits": bits,
            "rounding": kind,
        }
        ours, theirs = (metrics(each)[-1] for each in (run, runs / "unlearned"))
        assert ours["step"] == 0
        # A verdict is of a training run.
        assert theirs.keys() - {"verdict", "verdict_reasons"} <= ours.keys()
        # Nearly the same model: the same set and the same answers are measured.
        assert math.isclose(ours["forget_probability"], theirs["forget_probability"], rel_tol=0.05)
        off.append(float((nll_of(run) - exact).abs().mean()))
        assert written["policy"]["source"] == "runs/unlearned/hf"
    assert 1e-7 < off[0] < off[1] / 5
    assert off[0] < off[2] / 5
    lines = ended.out.splitlines()
    assert [line.split()[0] for line in lines[-4:]] == ["runs/unlearned", "int8", "int4", "nf4"]


def test_what_is_measured_is_the_rounded_model(cli, runs):
    assert cli("quantize", "runs/unlearned/", "--bits", "4").code == 0
    assert not (runs / "unlearned-int8").exists()
    exported = load_file(runs / "unlearned" / "hf" / "model.safetensors")
    model = Pretrained(str(runs / "unlearned" / "hf"), quantization="int4").model()
    name = "model.layers.0.self_attn.q_proj.weight"
    assert len(model.state_dict()[name][0, :32].unique()) <= 16 < len(exported[name][0, :32].unique())
    # By the model's forward pass alone.
    row = json.loads((runs / "unlearned-int4" / "evaluation" / "step-000000.json").read_text())["sets"][
        "forget"
    ]["rows"][0]
    tokenizer = Pretrained(str(runs / "unlearned" / "hf")).tokenizer()
    ids = tokenizer(f"Question: {row['question']}\nAnswer: {row['answers'][0]}")["input_ids"]
    ids = torch.tensor([[*ids, tokenizer.eos_token_id]])
    prompt = len(tokenizer(f"Question: {row['question']}\nAnswer:")["input_ids"])
    with torch.no_grad():
        log_p = model.eval()(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[prompt - 1 :, 0]
    assert row["nll"][0] == pytest.approx(-float(log_p.mean()), rel=1e-5)


def test_the_evaluation_of_the_exported_weights_is_shown(cli, runs, manifest, metrics):
    first, *_, last = (f"{each['forget_probability']:.5f}" for each in metrics(runs / "unlearned"))
    assert first != last
    manifest(runs / "unlearned", exported_step=0)
    ended = cli("quantize", "runs/unlearned", "--bits", "8", "--forget_quality.generate_every", "0")
    assert first in ended.out.splitlines()[-2].split()


def test_a_quantized_policy_is_not_trained(refused, runs):
    policy = (
        "--model.policy Pretrained --model.policy.path runs/unlearned/hf --model.policy.quantization int8"
    )
    line = refused(*f"fit --config smoke.yaml --name other {policy}".split())
    assert "model.policy.quantization is int8, and a quantized policy cannot be trained" in line


def test_a_probe_is_not_probed(cli, refused, runs):
    assert cli("quantize", "runs/unlearned", "--bits", "4", "--forget_quality.generate_every", "0").code == 0
    for command in ("quantize", "relearn"):
        assert "is itself a probe: probe runs/unlearned instead" in refused(command, "runs/unlearned-int4")
