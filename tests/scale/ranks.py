"""Runs commands of `dipo-pl` one after another in a forked rank."""

import os
import resource
from pathlib import Path


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def run_all(commands: list[list[str]], rank: int) -> int:
    """Run them until one fails.

    A command may also be ["damage", FILE], by the first rank, or begin with "starve": the second rank then has no room
    for its shard, and all fail.
    """
    from dipo_pl.__main__ import main

    for arguments in commands:
        if arguments[0] == "damage":
            if rank == 0:
                flip_a_bit(Path(arguments[1]))
            continue
        starved = arguments[0] == "starve"
        if starved and rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        if (code := main(arguments[starved:])) != starved:
            return code or os.EX_SOFTWARE
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return 0
