"""`dipo-pl demo`: the whole story on fictitious authors, through the same commands that a user gives."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dipo_pl.command_line import Parser, one_line_errors
from dipo_pl.report.contents import read_report
from dipo_pl.report.pictures import trajectory, write_png
from dipo_pl.run_folder import RunFolder

TARGET, RETAIN_ONLY, UNLEARNED = "demo_target", "demo_target-retain_only", "demo"


def demo(arguments: Sequence[str], debug: bool = False) -> int:
    """Makes a target and a retain-only model, unlearns with DiPO, shows what came of it.

    Returns the exit code of the first step that fails, else 0. Steps that are finished are not repeated.
    """
    return one_line_errors(lambda: _demo(arguments, debug), debug)


def _demo(arguments: Sequence[str], debug: bool) -> int:
    parser = Parser("demo", demo.__doc__.split("\n")[0] if demo.__doc__ else "")
    parser.add_argument("--output_dir", default="runs", help="folder that the three run folders are made in")
    folder = Path(parser.parse_args(arguments).output_dir)
    from dipo_pl.cli import run

    fit = ["fit", "--output_dir", str(folder)]
    steps = [
        ("a target model learns 20 fictitious authors", [*fit, "--config", "demo_target.yaml"]),
        (
            "a retain-only model learns 18 of them, to know what not knowing the other 2 looks like",
            [*fit, "--config", "demo_target.yaml", "--config", "retain_only.yaml"],
        ),
        (
            "DiPO makes the target forget the 2",
            [
                *fit,
                *("--config", "demo.yaml"),
                *("--model.policy.path", str(folder / TARGET / "hf")),
                *("--forget_quality.retain_result", str(folder / RETAIN_ONLY)),
            ],
        ),
    ]
    started = time.monotonic()
    for number, (what, command) in enumerate(steps, start=1):
        print(f"\n[{number}/{len(steps)}] {what}\n      dipo-pl {' '.join(command)}", flush=True)
        if code := run(command, debug):
            return code
    _show(folder, time.monotonic() - started)
    return 0


def _show(folder: Path, seconds: float) -> None:
    from dipo_pl.callbacks.forget_quality import HEADLINES

    runs = {name: RunFolder(folder / name) for name in (TARGET, RETAIN_ONLY, UNLEARNED)}
    evaluations = runs[UNLEARNED].read_metrics()
    before, after = evaluations[0], evaluations[-1]
    retain_only = runs[RETAIN_ONLY].read_metrics()[-1]
    # Forget Quality asks whether a model can be told from the retain-only one: of that model itself, it is 1.
    models = {"target": before, "retain-only": retain_only | {"forget_quality": 1.0}, "unlearned": after}
    print(f"\n{'':12}" + "".join(f"{title:>16}" for title in HEADLINES))
    for model, values in models.items():
        print(f"{model:12}" + "".join(f"{_number(values[key]):>16}" for key in HEADLINES.values()))
    was, became = (_generations(runs[UNLEARNED], each["step"]) for each in (before, after))
    for row, new in list(zip(was, became, strict=True))[:3]:
        print(f"\nquestion   {row['question']}\ntruth      {row['answers'][0]}")
        print(f"before     {row['generation']}\nafter      {new['generation']}")
    folders = [each.path for each in runs.values()]
    picture = runs[UNLEARNED].path / "trajectory.png"
    try:
        write_png(trajectory(read_report(folders)).pictures[0], picture)
        print(f"\nForget Quality against Model Utility by epoch: {picture}")
    except ImportError:
        print("\nFor a picture of the trajectory: pip install 'dipo-pl[plots]', and run the demo again")
    print(f"All of it as a page: dipo-pl report {' '.join(map(str, folders))} --output {folder / 'report'}")
    print(f"All that the run left: {runs[UNLEARNED].path}    Curves: tensorboard --logdir {folder}")
    print(f"Took {seconds:.0f} s")


def _generations(run: RunFolder, step: int) -> list[dict[str, Any]]:
    result = json.loads(run.evaluation_file(step).read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = result["sets"]["forget"]["rows"]
    return rows


def _number(value: float) -> str:
    return f"{value:.1e}" if 0 < value < 0.001 else f"{value:.3f}"
