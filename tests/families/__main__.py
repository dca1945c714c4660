"""`make families`: every family of models from end to end, as its test does it.

The table that it prints is in docs/reference/models.md.
"""

import sys
import tempfile
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from model_families import FAMILIES, end_to_end

PACKAGES = ("torch", "transformers", "lightning", "peft")


def main() -> None:
    """Run all families, one after another, and print the table."""
    lines = [
        "| Family | Class | With | Export, all weights | Export, LoRA merged | Evaluated again |",
        "|---|---|---|---|---|---|",
    ]
    for name, family in FAMILIES.items():
        with tempfile.TemporaryDirectory() as folder:
            found = end_to_end(name, Path(folder))
        figures = (found.exported, found.adapted, found.evaluated)
        shown = " | ".join(f"{each:.1e}" if each else "0" for each in figures)
        lines.append(f"| {name} | `{found.model}` | {family.traits} | {shown} |")
    print("\n".join(lines))
    versions = ", ".join(f"{each} {metadata.version(each)}" for each in PACKAGES)
    print(f"\nPython {sys.version.split()[0]}, {versions}, on a CPU.")


if __name__ == "__main__":
    main()
