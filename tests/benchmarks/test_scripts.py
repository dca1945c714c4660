"""The scripts of benchmarks at sizes that cost nothing: what they write, and that a limit ends them."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def run(script, *words):
    return subprocess.run(
        [sys.executable, str(FOLDER / script), "--smoke", "--threads", "1", "--steps", "1", *map(str, words)],
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip


def test_gpu_checks(tmp_path):
    file = tmp_path / "made" / "gpu.json"
    ended = run("on_gpu.py", "--cases", "LoRA, StoredStates", "--output", file)
    assert ended.returncode == 0, ended.stderr
    rows = json.loads(file.read_text())
    assert [row["model"] for row in rows] == ["8B, LoRA, activations kept", "1B, LoRA", "8B, LoRA"]
    for row in rows:
        assert (row["case"], row["reference"], row["dtype"]) == ("DiPO, LoRA", "StoredStates", "bfloat16")
        assert row["left_out"] is None
        assert row["seconds"] > 0
        assert row["floor_seconds"] > 0
        assert row["step_mib"] > row["peak_mib"] > 0
    assert ended.stdout.count("goals of DiPO, LoRA, StoredStates: 0.") == 3
    assert "GB of 40, met" in ended.stdout


@pytest.mark.parametrize(
    ("limit", "said"), [("--seconds", "no time was left"), ("--limit", "it did not end in 1 s")]
)
def test_gpu_checks_end_in_time(tmp_path, limit, said):
    """Cases that were not measured are named, in the results too."""
    file = tmp_path / "gpu.json"
    # A million steps end in that time on no machine.
    words = ("--limit", "1.1", "--steps", "1000000") if limit == "--limit" else ("--seconds", "0")
    ended = run("on_gpu.py", "--cases", "KTO", *words, "--output", file)
    assert ended.returncode == 1
    (row,) = json.loads(file.read_text())
    assert row["left_out"] == f"TimeoutError: {said}"
    assert f"KTO + CE, StoredStates, 1B: TimeoutError: {said}" in ended.stderr


def test_scaling(tmp_path):
    ended = run("scaling.py", "--cases", "DiPO, StoredStates", "--output", tmp_path)
    assert ended.returncode == 0, ended.stderr
    record = json.loads((tmp_path / "scaling.json").read_text())
    assert [(each["axis"], each["value"]) for each in record["points"]] == [
        ("rows", 1), ("rows", 2), ("rows", 3), ("time", 6), ("time", 12), ("time", 18), ("vocabulary", 32),
        ("vocabulary", 64), ("vocabulary", 96),
    ]  # fmt: skip
    # The point that all axes share.
    shared = [
        each for each in record["points"] if (each["axis"], each["value"]) in (("rows", 2), ("time", 12))
    ]
    assert shared[0]["seconds"] == shared[1]["seconds"]
    for line in record["lines"]:
        own = [each for each in record["points"] if each["axis"] == line["axis"]]
        values = [each[line["quantity"]] for each in own]
        fit = [line["start"] + line["slope"] * each["value"] for each in own]
        # Least squares of equidistant points: the ends give the slope, the mean lies on the line.
        assert line["slope"] * (own[2]["value"] - own[0]["value"]) == pytest.approx(
            values[2] - values[0], abs=1e-9
        )
        assert sum(fit) == pytest.approx(sum(values))
        off = max(abs(one - two) for one, two in zip(fit, values, strict=True))
        assert line["distance"] == pytest.approx(off / max(values), abs=1e-9)
    table = (tmp_path / "scaling.md").read_text().splitlines()
    assert len(table) == 2 + 3
    assert table[2].startswith("| DiPO, StoredStates | rows | ")
    units = {"s": 1, "ms": 1e-3, "µs": 1e-6, "MiB": 1, "KiB": 1 / 1024}
    shown = re.findall(r"(-?[\d.e-]+) (\w+) per (?:row|token|entry)", "\n".join(table))
    assert len(shown) == len(record["lines"])
    for (value, unit), line in zip(shown, record["lines"], strict=True):
        assert float(value) * units[unit] == pytest.approx(line["slope"], rel=6e-3)
        assert abs(float(value)) >= 1 or unit in ("µs", "KiB")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_by_part(tmp_path):
    """Parts are disjoint: they add up to the whole, which is no longer than the process."""
    words = "fit --config smoke.yaml --trainer.max_steps 2 --output_dir".split()
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, str(FOLDER / "run_by_part.py"), *words, str(tmp_path), "--name", "run"],
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    whole = time.monotonic() - began
    assert ended.returncode == 0, ended.stderr
    table = ended.stdout.rpartition("seconds of wall time\n")[2]
    seconds = {
        name.strip(): float(taken) for name, taken in (line.rsplit(maxsplit=1) for line in table.splitlines())
    }
    total, beside = seconds.pop("all"), seconds.pop("neither step nor evaluation")
    assert sum(seconds.values()) == pytest.approx(total, abs=0.05 * len(seconds))
    assert total <= whole
    assert beside == pytest.approx(total - seconds["steps"] - seconds["evaluations"], abs=0.15)
    assert seconds["imports"] > 1
    assert seconds["steps"] > 0
    assert seconds["evaluations"] > 0
    assert (tmp_path / "run" / "hf").is_dir()
