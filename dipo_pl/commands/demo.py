"""The command `dipo-pl demo`: train, unlearn and evaluate on made-up authors or news, offline, in minutes on a CPU."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dipo_pl.cli.command_parser import Parser
from dipo_pl.metrics.knowledge import before_next_question
from dipo_pl.report.contents import read_report
from dipo_pl.report.drawing import write_png
from dipo_pl.report.plots import trajectory
from dipo_pl.storage.run_folder import RunFolder


@dataclass(frozen=True)
class Corpus:
    """What a demo is about.

    Attributes:
        run: name of the unlearning run and of its config; the target's has `_target` after it.
        learns, keeps, forgets: what the target, the retain-only model and the unlearned one do.
        answered: the evaluation set of which answers are shown.
        forget_alone: the retain-only model is measured with the unlearning run's own data, of which it was not made.
    """

    run: str
    learns: str
    keeps: str
    forgets: str
    answered: str
    forget_alone: bool = False

    @property
    def target(self) -> str:
        return f"{self.run}_target"

    @property
    def retain_only(self) -> str:
        return f"{self.target}-retain_only"

    @property
    def retain_result(self) -> str:
        return f"{self.run}-retain_only" if self.forget_alone else self.retain_only


CORPORA = {
    "authors": Corpus(
        "demo",
        "a target model learns 20 fictitious authors",
        "a retain-only model learns 18 of them, to know what not knowing the other 2 looks like",
        "DiPO makes the target forget the 2",
        "forget",
    ),
    "news": Corpus(
        "demo_news",
        "a target model learns fictitious news, four folds of articles among them",
        "a retain-only model learns all but the folds, to know what not knowing them looks like",
        "DiPO makes the target forget the first fold",
        "forget_questions",
        forget_alone=True,
    ),
}


def demo(arguments: Sequence[str], debug: bool = False) -> int:
    """Makes a target and a retain-only model, unlearns with DiPO, shows what came of it.

    Returns the exit code of the first step that fails, else 0. Steps that are finished are not repeated.
    """
    given = parser().parse_args(arguments)
    folder, corpus = Path(given.output_dir), CORPORA[given.corpus]
    from dipo_pl.cli.run import run

    steps = _steps(corpus, folder)
    started = time.monotonic()
    for number, (what, command) in enumerate(steps, start=1):
        print(f"\n[{number}/{len(steps)}] {what}\n      dipo-pl {' '.join(command)}", flush=True)
        if code := run(command, debug):
            return code
    _show(corpus, folder, time.monotonic() - started)
    return 0


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    made = Parser("demo", demo.__doc__.split("\n")[0] if demo.__doc__ else "")
    made.add_argument(
        "--corpus", choices=list(CORPORA), default="authors", help="in the shape of TOFU, or of MUSE; authors"
    )
    made.add_argument("--output_dir", default="runs", help="folder that the run folders are made in")
    return made


def _steps(corpus: Corpus, folder: Path) -> list[tuple[str, list[str]]]:
    """What each command is for, and the command."""
    fit = ["fit", "--output_dir", str(folder)]
    unlearning = ["--output_dir", str(folder), "--config", f"{corpus.run}.yaml"]
    steps = [
        (corpus.learns, [*fit, "--config", f"{corpus.target}.yaml"]),
        (corpus.keeps, [*fit, "--config", f"{corpus.target}.yaml", "--config", "retain_only.yaml"]),
    ]
    if corpus.forget_alone:
        steps.append(
            (
                "that model is measured on what is to be forgotten",
                [
                    *("validate", *unlearning, "--name", corpus.retain_result),
                    *("--model.policy.path", str(folder / corpus.retain_only / "hf")),
                    *("--forget_quality.retain_result", "null"),
                ],
            )
        )
    unlearn = [
        *("fit", *unlearning),
        *("--model.policy.path", str(folder / corpus.target / "hf")),
        *("--forget_quality.retain_result", str(folder / corpus.retain_result)),
    ]
    return [*steps, (corpus.forgets, unlearn)]


def _show(corpus: Corpus, folder: Path, seconds: float) -> None:
    from dipo_pl.callbacks.forget_quality import headlines

    unlearned = RunFolder(folder / corpus.run)
    before, after = unlearned.read_metrics()[0], unlearned.final_metrics
    retain_only = RunFolder(folder / corpus.retain_result).read_metrics()[-1]
    titles = headlines(before)
    # Forget Quality asks whether a model can be told from the retain-only one: of that model itself, it is 1.
    retain_only |= {"forget_quality": 1.0, "priv_leak": 0.0}
    models = {"target": before, "retain-only": retain_only, "unlearned": after}
    print(f"\n{'':12}" + "".join(f"{title:>16}" for title in titles))
    for model, values in models.items():
        print(f"{model:12}" + "".join(f"{_number(values[key]):>16}" for key in titles.values()))
    was, became = (_generations(unlearned, each["step"], corpus.answered) for each in (before, after))
    for row, new in list(zip(was, became, strict=True))[:3]:
        texts = {"question": row["question"], "truth": row["answers"][0]}
        texts |= {"before": row["generation"], "after": new["generation"]}
        print()
        for what, text in texts.items():
            # A model that has learnt quizzes goes on with the next question.
            print(f"{what:10} {' '.join(before_next_question(text).split())}")
    # A target of other data than the run's is not shown beside it.
    target = [] if corpus.forget_alone else [corpus.target]
    folders = [folder / name for name in (*target, corpus.retain_result, corpus.run)]
    picture = unlearned.path / "trajectory.png"
    try:
        for each in trajectory(read_report(folders)):
            write_png(picture, each)
            print(f"\nForget Quality against Model Utility by epoch: {picture}")
    except ImportError:
        print("\nFor a plot of the trajectory: pip install 'dipo-pl[plots]', and run the demo again")
    print(
        f"For a report as a page: dipo-pl report {' '.join(map(str, folders))} --output {folder / 'report'}"
    )
    print(f"All that the run left: {unlearned.path}    Curves: tensorboard --logdir {folder}")
    print(f"Took {seconds:.0f} s")


def _generations(run: RunFolder, step: int, evaluation_set: str) -> list[dict[str, Any]]:
    result = json.loads(run.evaluation_file(step).read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = result["sets"][evaluation_set]["rows"]
    return rows


def _number(value: float) -> str:
    return f"{value:.1e}" if 0 < value < 0.001 else f"{value:.3f}"
