"""Time and memory of a training step, side by side: `python tests/benchmarks`, or `make bench`.

Every measurement is made in a process of its own. One a case looks at memory and values; then, round after
round, cases take turns in taking a step to warm up and some that are timed, so that a machine that slows
down slows them all.

    seconds    median over all steps of all rounds: forward, backward, AdamW
    MiB        greatest memory of a step, less policy weights and moments; a reference copy and gradients
               count. On a CPU the peak resident set (VmHWM, reset by /proc/self/clear_refs), malloc being
               told to keep nothing that is freed; on a GPU the allocator's
    ratios     of medians, to each plain case of the same size
    floor      multiple of the time of the step's matrix products alone, run among the cases: the decoder's on all
               tokens, the head's on answer tokens, two thirds of them where LoRA freezes the weights; those of
               attention, of a reference and of adapters are not in it

Ours must give the loss of its plain counterpart and a gradient of the same norm, else the size is not written
and it fails.
"""

import argparse
import json
import os
import re
import signal
import statistics
import sys
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import by_part
import evaluation
import torch
from cases import CASES, Case
from floor import Floor
from processes import in_process
from results import disagreements, print_table, table, title
from sizes import ON_GPU, SMALL, SMOLLM2, Size
from worker import Inspection, inspect, profile, seconds


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cases",
        nargs="+",
        default=[""],
        help="parts of the names of those to run; compiled ones, which need a C++ compiler and minutes, only if named",
    )
    parser.add_argument("--vocabulary", nargs="+", type=int, default=[32_000, 128_256], help="on a CPU")
    parser.add_argument("--smollm2", action="store_true", help="the shapes of SmolLM2-135M instead, on a CPU")
    parser.add_argument("--time", nargs="+", type=int, default=[96, 256], help="tokens of a row, on a CPU")
    parser.add_argument(
        "--gpu", nargs="*", choices=list(ON_GPU), default=list(ON_GPU), help="sizes with CUDA"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1, help="steps of a process that do not count")
    parser.add_argument("--steps", type=int, default=2, help="steps of a process that count")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--clock",
        choices=["wall", "processor"],
        default="wall",
        help="processor: time of all threads, for a machine that is not idle, with one thread",
    )
    parser.add_argument(
        "--peak-tflops", type=float, default=989.0, help="the GPU's (H100, H200: 989 in bf16)"
    )
    parser.add_argument(
        "--only", choices=["time", "memory"], help="time: losses and gradients are not compared either"
    )
    parser.add_argument("--quick", action="store_true", help="one round of the first size")
    parser.add_argument(
        "--evaluation", action="store_true", help="an evaluation instead of a step: see evaluation.py"
    )
    parser.add_argument("--rows", type=int, help="of an evaluation (192), or of each set (40) with --model")
    parser.add_argument(
        "--model",
        type=Path,
        metavar="FOLDER",
        help="a pretrained model for an evaluation by part: see by_part.py",
    )
    parser.add_argument(
        "--precision", default="32-true", help="trainer.precision of an evaluation with --model"
    )
    parser.add_argument("--profile", metavar="CASE", help="print a case's slowest operators instead")
    parser.add_argument("--output", type=Path, default=Path("runs/bench/results.json"))
    return parser.parse_args()


def main() -> int:
    options = arguments()
    # The process that is measured ends before this one does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if options.evaluation:
        return evaluation.main(options) if options.model is None else by_part.main(options)
    if (load := os.getloadavg()[0]) > 0.5:
        print(f"the machine is not idle (load {load:.1f}): wall times will be wrong", file=sys.stderr)
    sizes = [
        replace(SMALL, vocabulary=vocabulary, time=time)
        for vocabulary in options.vocabulary
        for time in options.time
    ]
    if options.smollm2:
        sizes = [SMOLLM2]
    if torch.cuda.is_available():
        sizes += [ON_GPU[name] for name in options.gpu]
    if options.profile:
        key = chosen([options.profile])[0].key
        print(f"{key}: {title(sizes[0])}\n{profile(key, sizes[0], options.threads)}")
        return 0
    if options.quick:
        sizes, options.rounds = sizes[:1], 1
    results: list[dict[str, Any]] = []
    for size in sizes:
        cases = [case for case in chosen(options.cases) if case.lora or not size.lora]
        seen, left_out = ({}, {}) if options.only == "time" else inspections(cases, size, options)
        if wrong := disagreements(seen, size):
            print(*wrong, sep="\n", file=sys.stderr)
            return 1
        timed = [case for case in cases if case.key not in left_out]
        medians = {} if options.only == "memory" else times(timed, size, options)
        rows = table(cases, seen, medians, left_out, size, options)
        results += rows
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=2) + "\n")
        print_table(rows, size, options)
    print(f"\n{options.output}")
    return 0


def chosen(parts: list[str]) -> list[Case]:
    cases = [case for key, case in CASES.items() if any(part in key for part in parts)]
    if not any("compiled" in part for part in parts):
        cases = [case for case in cases if not case.compiled]
    if not cases:
        raise SystemExit(f"no case is named {' or '.join(parts)}; there are: {'; '.join(CASES)}")
    return cases


def inspections(
    cases: list[Case], size: Size, options: argparse.Namespace
) -> tuple[dict[str, Inspection], dict[str, str]]:
    """What was seen of each case's memory and values, and why a case is missing."""
    seen, left_out = {}, {}
    for case in cases:
        key = case.key
        free = available_memory() if size.device == "cpu" else sys.maxsize
        if case.needs(size) > free:
            left_out[key] = f"needs about {case.needs(size) >> 30} GiB, {free >> 30} are free"
            continue
        try:
            seen[key] = in_process(inspect, key, size, options.threads)
        except (BrokenProcessPool, torch.OutOfMemoryError) as error:
            left_out[key] = f"out of memory? ({type(error).__name__})"
            continue
        print(f"memory: {key}: {seen[key].peak_mib:,.0f} MiB", file=sys.stderr)
    return seen, left_out


def times(cases: list[Case], size: Size, options: argparse.Namespace) -> dict[str, float]:
    """The median of the steps of each case and of their floors."""
    turns: dict[str, str | Floor] = {case.floor.key: case.floor for case in cases}
    turns |= {case.key: case.key for case in cases}
    taken: dict[str, list[float]] = {key: [] for key in turns}
    for turn in range(options.rounds):
        for key in turns if turn % 2 == 0 else reversed(turns):
            steps = in_process(
                seconds, turns[key], size, options.threads, options.warmup, options.steps, options.clock
            )
            taken[key] += steps
            each = ", ".join(f"{step:.3f}" for step in steps)
            print(f"round {turn + 1} of {options.rounds}: {key}: {each} s", file=sys.stderr)
    return {key: statistics.median(steps) for key, steps in taken.items()}


def available_memory() -> int:
    match = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert match
    return 1024 * int(match[1])


if __name__ == "__main__":
    raise SystemExit(main())
