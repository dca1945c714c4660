"""The command `dipo-pl demo-smollm2`: teach SmolLM2 about invented people, make it forget two, and read what it says."""

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dipo_pl.callbacks.pace import duration
from dipo_pl.cli.command_parser import Parser
from dipo_pl.commands.demo_answers import RELEARNED, RETAIN_ONLY, TARGET, UNLEARNED, answers
from dipo_pl.errors import InputError, check_number
from dipo_pl.storage.run_folder import RunFolder

DESCRIPTION = """\
Teach a real language model four facts each about ten invented people, make it forget two of them with DiPO, try to bring
them back by relearning, and print what it says before and after in sentences. `make pretrained` makes the model.
Finished steps are not repeated, and a step that was interrupted goes on."""


@dataclass(frozen=True)
class Step:
    """One step of the demo.

    Attributes:
        description: what it does.
        command: the words after `dipo-pl`.
        runs: names of the runs that it leaves.
        minutes: estimate for two idle cores, from the processor time of one thread of an AMD EPYC; the time left follows
            from these as shares of the whole.
    """

    description: str
    command: list[str]
    runs: tuple[str, ...]
    minutes: float


def demo_smollm2(arguments: Sequence[str], debug: bool = False) -> int:
    """Run the demo; return the exit code of the first step that fails, else 0.

    Raises:
        InputError: there is no model in the folder.
    """
    given = parser().parse_args(arguments)
    check_number("--seed", given.seed, minimum=0, maximum=2**32 - 1)
    model, folder = Path(given.model), Path(given.output_dir)
    # Each seed has models of its own.
    folder = folder / f"seed-{given.seed}" if given.seed else folder
    if not (model / "config.json").is_file():
        raise InputError(
            f"--model {given.model} has no config.json, so there is no model: make pretrained leaves SmolLM2 in "
            "pretrained/smollm2, or give the folder of another chat model"
        )
    steps = demo_steps(model, folder, given.seed)
    started, done = time.monotonic(), 0.0
    for number, step in enumerate(steps, start=1):
        rest = [each for each in steps[number - 1 :] if not _is_finished(each, folder)]
        left = _time_left(time.monotonic() - started, done, sum(each.minutes for each in rest))
        print(
            f"\n[{number}/{len(steps)}] {step.description}{left}\n      dipo-pl {shlex.join(step.command)}",
            flush=True,
        )
        done += step.minutes if step in rest else 0.0
        if code := _run(step.command, debug):
            return code
    print(f"\n{answers(folder)}")
    print(f"\nDuration: {duration(time.monotonic() - started)}")
    for title, words in _next(steps, folder).items():
        print(f"{title}: {shlex.join(words)}")
    return 0


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    made = Parser("demo-smollm2", DESCRIPTION)
    model = "folder of the model that learns and forgets (default: pretrained/smollm2)"
    made.add_argument("--model", default="pretrained/smollm2", metavar="FOLDER", help=model)
    made.add_argument("--output_dir", default="runs", help="folder of the run folders (default: runs)")
    seed = "seed of every step (default: 0); the run folders of another one are in a folder seed-N"
    made.add_argument("--seed", type=int, default=0, metavar="N", help=seed)
    return made


def demo_steps(model: Path, folder: Path, seed: int) -> list[Step]:
    """Return the steps, each of which needs what those before it leave.

    Args:
        model: folder of the model.
        folder: folder of the run folders.
        seed: of every step.
    """
    options = ["--output_dir", str(folder), "--seed_everything", str(seed)]
    learn = ["fit", "--config", f"{TARGET}.yaml"]
    base = ["--model.policy.path", str(model)]
    unlearn = [
        "fit",
        "--config",
        f"{UNLEARNED}.yaml",
        *options,
        "--model.policy.path",
        str(folder / TARGET / "hf"),
    ]
    unlearn += ["--forget_quality.retain_result", str(folder / RETAIN_ONLY)]
    relearn = [
        "relearn",
        str(folder / UNLEARNED),
        str(folder / RETAIN_ONLY),
        "--share",
        "0.5",
        "--seed",
        str(seed),
    ]
    relearn += ["--lr", "2e-5", "--steps", "10"]
    # An epoch is one step, and a checkpoint has 1.6 GB.
    relearn += ["--last_checkpoint.every_n_epochs", "5", "--last_checkpoint.previous", "false"]
    return [
        Step("teach the model ten invented people, four facts each", [*learn, *options, *base], (TARGET,), 5),
        Step(
            "teach the model eight of them: one that never saw the other two",
            [*learn, "--config", "retain_only.yaml", *options, *base],
            (RETAIN_ONLY,),
            4,
        ),
        Step("make the first model forget the two with DiPO", unlearn, (UNLEARNED,), 3),
        Step(
            "teach both models four of the eight facts again: do the others come back?", relearn, RELEARNED, 1
        ),
    ]


def _next(steps: Sequence[Step], folder: Path) -> dict[str, list[str]]:
    """Return the commands to go on with, by title."""
    runs = [str(folder / name) for step in steps for name in step.runs]
    return {
        "Report as a page": ["dipo-pl", "report", *runs, "--output", str(folder / "report")],
        "Further attacks": [
            "dipo-pl",
            "audit",
            str(folder / UNLEARNED),
            "--against",
            str(folder / RETAIN_ONLY),
        ],
        "Curves": ["tensorboard", "--logdir", str(folder)],
    }


def _run(command: Sequence[str], debug: bool) -> int:
    # These load Lightning, which takes seconds.
    from dipo_pl.cli.run import run
    from dipo_pl.commands.probes.relearn import relearn

    return relearn(command[1:], debug) if command[0] == "relearn" else run(command, debug)


def _is_finished(step: Step, folder: Path) -> bool:
    return all(RunFolder(folder / name).read_manifest().get("status") == "finished" for name in step.runs)


def _time_left(seconds: float, done: float, left: float) -> str:
    """Return the time left, from the time that the minutes of some steps took here; before that there is no telling."""
    if not left:
        return ""
    pace = seconds / done if done else 60
    return f" ({'' if done else 'on two idle cores '}about {duration(pace * left)} left)"
