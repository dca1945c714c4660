"""Memory of many rows: as Python objects and in columns, `python tests/benchmarks/rows.py [--rows N]`.

    MiB        resident set after the rows are read, or the sequences are made, less that before
    peak       greatest resident set on the way, less that before
    seconds    of the process's own time

Every measurement is made in a process of its own. A row has a question and an answer of together 170 characters, a
sequence 60 tokens.
"""

import argparse
import ctypes
import gc
import json
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas

TOKENS = 60


def record(number: int) -> dict[str, str]:
    return {
        "question": f"What does person {number} of the town of Hollow Creek do on day {number % 28 + 1} of a month?",
        "answer": f"Person {number} walks to the old mill, reads letter {number * 7919 % 1000003} and returns by dusk.",
    }


def measured(what: str, path: Path, rows: int) -> str:
    from dipo_pl.batch import Encoded
    from dipo_pl.data_modules import large_sequence, packed_sequences, stored_rows
    from dipo_pl.data_modules.row_files import read_rows

    def sequences() -> Iterator[Encoded]:
        for row in range(rows):
            # Ids are objects of their own, as those of a tokenizer.
            yield Encoded(tuple(1000 + (row * 31 + place) % 30_000 for place in range(TOKENS)), TOKENS // 2)

    if "objects" in what:
        large_sequence.FEW = stored_rows.FEW = rows
    # A few first, so that nothing is imported on the way.
    (few := path.with_name("few.jsonl")).write_text(json.dumps(record(0)))
    stored_rows.StoredRows.of(read_rows(few))
    before, start = resident(), time.process_time()
    kept = packed_sequences.packed(sequences()) if "sequences" in what else read_rows(path)
    seconds, peak = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert len(kept) == rows
    return f"{what:30} {resident() - before:7.0f} {peak - before:7.0f} {seconds:9.0f}"


def resident() -> float:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    line = next(
        each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("VmRSS")
    )
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with TemporaryDirectory() as folder:
        lines, table = Path(folder, "rows.jsonl"), Path(folder, "rows.parquet")
        with lines.open("w") as file:
            file.writelines(json.dumps(record(each)) + "\n" for each in range(rows))
        pandas.DataFrame(map(record, range(rows))).to_parquet(table)
        print(f"{rows:,} rows                       MiB    peak   seconds")
        for what, path in (
            ("JSON lines, objects", lines), ("JSON lines, columns", lines), ("Parquet, columns", table),
            ("sequences, objects", lines), ("sequences, flat arrays", lines),
        ):  # fmt: skip
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                print(pool.submit(measured, what, path, rows).result(), flush=True)


if __name__ == "__main__":
    main()
