"""Measurements of a GPU in 12 minutes: `python tests/benchmarks/on_gpu.py`, or `make bench-gpu`.

Llamas of 1B and 8B with random weights that are made on the device, bfloat16. Every case has a process and a time limit
of its own, the most important ones first, and is written to the results as soon as it ends; what no time is left for is
left out. As in `make bench`, a case must give the loss and the gradient of its plain counterpart.

Cases of this package that train adapters are held against two goals: 45 % of the GPU's peak FLOPs, counted as `Size.flops`
does (without activations that are computed again, and without a reference's forward pass), and 40 GB for all that a step
holds, weights included.

`--smoke` takes the same ways on a CPU at sizes that cost nothing, where the goals say nothing.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from cases import CASES, PLAIN_GRADDIFF, PLAIN_LORA, Ours
from floor import Floor
from processes import in_time
from results import disagreements, print_table, table
from sizes import ON_GPU, Size
from worker import Inspection, inspect, seconds

UTILIZATION, GIGABYTES = 0.45, 40.0
LORA = (f"{PLAIN_LORA}, none", "DiPO, LoRA, StoredStates", "DiPO, LoRA, AdapterOff")
MORE_LORA = (f"{PLAIN_LORA}, chunked, none", "GradientAscent + CE, LoRA, none")
ALL_WEIGHTS = (
    f"{PLAIN_GRADDIFF}, none", "DiPO, StoredStates", f"{PLAIN_GRADDIFF}, chunked, none", "GradientAscent + CE, none",
    "NPO + CE, StoredStates", "plain NPO, second model", "DPO + CE, StoredStates", "KTO + CE, StoredStates",
)  # fmt: skip
# The most important first. Without checkpointing, few rows of an 8B model fit.
PLAN: Sequence[tuple[Size, Sequence[str]]] = (
    (replace(ON_GPU["8B"], model="8B, LoRA, activations kept", rows=3, checkpointing=False), LORA),
    (replace(ON_GPU["1B"], model="1B, LoRA", lora=True), LORA + MORE_LORA),
    (ON_GPU["1B"], ALL_WEIGHTS),
    (ON_GPU["8B"], LORA[:2]),
)


@dataclass
class Budget:
    """Seconds until a moment, and at most so many for each case."""

    end: float
    limit: float

    @property
    def left(self) -> float:
        return min(self.limit, self.end - time.monotonic())


def measured(
    key: str, floor: Floor, size: Size, threads: int, steps: int
) -> tuple[Inspection, list[float], list[float]]:
    """What `inspect` sees, and the seconds of steps and of their floor. Runs in a fresh process."""
    seen = inspect(key, size, threads)
    taken = [seconds(each, size, threads, warmup=2, steps=steps, clock="wall") for each in (key, floor)]
    return seen, taken[0], taken[1]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make bench-gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on a CPU")
    parser.add_argument("--cases", nargs="+", default=[""], help="parts of the names of those to run")
    parser.add_argument("--seconds", type=float, default=660.0, help="of all cases together")
    parser.add_argument("--limit", type=float, default=90.0, help="seconds of a case")
    parser.add_argument("--steps", type=int, default=5, help="of a case that are timed")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument(
        "--peak-tflops", type=float, default=989.0, help="the GPU's (H100, H200: 989 in bf16)"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/bench/gpu.json"))
    options = parser.parse_args()
    options.clock, options.rounds = "wall", 1
    if not options.smoke and not torch.cuda.is_available():
        raise SystemExit(
            "there is no GPU that PyTorch can use: run this on a machine with one, or give --smoke"
        )
    plan = [
        (replace(size.tiny(), device="cpu") if options.smoke else size, chosen)
        for size, keys in PLAN
        if (chosen := [key for key in keys if any(part in key for part in options.cases)])
    ]
    budget = Budget(time.monotonic() + options.seconds, options.limit)
    results: list[dict[str, Any]] = []
    wrong: list[str] = []
    for size, keys in plan:
        rows, said = compared(size, keys, budget, options, results)
        results += rows
        wrong += said
        print_table(rows, size, options)
        print(*(line for row in rows if (line := goals(row, size))), sep="\n", flush=True)
    print(f"\n{options.output}")
    wrong += [
        f"{row['case']}, {row['reference']}, {row['model']}: {row['left_out']}"
        for row in results
        if row["left_out"]
    ]
    print(*wrong, sep="\n", file=sys.stderr)
    return 1 if wrong else 0


def compared(
    size: Size, keys: Sequence[str], budget: Budget, options: argparse.Namespace, before: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The results of some cases at a size, written with those `before` after each case; and what disagrees."""
    cases = [CASES[key] for key in keys]
    seen: dict[str, Inspection] = {}
    medians: dict[str, float] = {}
    left_out: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    for number, case in enumerate(cases, start=1):
        limit, start = budget.left, time.monotonic()
        try:
            if limit < 1:
                raise TimeoutError("no time was left")
            seen[case.key], steps, floors = in_time(
                limit, measured, case.key, case.floor, size, options.threads, options.steps
            )
            medians |= {case.key: statistics.median(steps), case.floor.key: statistics.median(floors)}
        except EOFError:
            left_out[case.key] = "its process was killed: out of memory?"
        except Exception as error:
            left_out[case.key] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        print(f"{size.model}: {case.key}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        rows = table(cases[:number], seen, medians, left_out, size, options)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(before + rows, indent=2) + "\n")
    return rows, disagreements(seen, size)


def goals(row: dict[str, Any], size: Size) -> str:
    """A line for a case that has goals."""
    if not size.lora or row["left_out"] or not isinstance(CASES[f"{row['case']}, {row['reference']}"], Ours):
        return ""
    held = row["step_mib"] * 2**20 / 1e9
    memory = f"{held:.1f} GB of {GIGABYTES:.0f}, {'met' if held <= GIGABYTES else 'not met'}"
    share = row.get("flops_utilisation")
    if share is None:
        return f"goals of {row['case']}, {row['reference']}: {memory}"
    speed = f"{share:.0%} of peak FLOPs of {UTILIZATION:.0%}, {'met' if share >= UTILIZATION else 'not met'}"
    return f"goals of {row['case']}, {row['reference']}: {speed}; {memory}"


if __name__ == "__main__":
    raise SystemExit(main())
