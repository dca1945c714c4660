"""A short audit, and what one has found."""

import json
from pathlib import Path

QUICK = """\
attacks:
  - {class_path: PlainQuestion}
  - {class_path: LeakAtK, init_args: {samples: 3, k: [1, 3], max_new_tokens: 4}}
  - {class_path: Membership}
  - {class_path: LogitLens}
"""
AUDIT = ("audit", "runs/unlearned", "--against", "runs/never")
SHORT = (*AUDIT, "--config", "quick.yaml")


def figures(folder: Path) -> dict[str, object]:
    """What an audit found."""
    found: dict[str, object] = {"metrics": (folder / "metrics.jsonl").read_text()}
    for path in sorted((folder / "attacks").glob("*.json")):
        found[path.name] = json.loads(path.read_text())["value"]
    return found
