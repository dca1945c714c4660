"""Finished runs of every kind that a report shows, made once by the commands themselves; not to be written to."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from sample_runs import THREE, write_sequence

from dipo_pl.__main__ import main
from dipo_pl.report.contents import Report, read_report
from dipo_pl.report.page import as_html
from dipo_pl.report.texts import Texts

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
_FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
]  # fmt: skip
_HOW = "needs Debian's chromium (apt-get install chromium) and playwright (pip install playwright)"


@pytest.fixture(scope="session")
def runs(once: Callable[..., Path]) -> Path:
    """The folder of `target`, `retain-only`, `unlearned-0` and `unlearned-1` (two seeds), and two relearning attacks."""
    return once("report", _make_runs) / "runs"


def _make_runs(top: Path) -> None:
    folder, tune = top / "runs", top / "tune.yaml"
    tune.write_text(_TUNE)
    fit = f"fit --output_dir {folder}"
    unlearn = (
        f"{fit} --config smoke.yaml --model.policy Pretrained --model.policy.path {folder}/target/hf "
        f"--forget_quality.retain_result {folder}/retain-only"
    )
    for command in (
        f"{fit} --config {tune} --name target",
        f"{fit} --config {tune} --config retain_only.yaml --name retain-only",
        f"{unlearn} --name unlearned-0",
        f"{unlearn} --name unlearned-1 --seed_everything 1",
        f"relearn {folder}/unlearned-0 {folder}/retain-only --trainer.max_steps 4",
    ):
        assert main(command.split()) == 0


@pytest.fixture(scope="session")
def all_runs(runs: Path) -> list[Path]:
    return sorted(runs.iterdir())


@pytest.fixture(scope="session")
def report(all_runs: list[Path]) -> Report:
    return read_report(all_runs, texts=Texts.FULL)


@pytest.fixture(scope="session")
def page(report: Report) -> str:
    return as_html(report)


@pytest.fixture
def copied(runs: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copy a run under another name, its last evaluation and manifest altered."""

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


@pytest.fixture(scope="session")
def browser():
    executable = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        executable = None
    if executable is None:
        assert "CI" not in os.environ, _HOW
        pytest.skip(_HOW)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=_FLAGS)
        yield started
        started.close()


@pytest.fixture
def sequence(tmp_path):
    """Write a sequence of three requests."""
    return lambda name="seq", **options: write_sequence(tmp_path / name, **{"requests": THREE, **options})


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """Two methods in two modes; not to be written to."""
    folder = tmp_path_factory.mktemp("runs")
    return [
        write_sequence(folder / f"{name}-{mode[:4]}", mode, THREE, method=method, retained=True)
        for name, method in (("dipo", 0.0), ("npo", 0.5))
        for mode in ("sustainability", "scalability")
    ]


@pytest.fixture
def content(cli):
    """Return the report of some paths, read from JSON."""
    return lambda *arguments: json.loads(cli("report", *arguments, "--format", "json").out)
