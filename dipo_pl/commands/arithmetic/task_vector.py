"""The command `dipo-pl task-vector`: make a model by subtracting the task vector (B - A) from A."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dipo_pl.cli.command_parser import Parser
from dipo_pl.commands.arithmetic.arguments import two_models
from dipo_pl.errors import check_number

if TYPE_CHECKING:
    from torch import Tensor

DESCRIPTION = """\
Write the model W = W_target - scale (W_reinforced - W_target). The reinforced model is the target trained further on
the forget rows (`dipo-pl fit --config ... --config reinforce.yaml`). Task arithmetic, arXiv:2212.04089; a baseline of
MUSE, arXiv:2407.06460, whose scripts train for 10 epochs and use scale 5. Evaluate the model with
`dipo-pl validate --config ... --model.policy.path FOLDER`."""


def task_vector(arguments: Sequence[str], debug: bool = False) -> int:
    """Subtract a task vector; return the exit code."""
    given = parser().parse_args(arguments)
    check_number("--scale", given.scale)
    # torch takes seconds to import.
    from dipo_pl.commands.arithmetic.combination import combine

    def rule(target: "Tensor", reinforced: "Tensor") -> "Tensor":
        return negated(target, reinforced, given.scale)

    models = {"target": given.target, "reinforced": given.reinforced}
    combine(models, given.output, rule, "task-vector", scale=given.scale)
    return 0


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    made = two_models("task-vector", DESCRIPTION, "target", "reinforced")
    made.add_argument("--scale", type=float, default=1.0, help="factor of the task vector (default: 1)")
    return made


def negated(target: "Tensor", reinforced: "Tensor", scale: float) -> "Tensor":
    """Return W_target - scale (W_reinforced - W_target) of two tensors of one shape and dtype.

    Source: Ilharco et al., Editing Models with Task Arithmetic, arXiv:2212.04089, section 3 (negation), with the
    target in place of the pre-trained model, as in MUSE, arXiv:2407.06460.
    """
    # The sum would turn -0 into 0.
    return target if scale == 0 else target - scale * (reinforced - target)
