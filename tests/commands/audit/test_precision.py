"""An audit computes in the precision of its run."""

import json

import pytest
import torch
import yaml
from audit_inputs import AUDIT, figures

ATTACKS = """\
attacks:
  - {class_path: PlainQuestion}
  - {class_path: UnlearningDepth, init_args: {threshold: 0.0}}
  - {class_path: Relearning, init_args: {source: forget, share: 0.5, steps: 4, every: 2, lr: 1.0e-3}}
"""
WORDS = (*AUDIT, "--config", "attacks.yaml")


@pytest.fixture
def audited(world, cli):
    """Audit the run after setting its precision, and return figures and manifest."""
    (world / "attacks.yaml").write_text(ATTACKS)

    def run(precision):
        config = world / "runs" / "unlearned" / "config.yaml"
        text = yaml.safe_load(config.read_text())
        text["trainer"]["precision"] = precision
        config.write_text(yaml.safe_dump(text))
        ended = cli(*WORDS)
        assert ended.code == 0, ended.err
        folder = world / "runs" / "unlearned-audit"
        return figures(folder), json.loads((folder / "manifest.json").read_text())["autocast"]

    return run


def test_a_run_in_bfloat16_is_audited_in_it(audited):
    plain, autocast = audited("32-true")
    assert autocast is None
    mixed, autocast = audited("bf16-mixed")
    assert autocast == "bfloat16"
    key = "forget_probability"
    ours, theirs = (each["plain_question.json"]["metrics"][key] for each in (plain, mixed))
    assert ours != theirs
    assert ours == pytest.approx(theirs, rel=0.02)
    # Each step trains weights, not the casts of earlier ones.
    ours, theirs = (each["relearning_forget.json"]["series"]["unlearned"] for each in (plain, mixed))
    assert ours == pytest.approx(theirs, rel=0.05)
    assert abs(ours[-1] - ours[0]) > 3 * max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    ours, theirs = (each["unlearning_depth.json"]["metrics"]["unlearning_depth"] for each in (plain, mixed))
    assert ours == pytest.approx(theirs, abs=0.1)
    # The audit leaves nothing behind.
    assert not torch.is_autocast_enabled("cpu")
    # float16 is for training with a loss scale.
    assert audited("16-mixed") == (plain, None)
