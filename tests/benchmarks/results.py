"""From measurements to results.json and the table; and whether ours computed what it should have."""

import argparse
import math
from dataclasses import asdict
from typing import Any

import torch
from cases import CASES, PLAIN_DIPO, PLAIN_GRADDIFF, PLAIN_NPO, Case, Plain
from sizes import Size
from worker import Inspection


def disagreements(seen: dict[str, Inspection], size: Size) -> list[str]:
    """Where a case does not give what its plain counterpart gives."""
    tolerance = 1e-4 if size.dtype == torch.float32 else 0.02
    plain = {CASES[key].name: each for key, each in seen.items() if isinstance(CASES[key], Plain)}
    wrong = []
    for key, ours in seen.items():
        case = CASES[key]
        if case.equals not in plain:
            continue
        theirs = plain[case.equals]
        # A loss may be the small difference of large ones.
        for quantity, absolute in (("loss", tolerance), ("gradient_norm", 0.0)):
            a, b = getattr(ours, quantity), getattr(theirs, quantity)
            if not math.isclose(a, b, rel_tol=tolerance, abs_tol=absolute):
                wrong.append(f"{key}: {quantity} {a:.6g}, and {case.equals} has {b:.6g}")
    return wrong


def table(
    cases: list[Case],
    seen: dict[str, Inspection],
    seconds: dict[str, float],
    left_out: dict[str, str],
    size: Size,
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    """An object a case, as results.json has it."""
    measured = {"time": seconds, "memory": {key: each.peak_mib for key, each in seen.items()}}
    rows = []
    for case in cases:
        key = case.key
        row: dict[str, Any] = {
            "case": case.name,
            "reference": case.reference_name,
            "model": size.model,
            "vocabulary": size.vocabulary,
            "time": size.time,
            "rows": size.rows,
            "dtype": str(size.dtype).removeprefix("torch."),
            "device": torch.cuda.get_device_name() if size.device == "cuda" else "cpu",
            "threads": options.threads,
            "clock": options.clock,
            "seconds": seconds.get(key),
            "floor_seconds": seconds.get(case.floor.key),
            "peak_mib": measured["memory"].get(key),
            "left_out": left_out.get(key),
            "ratios": {
                other.name if isinstance(other, Plain) else other.key: {
                    of: values[key] / values[other.key]
                    for of, values in measured.items()
                    if key in values and other.key in values
                }
                for other in cases
                if (isinstance(other, Plain) or other.key == case.like) and other.key not in left_out
            },
        }
        if key in seen:
            row |= {
                name: value for name, value in asdict(seen[key]).items() if name.startswith(("store", "step"))
            }
        if key in seconds and size.device == "cuda":
            available = seconds[key] * options.peak_tflops * 1e12
            row["flops_utilisation"] = size.flops(case.sets, case.lora) / available
        rows.append(row)
    return rows


def title(size: Size) -> str:
    return (
        f"{size.model}, vocabulary {size.vocabulary:,}, {size.rows} + {size.rows} rows of {size.time} tokens "
        f"({size.prompt} of them prompt), {str(size.dtype).removeprefix('torch.')}"
    )


def print_table(rows: list[dict[str, Any]], size: Size, options: argparse.Namespace) -> None:
    present = {row["case"] for row in rows if not row["left_out"]}
    columns = {
        letter: name
        for letter, name in zip("abc", (PLAIN_GRADDIFF, PLAIN_NPO, PLAIN_DIPO), strict=True)
        if name in present
    }
    print(f"\n{title(size)}, {options.threads} threads, {options.rounds} rounds of {options.steps} steps")
    print("ratios to", ", ".join(f"({letter}) {name}" for letter, name in columns.items()))
    letters = "".join(f"{f'({letter})':>6}" for letter in columns)
    width = len(letters)
    print(f"{'':69}  {'time':>{width}}  {'memory':>{width}}")
    print(f"{'case, reference':44}{'seconds':>9}{'floor':>7}{'MiB':>9}  {letters}  {letters}")
    for row in rows:
        key = f"{row['case']}, {row['reference']}"
        if row["left_out"]:
            print(f"{key:44}  left out: {row['left_out']}")
            continue
        time, memory = (
            "".join(_number(row["ratios"][name].get(of), "6.2f") for name in columns.values())
            for of in ("time", "memory")
        )
        floor = row["seconds"] and row["seconds"] / row["floor_seconds"]
        print(
            f"{key:44}{_number(row['seconds'], '9.3f')}{_number(floor, '7.2f')}{_number(row['peak_mib'], '9,.0f')}"
            f"  {time}  {memory}{_more(row)}"
        )


def _number(value: float | None, form: str) -> str:
    """Blank where it was not measured."""
    return " " * int(form.partition(".")[0].rstrip(",")) if value is None else f"{value:{form}}"


def _more(row: dict[str, Any]) -> str:
    """What few cases have."""
    like, more = CASES[f"{row['case']}, {row['reference']}"].like, []
    if like != PLAIN_GRADDIFF and like in row["ratios"]:
        ratios = ", ".join(f"{of} {ratio:.2f}" for of, ratio in row["ratios"][like].items())
        more.append(f"to {like}: {ratios}")
    if row.get("store_seconds") is not None:
        more.append(f"store: {row['store_seconds']:.1f} s, {row['store_mib']:.1f} MiB")
    if "flops_utilisation" in row:
        more.append(f"{row['flops_utilisation']:.0%} of peak FLOPs")
    return "".join(f"  {each};" for each in more).removesuffix(";")
