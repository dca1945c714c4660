"""`make variations`: the demo under several seeds, numbers of threads and sets of processor instructions.

The criterion: P(forget) goes from above 0.9 to below 0.2, Forget Quality from below 0.01 to above 0.05, and 95 % of Model
Utility is kept. One variation may miss it. The verdict, which asks for more, is told. The table is in docs/results.md.
Variations that are finished are not repeated.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

SEEDS, THREADS = range(5), (1, 2)
# Values of ATEN_CPU_CAPABILITY: no vector instructions of PyTorch's own, and AVX2.
CAPABILITIES = ("default", "avx2")
MAY_MISS = 1


class Outcome(NamedTuple):
    """What a variation ended with; the names are columns of the table."""

    instructions: str
    threads: int
    seed: int
    step: int
    forget_quality_before: float
    forget_quality: float
    p_forget_before: float
    p_forget: float
    utility_kept: float
    verdict: str
    seconds: float

    @property
    def holds(self) -> bool:
        return (
            self.forget_quality_before < 0.01
            and self.forget_quality > 0.05
            and self.p_forget_before > 0.9
            and self.p_forget < 0.2
            and self.utility_kept >= 0.95
        )


def outcome(folder: Path, instructions: str, threads: int, seed: int) -> Outcome:
    """Return what the demo in a folder ended with, after running what is missing of it."""
    log, done = folder / f"demo-{seed}.log", folder / f"demo-{seed}.seconds"
    if not done.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"ATEN_CPU_CAPABILITY": instructions, "OMP_NUM_THREADS": str(threads)}
        words = [sys.executable, "-m", "dipo_pl", "demo", "--seed", str(seed), "--output_dir", str(folder)]
        started = time.monotonic()
        with log.open("ab") as output:
            subprocess.run(words, env=os.environ | settings, stdout=output, stderr=output, check=True)
        done.write_text(f"{time.monotonic() - started:.0f}\n")
    run = (folder / f"seed-{seed}" if seed else folder) / "demo"
    manifest = json.loads((run / "manifest.json").read_text())
    before, *others = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    after = next(each for each in others if each["step"] == manifest["exported_step"])
    return Outcome(
        instructions, threads, seed, after["step"], before["forget_quality"], after["forget_quality"],
        before["forget_probability"], after["forget_probability"], after["model_utility"] / before["model_utility"],
        manifest["verdict"], float(done.read_text()),
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/variations"))
    given = parser.parse_args()
    found = []
    for instructions in CAPABILITIES:
        for threads in THREADS:
            for seed in SEEDS:
                folder = given.output / f"{instructions}-{threads}"
                found.append(outcome(folder, instructions, threads, seed))
                print(*found[-1], "holds" if found[-1].holds else "MISSES", flush=True)
    print(f"\n| {' | '.join(Outcome._fields)} |\n|{'---|' * len(Outcome._fields)}")
    for each in found:
        print(
            f"| {' | '.join(f'{value:.3g}' if isinstance(value, float) else str(value) for value in each)} |"
        )
    held = sum(each.holds for each in found)
    ranges = {
        name: [getattr(each, name) for each in found]
        for name in ("forget_quality", "p_forget", "utility_kept")
    }
    for name, values in ranges.items():
        print(f"{name}: {min(values):.3g} to {max(values):.3g}")
    forgotten = sum(each.verdict == "forgotten" for each in found)
    print(
        f"{held} of {len(found)} variations hold, {forgotten} end in the verdict `forgotten` ({platform.machine()})"
    )
    return 0 if held >= len(found) - MAY_MISS else 1


if __name__ == "__main__":
    raise SystemExit(main())
