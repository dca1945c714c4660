"""Runs commands of `dipo-pl` one after another in this rank: what starts a process is paid once."""

import json
import os
import resource
import sys
from pathlib import Path

from dipo_pl.__main__ import main


def damage(path: Path) -> None:
    """One bit in the middle is another one."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


rank = os.environ.get("RANK")
for arguments in json.loads(sys.argv[1]):
    expected = 0
    if arguments[0] == "damage":
        if rank == "0":
            damage(Path(arguments[1]))
        continue
    if arguments[0] == "starve":
        # The second rank has no room for its shard.
        arguments, expected = arguments[1:], 1
        if rank == "1":
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    if (code := main(arguments)) != expected:
        sys.exit(code or 70)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
