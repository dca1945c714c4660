"""Finished runs of every kind that a report shows, made once by the commands themselves; not to be written to."""

import json
import shutil
from pathlib import Path

import pytest

from dipo_pl.__main__ import main

_SMALL = "{model_type: llama, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 2}"
_TUNE = f"""
model:
  class_path: FineTuning
  init_args:
    policy: {{class_path: FromConfig, init_args: {{vocab_size: 512, config: {_SMALL}}}}}
    optimizer: {{class_path: AdamW, init_args: {{lr: 5.0e-3}}}}
data: {{class_path: FictitiousAuthors, init_args: {{train_on: all, authors: 4, forget_authors: 1, evaluation_rows: 10}}}}
forget_quality: {{utility_sets: [retain], max_new_tokens: 16}}
samples: {{rows: 0}}
trainer: {{accelerator: cpu, max_epochs: 5, num_sanity_val_steps: 0, check_val_every_n_epoch: 5}}
"""


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `target`, `retain-only`, `unlearned-0` and `unlearned-1` (two seeds), and two relearning probes."""
    folder = tmp_path_factory.mktemp("report") / "runs"
    tune = folder.parent / "tune.yaml"
    tune.write_text(_TUNE)
    fit = ("fit", "--output_dir", str(folder))
    unlearn = (
        *(*fit, "--config", "smoke.yaml", "--model.policy", "Pretrained"),
        *(
            "--model.policy.path",
            f"{folder}/target/hf",
            "--forget_quality.retain_result",
            f"{folder}/retain-only",
        ),
    )
    for command in (
        (*fit, "--config", str(tune), "--name", "target"),
        (*fit, "--config", str(tune), "--config", "retain_only.yaml", "--name", "retain-only"),
        (*unlearn, "--name", "unlearned-0"),
        (*unlearn, "--name", "unlearned-1", "--seed_everything", "1"),
        ("relearn", f"{folder}/unlearned-0", f"{folder}/retain-only", "--trainer.max_steps", "4"),
    ):
        assert main(command) == 0
    return folder


@pytest.fixture(scope="session")
def all_runs(runs: Path) -> list[Path]:
    return sorted(runs.iterdir())


@pytest.fixture
def copied(runs: Path, tmp_path: Path):
    """Copies a run under another name, its last evaluation and manifest altered."""

    def copy(name: str, new: str | None = None, evaluation=None, manifest=None) -> Path:
        target = tmp_path / "copies" / (new or name)
        shutil.copytree(runs / name, target, ignore=shutil.ignore_patterns("hf", "checkpoints", "events*"))
        for path, change in (
            (max((target / "evaluation").iterdir()), evaluation),
            (target / "manifest.json", manifest),
        ):
            if change is not None:
                content = json.loads(path.read_text())
                change(content)
                path.write_text(json.dumps(content))
        return target

    return copy
