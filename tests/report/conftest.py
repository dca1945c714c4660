"""Finished runs of every kind that a report shows, made once by the commands themselves; not to be written to."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from dipo_pl.__main__ import main
from dipo_pl.metrics.result import EvaluationResult, SetResult
from dipo_pl.storage.run_folder import RunFolder

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


@pytest.fixture
def write_sequence() -> Callable[..., Path]:
    """Writes the run folders of a sequence of requests, whole but by hand: see `_write_sequence`."""
    return _write_sequence


_REQUESTS = ["sust_1", "../requests/2026-02 <b>&|_$.jsonl", "sust_3", "sust_4"]


def _request_value(place, stage, method=0.0):
    """Of the request at a place when so many have been made: high, low, and then it comes back bit by bit."""
    return 0.9 - 0.01 * stage if stage < place else 0.1 + 0.07 * (stage - place) + 0.02 * method


def _utility_value(stage, mode, method=0.0):
    return 0.7 - (0.08 if mode == "sustainability" else 0.05) * stage * (1 + method)


def _write_sequence(
    folder, mode="sustainability", requests=_REQUESTS, shape="muse", method=0.0, retained=False, change=None
):
    """Run folders of a sequence, whole but written by hand.

    Args:
        shape: `muse` with knowledge and without truth ratios, or `tofu` with Forget Quality and Model Utility.
        method: moves its figures.
        retained: whether each stage has been measured against a retained model.
        change: given (stage, step, figures), alters the figures.
    """
    for stage in range(1, len(requests) + 1):
        asked = requests[:stage]
        forget = asked[-1:] if mode == "sustainability" else asked
        run = RunFolder(folder / f"stage-{stage}")
        start = stage - 1 if mode == "sustainability" else 0
        against = folder / f"stage-{stage}-retain_only"
        config = {
            "name": run.path.name,
            "data": {
                "class_path": "dipo_pl.data_modules.MUSE",
                "init_args": {"forget": forget, "requests": asked},
            },
            "forget_quality": {"retain_result": str(against) if retained else None},
        }
        manifest = {
            "command": "fit", "status": "finished", "seed": 0, "arguments": ["fit", "--config", "a.yaml"],
            "started": f"2026-01-0{stage}T10:00:00", "ended": f"2026-01-0{stage}T11:00:00",
            "policy": {
                "source": f"{folder.name}/{start}", "weights_at_start": f"{folder.name}{start}",
                "weights_at_end": f"{folder.name}{stage if mode == 'sustainability' else f's{stage}'}",
            },
            "sequence": {"name": folder.name, "mode": mode, "stage": stage, "requests": asked},
        }  # fmt: skip
        _write_run(run, config, manifest)
        for step, made in ((0, start), (4, stage)):
            figures = _figures(mode, stage, made, shape, method)
            if step and shape == "tofu":
                figures |= {"forget_quality": 0.3, "forget_quality_log10_p": -0.52}
            if change is not None:
                change(stage, step, figures)
            _evaluation(step, figures, forget, asked, shape).save(run)
        if retained:
            reference = RunFolder(against)
            plain = manifest | {"command": "validate"}
            del plain["sequence"]
            config["forget_quality"]["retain_result"] = None
            _write_run(reference, config, plain)
            figures = _figures(mode, stage, stage, shape, method) | {
                "retain_knowledge": 0.66 + 0.001 * stage,
                "model_utility": 0.66 + 0.001 * stage,
            }
            del figures["model_utility" if shape == "muse" else "retain_knowledge"]
            _evaluation(0, figures, forget, asked, shape).save(reference)
    return folder


def _write_run(run, config, manifest):
    run.path.mkdir(parents=True)
    run.config.write_text(yaml.safe_dump(config))
    run.manifest.write_text(json.dumps(manifest))


def _figures(mode, stage, made, shape, method):
    utility = _utility_value(made, mode, method)
    figures = {"retain_probability": utility - 0.1, "forget_probability": _request_value(stage, made, method)}
    for place in range(1, stage + 1):
        figures[f"request_{place}_probability"] = _request_value(place, made, method) / 2
    if shape == "tofu":
        return figures | {
            "model_utility": utility, "retain_rouge_l_recall": utility, "retain_truth_ratio": utility,
        }  # fmt: skip
    figures |= {"retain_knowledge": utility, "forget_knowledge": _request_value(stage, made, method)}
    figures |= {
        "forget_verbatim": _request_value(stage, made, method) / 3,
        "membership_min_k_auc": 0.4,
        "priv_leak": -9.0,
    }
    for place in range(1, stage + 1):
        figures[f"request_{place}_knowledge"] = _request_value(place, made, method)
    return figures


def _evaluation(step, figures, forget, asked, shape):
    names = {"forget": forget, "retain": ["retain"], "retain_questions": ["questions"]}
    names |= {f"request_{place}": [name] for place, name in enumerate(asked, start=1)}
    if shape == "muse":
        names |= {"verbatim": forget, "forget_questions": forget}
    sets = {}
    for name, texts in names.items():
        rows = [
            {
                "row": index, "question": f"{text}: question {index}?", "answers": [f"{text}: answer {index}"],
                "nll": [1.0 + index], "generation": f"{text} at step {step}", "min_k": float(index),
            }
            for text in texts for index in range(3)
        ]  # fmt: skip
        if shape == "tofu" and name == "forget":
            rows = [row | {"log_truth_ratio": 0.1 * row["row"] + 0.01 * step} for row in rows]
        sets[name] = SetResult({}, rows, hashlib.sha256(repr(texts).encode()).hexdigest())
    utility_sets = ["retain"] if shape == "tofu" else []
    return EvaluationResult(
        "muse" if shape == "muse" else "dipo_pl", figures, sets, step / 2, step, utility_sets
    )
