"""The command `dipo-pl demo`: train, unlearn and evaluate on made-up authors or news, offline, in minutes on a CPU."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dipo_pl.cli.command_parser import Parser
from dipo_pl.commands.headline_table import headline_table
from dipo_pl.errors import check_number
from dipo_pl.metrics.knowledge import before_next_question
from dipo_pl.report.contents import read_report
from dipo_pl.report.drawing import write_png
from dipo_pl.report.plots import trajectory
from dipo_pl.storage.run_folder import RunFolder

DESCRIPTION = """\
Train a target model and a retain-only model, make the target forget with DiPO, and print the three side by side.
Finished steps are not repeated."""


@dataclass(frozen=True)
class Corpus:
    """Data of a demo, and the description of each of its steps.

    Attributes:
        run: name of the unlearning run and of its config; those of the target have `_target` after it.
        shown_set: evaluation set whose generated answers are printed.
        own_forget_set: whether the forget set differs from the target's, so that the retain-only model is evaluated
            again on the unlearning run's data.
    """

    run: str
    target_step: str
    retain_only_step: str
    unlearning_step: str
    shown_set: str
    own_forget_set: bool = False

    @property
    def target(self) -> str:
        """Name of the target's run."""
        return f"{self.run}_target"

    @property
    def retain_only(self) -> str:
        """Name of the retain-only model's run."""
        return f"{self.target}-retain_only"

    @property
    def retain_result(self) -> str:
        """Name of the run with the evaluation of the retain-only model."""
        return f"{self.run}-retain_only" if self.own_forget_set else self.retain_only


CORPORA = {
    "authors": Corpus(
        "demo",
        "train the target model on 20 fictitious authors",
        "train the retain-only model on 18 of them, as a model that never saw the other 2",
        "make the target forget the 2 authors with DiPO",
        "forget",
    ),
    "news": Corpus(
        "demo_news",
        "train the target model on fictitious news, which includes four folds of articles",
        "train the retain-only model on all but the folds, as a model that never saw them",
        "make the target forget the first fold with DiPO",
        "forget_questions",
        own_forget_set=True,
    ),
}


def demo(arguments: Sequence[str], debug: bool = False) -> int:
    """Run the demo; return the exit code of the first step that fails, else 0."""
    given = parser().parse_args(arguments)
    folder, corpus = Path(given.output_dir), CORPORA[given.corpus]
    check_number("--seed", given.seed, minimum=0, maximum=2**32 - 1)
    # Each seed has target models of its own.
    folder = folder / f"seed-{given.seed}" if given.seed else folder
    # Loads Lightning, which takes seconds.
    from dipo_pl.cli.run import run

    steps = _steps(corpus, folder, given.seed)
    started = time.monotonic()
    for number, (description, command) in enumerate(steps, start=1):
        print(f"\n[{number}/{len(steps)}] {description}\n      dipo-pl {' '.join(command)}", flush=True)
        if code := run(command, debug):
            return code
    _show(corpus, folder)
    print(f"Duration: {time.monotonic() - started:.0f} s")
    return 0


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    made = Parser("demo", DESCRIPTION)
    corpora = "authors in the format of TOFU, or news in that of MUSE (default: authors)"
    made.add_argument("--corpus", choices=list(CORPORA), default="authors", help=corpora)
    made.add_argument("--output_dir", default="runs", help="folder of the run folders (default: runs)")
    seed = "seed of weights and batches (default: 0); the run folders of another one are in a folder seed-N"
    made.add_argument("--seed", type=int, default=0, metavar="N", help=seed)
    return made


def _steps(corpus: Corpus, folder: Path, seed: int) -> list[tuple[str, list[str]]]:
    """Return description and command of each step."""
    shared = ["--output_dir", str(folder), *(["--seed_everything", str(seed)] if seed else [])]
    fit = ["fit", *shared, "--config", f"{corpus.target}.yaml"]
    unlearning = [*shared, "--config", f"{corpus.run}.yaml"]
    path, retain_result = "--model.policy.path", "--forget_quality.retain_result"
    retain_only = [*fit, "--config", "retain_only.yaml"]
    steps = [(corpus.target_step, fit), (corpus.retain_only_step, retain_only)]
    if corpus.own_forget_set:
        evaluation = ["validate", *unlearning, "--name", corpus.retain_result, retain_result, "null"]
        evaluation += [path, str(folder / corpus.retain_only / "hf")]
        steps.append(("evaluate the retain-only model on the forget set", evaluation))
    unlearn = ["fit", *unlearning, path, str(folder / corpus.target / "hf")]
    unlearn += [retain_result, str(folder / corpus.retain_result)]
    return [*steps, (corpus.unlearning_step, unlearn)]


def _show(corpus: Corpus, folder: Path) -> None:
    unlearned = RunFolder(folder / corpus.run)
    before, after = unlearned.read_metrics()[0], unlearned.final_metrics
    # Forget Quality compares with the retain-only model, whose own value is therefore 1.
    retain_only = RunFolder(folder / corpus.retain_result).read_metrics()[-1]
    retain_only |= {"forget_quality": 1.0, "priv_leak": 0.0}
    models = {"target": before, "retain-only": retain_only, "unlearned": after}
    print(f"\n{headline_table(models)}")
    generations = (_generations(unlearned, each["step"], corpus.shown_set) for each in (before, after))
    for row, new in list(zip(*generations, strict=True))[:3]:
        texts = {"question": row["question"], "truth": row["answers"][0]}
        texts |= {"before": row["generation"], "after": new["generation"]}
        print()
        for name, text in texts.items():
            # A model trained on quizzes continues with the next question.
            print(f"{name:10} {' '.join(before_next_question(text).split())}")
    # The target of the news was evaluated on another forget set.
    target = [] if corpus.own_forget_set else [corpus.target]
    folders = [folder / name for name in (*target, corpus.retain_result, corpus.run)]
    picture = unlearned.path / "trajectory.png"
    try:
        for each in trajectory(read_report(folders)):
            write_png(picture, each)
            print(f"\nForget Quality against Model Utility by epoch: {picture}")
    except ImportError:
        print("\nFor a plot of the trajectory: pip install 'dipo-pl[plots]', and run the demo again")
    print(f"Report as a page: dipo-pl report {' '.join(map(str, folders))} --output {folder / 'report'}")
    print(f"Run folder: {unlearned.path}    Curves: tensorboard --logdir {folder}")


def _generations(run: RunFolder, step: int, evaluation_set: str) -> list[dict[str, Any]]:
    result = json.loads(run.evaluation_file(step).read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = result["sets"][evaluation_set]["rows"]
    return rows
