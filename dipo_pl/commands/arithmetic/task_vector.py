"""The command `dipo-pl task-vector`: make a model by subtracting the task vector (B - A) from A."""

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING

from dipo_pl.cli.command_parser import Parser
from dipo_pl.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

DESCRIPTION = """\
Makes a model folder of two: W = W_target - scale (W_reinforced - W_target), where the reinforced model is the
target trained further on the forget rows (`dipo-pl fit --config ... --config reinforce.yaml`). Task arithmetic,
arXiv:2212.04089; a baseline of MUSE, arXiv:2407.06460, whose scripts train for 10 epochs and take scale 5. Measure
the result with `dipo-pl validate --config ... --model.policy.path FOLDER`."""


def task_vector(arguments: Sequence[str], debug: bool = False) -> int:
    """Returns 0, 2 where what was given is wrong, 1 where something else failed."""
    given = parser().parse_args(arguments)
    if not isfinite(given.scale):
        raise InputError(f"--scale must be a finite number, got {given.scale}")
    from dipo_pl.commands.arithmetic.combination import combine

    combine(
        {"target": given.target, "reinforced": given.reinforced},
        given.output,
        lambda target, reinforced: negated(target, reinforced, given.scale),
        "task-vector",
        scale=given.scale,
    )
    return 0


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    made = Parser("task-vector", DESCRIPTION)
    made.add_argument("target", metavar="TARGET", help="model folder, or the folder of a finished run")
    made.add_argument("reinforced", metavar="REINFORCED", help="the same, of the target trained further")
    made.add_argument("--output", required=True, metavar="FOLDER", help="a new folder for the model")
    made.add_argument("--scale", type=float, default=1.0, help="of the task vector; 1 by default")
    return made


def negated(target: "Tensor", reinforced: "Tensor", scale: float) -> "Tensor":
    """W_target - scale (W_reinforced - W_target).

    Source: Ilharco et al., Editing Models with Task Arithmetic, arXiv:2212.04089, section 3 (negation), with the
    target in the place of the pre-trained model, as in MUSE, arXiv:2407.06460.

    Args:
        target, reinforced: of any one shape.
    """
    # The sum would turn -0 into 0.
    return target if scale == 0 else target - scale * (reinforced - target)
