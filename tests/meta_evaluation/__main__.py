"""`make meta-evaluation`: which of an audit's metrics can be believed?

Faithfulness: 30 models that were trained on the forget rows, and 30 that were not (half of these learned wrong answers to
the forget questions), of different seeds and lengths of training; how well does a metric tell one from the other?
Robustness: does what a metric says of an unlearned model hold after one epoch of relearning, and after rounding to NF4?
See meta_formulas.py. Models are small Llamas from scratch (models.yaml). A table is in docs/results.md.
What is finished is not repeated.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from meta_formulas import (
    faithfulness,
    faithfulness_interval,
    quantization_robustness,
    relearning_robustness,
    robustness,
)
from meta_pool import METRICS, cases
from transformers import PreTrainedModel

from dipo_pl.attacks.answer_prefix import AnswerPrefix
from dipo_pl.attacks.logit_lens import LogitLens
from dipo_pl.attacks.membership import Membership
from dipo_pl.attacks.plain_question import PlainQuestion
from dipo_pl.attacks.subject import RETAIN_ONLY, TARGET, UNLEARNED, Memory, Subject
from dipo_pl.attacks.unlearning_depth import UnlearningDepth
from dipo_pl.cli.run import data_module, run
from dipo_pl.models.pretrained import Pretrained
from dipo_pl.models.quantization import quantize
from dipo_pl.modules.finetuning import FineTuning
from dipo_pl.report.drawing import Plot, color_of, write_png
from dipo_pl.report.intervals import Interval
from dipo_pl.storage.files import write_text
from dipo_pl.storage.run_folder import RunFolder
from dipo_pl.storage.text import load_yaml

NEW_TOKENS = 24
TRAINING = ("--config", str(Path(__file__).with_name("models.yaml")))
# What the demo's unlearning has more of.
SAME = ("--data.authors", "6")
ATTACKS = (PlainQuestion(), AnswerPrefix(tokens=[2]), Membership(), LogitLens(), UnlearningDepth())
QUICK = (
    "--data.evaluate", "[forget,holdout]", "--data.evaluation_rows", "40", "--forget_quality.generate_every", "0",
    "--forget_quality.metrics", "[]", "--forget_quality.utility_sets", "[]", "--samples.rows", "0",
)  # fmt: skip
# Methods whose models are relearned and quantized, at each of these learning rates.
METHODS = {"dipo": [], "npo": ["npo.yaml"], "graddiff": ["graddiff.yaml"], "simnpo": ["simnpo.yaml"]}
RATES = (2e-4,)


class Folder:
    """The folder of a meta-evaluation.

    Args:
        path: of runs and results.
        epochs: of the two reference models; fewer for a trial.
    """

    def __init__(self, path: Path, epochs: int) -> None:
        self.path, self.epochs = path, epochs
        # What was found of the models that stay the same.
        self._known: dict[str, object] = {}

    def train(self, name: str, seed: int, *words: str) -> Path:
        """Return the exported model of a finished run, which is made if there is none."""
        folder = RunFolder(self.path / name)
        if not (folder.hf / "config.json").is_file():
            named = ("--seed_everything", str(seed), "--name", name, "--output_dir", str(self.path))
            if code := run(["fit", *words, *QUICK, *named]):
                raise SystemExit(code)
            shutil.rmtree(folder.checkpoints, ignore_errors=True)
        return folder.hf

    def reference(self, name: str, *words: str) -> Path:
        """Return one of the two models that every other is attacked beside."""
        epochs = str(self.epochs)
        length = ("--trainer.max_epochs", epochs, "--trainer.check_val_every_n_epoch", epochs)
        return self.tuned(name, 0, *words, *length)

    def tuned(self, name: str, seed: int, *words: str) -> Path:
        """Return a model that is fine-tuned from the one that all start from, which knows the retain rows alone.

        Depth compares layers, which mean the same in models of one origin only.
        """
        base = self.train("base", 0, *TRAINING, "--config", "retain_only.yaml")
        start = (
            "--model.policy",
            "Pretrained",
            "--model.policy.path",
            str(base),
            "--model.optimizer.lr",
            "1e-3",
        )
        return self.train(name, seed, *TRAINING, *start, *words)

    def measured(
        self, name: str, model: Path, change: Callable[[PreTrainedModel], None] | None = None
    ) -> dict[str, float]:
        """Return the metrics of a model, whose weights may be changed first."""
        path = self.path / "measured" / f"{name}.json"
        if not path.is_file():
            print(f"measuring {name}", flush=True)
            write_text(path, json.dumps(self._measure(model, change)) + "\n")
        found: dict[str, float] = json.loads(path.read_text())
        return found

    def _measure(self, model: Path, change: Callable[[PreTrainedModel], None] | None) -> dict[str, float]:
        target, never = self.reference("full"), self.reference("retain", "--config", "retain_only.yaml")
        sources = {
            TARGET: Pretrained(str(target)),
            UNLEARNED: Changed(str(model), change),
            RETAIN_ONLY: Pretrained(str(never)),
        }
        data = data_module(load_yaml((self.path / "full" / "config.yaml").read_text()))
        data.connect(FineTuning(sources[UNLEARNED]))
        data.setup("validate")
        subject = Subject(sources, data, (), NEW_TOKENS)
        subject.memory = Memory()
        subject.memory.parts |= self._known
        metrics: dict[str, float] = {}
        for attack in ATTACKS:
            metrics |= attack.run(subject).metrics
        same = (f"-{TARGET}", f"-{RETAIN_ONLY}")
        self._known = {key: each for key, each in subject.memory.parts.items() if key.endswith(same)}
        return {each.key: _value(metrics, each.key) for each in METRICS}


class Changed(Pretrained):
    """Source of a pretrained model that is changed after it was loaded."""

    def __init__(self, path: str, change: Callable[[PreTrainedModel], None] | None) -> None:
        super().__init__(path)
        self.change = change

    def load(self) -> PreTrainedModel:
        """Return the changed model."""
        model = super().load()
        if self.change is not None:
            self.change(model)
        return model


def _value(metrics: dict[str, float], key: str) -> float:
    return 1 - metrics[key[1:]] if key.startswith("-") else metrics[key]


def to_nf4(model: PreTrainedModel) -> None:
    """Round the weights to NF4."""
    quantize(model, "nf4")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/meta-evaluation"))
    parser.add_argument("--models", type=int, default=30, help="models of each kind (default: 30)")
    parser.add_argument("--epochs", type=int, default=16, help="of the reference models (default: 16)")
    parser.add_argument("--only_faithfulness", action="store_true", help="leave robustness out")
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = Folder(given.output, given.epochs)
    pools: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    for case in cases(given.models):
        model = folder.tuned(case.name, case.seed, *case.words)
        pools[case.knows].append(folder.measured(case.name, model))
    _report(folder, pools, {} if given.only_faithfulness else _robustness(folder))
    return 0


def _robustness(folder: Folder) -> dict[str, tuple[float, float]]:
    """Return robustness to relearning and to quantization by metric, means over the unlearned models."""
    target, never = folder.reference("full"), folder.reference("retain", "--config", "retain_only.yaml")
    models = {"retain": never}
    for method, configs in METHODS.items():
        overlays = [word for each in ("demo.yaml", *configs) for word in ("--config", each)]
        for rate in RATES:
            words = (
                "--model.policy.path", str(target), "--model.optimizer.lr", str(rate), "--forget_quality.retain_result",
                "null", "--selection.rule", "null", "--selection.stop", "false", "--trainer.max_epochs", "6",
                "--trainer.check_val_every_n_epoch", "6",
            )  # fmt: skip
            models[f"{method}-{rate:g}"] = folder.train(f"{method}-{rate:g}", 0, *overlays, *SAME, *words)
    found = {}
    for name, model in models.items():
        words = (
            "--model.policy", "Pretrained", "--model.policy.path", str(model), "--data.train_on", "forget",
            "--model.optimizer.lr", "2e-4", "--model.schedule", "constant_with_warmup", "--model.warmup", "0",
            "--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1", "--data.batch_size", "8",
        )  # fmt: skip
        relearned = folder.train(f"{name}-relearned", 0, *TRAINING, *words)
        found[name] = (
            folder.measured(name, model),
            folder.measured(f"{name}-relearned", relearned),
            folder.measured(f"{name}-nf4", model, to_nf4),
        )
    never_before, never_after, _ = found.pop("retain")
    return {
        each.key: (
            fmean(
                relearning_robustness(before[each.key], after[each.key], never_before[each.key], never_after[each.key])
                for before, after, _ in found.values()
            ),
            fmean(quantization_robustness(before[each.key], rounded[each.key]) for before, _, rounded in found.values()),
        )
        for each in METRICS
    }  # fmt: skip


def _report(
    folder: Folder, pools: dict[bool, list[dict[str, float]]], changed: dict[str, tuple[float, float]]
) -> None:
    count = len(pools[True])
    unlearned = f"; {len(METHODS) * len(RATES)} unlearned models" if changed else ""
    head = ["Metric", "Faithfulness [95 %]", "Published"]
    head += ["Relearning R", "Published", "Quantization Q", "Published", "Robustness"] if changed else []
    about = f"{count} models that know and {count} that do not{unlearned}.\n"
    lines = [about, f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    rows = {}
    for each in METRICS:
        knowing, ignorant = ([model[each.key] for model in pools[knows]] for knows in (True, False))
        area, (low, high) = faithfulness(knowing, ignorant), faithfulness_interval(knowing, ignorant)
        published = [f"{value:.3f}" for value in each.published] if each.published else ["", "", ""]
        cells = [each.title, f"{area:.3f} [{low:.3f}, {high:.3f}]", published[0]]
        if changed:
            relearning, quantization = changed[each.key]
            cells += [f"{relearning:.3f}", published[1], f"{quantization:.3f}", published[2]]
            cells.append(f"{robustness(relearning, quantization):.3f}")
        lines.append(f"| {' | '.join(cells)} |")
        measured = Interval(area, low, high)
        rows[each.title] = measured, each.published[0] if each.published else None
    write_text(folder.path / "table.md", "\n".join(lines) + "\n")
    print("\n".join(lines))
    described = [f"{title} {measured.mean:.3f}" for title, (measured, _) in rows.items()]
    label = f"AUC, {count} models that know beside {count} that do not"

    def draw(axes: Any) -> None:
        for place, (measured, published) in enumerate(rows.values()):
            axes.plot(measured[1:], [place, place], color=color_of(0), linewidth=2)
            axes.plot([measured.mean], [place], "o", color=color_of(0), markersize=8)
            if published is not None:
                axes.plot([published], [place], "D", color=color_of(1), markersize=6, fillstyle="none")
        axes.plot([], [], "o-", color=color_of(0), markersize=8, linewidth=2, label="here, 95% interval")
        axes.plot(
            [], [], "D", color=color_of(1), markersize=6, fillstyle="none", label="published, Llama-3.2-1B"
        )
        axes.axvline(0.5, color="black", linestyle=":", linewidth=1.2, label="chance")
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")

    title = "Faithfulness of the metrics"
    plot = Plot("meta_evaluation", title, described, label, "", draw, 1.8 + 0.3 * len(rows))
    write_png(folder.path / "meta_evaluation.png", plot)


if __name__ == "__main__":
    sys.exit(main())
