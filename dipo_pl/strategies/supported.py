"""Strategies of Lightning's under which a run would go wrong."""

from importlib.util import find_spec
from typing import Any

from dipo_pl.errors import InputError


def refuse_strategy(strategy: Any, precision: str) -> None:
    """Says before anything is made what a strategy would do wrong.

    Args:
        strategy: its name, or class_path and init_args.

    Raises:
        InputError: it cannot be used here, or not with this precision.
    """
    if isinstance(strategy, str) and strategy.startswith("{"):
        raise InputError(
            f"trainer.strategy {strategy} names no strategy, or an argument or value that it does not take: see --help, or "
            "give the class as trainer.strategy and each argument as a key below it"
        )
    named = (
        strategy if isinstance(strategy, str) else getattr(strategy, "class_path", type(strategy).__name__)
    )
    kind = named.lower()
    ours = kind == "fsdp" or kind.endswith(("fsdp1strategy", "fsdp2", "fsdp2strategy"))
    if ("fsdp" in kind and not ours) or "modelparallel" in kind:
        raise InputError(
            f"trainer.strategy {named} leaves each device parts of the weights that are not put together here: set "
            "trainer.strategy fsdp2, which shards as much"
        )
    zero = kind in ("deepspeed_stage_2", "deepspeed_stage_3") or kind.endswith(
        ("zero2strategy", "zero3strategy")
    )
    if not ("deepspeed" in kind or zero):
        return
    if not zero:
        raise InputError(
            f"trainer.strategy {named} makes steps of other rows at the end of an epoch, and checkpoints of pickles: set "
            "deepspeed_stage_2 or deepspeed_stage_3, which do not"
        )
    if precision not in ("None", "32", "32-true"):
        raise InputError(
            f"trainer.precision {precision} has weights in 16 bits under trainer.strategy {named}, so that less than was "
            "trained would be exported: set 32-true, or trainer.strategy fsdp2"
        )
    if find_spec("deepspeed") is None:
        raise InputError(
            f"trainer.strategy is {named}, and deepspeed is not installed: pip install 'dipo-pl[deepspeed]', or set fsdp2, "
            "which needs nothing more"
        )
