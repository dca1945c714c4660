"""Values of `trainer.strategy` that a run can use, and one line for those that it cannot."""

from typing import Any

from dipo_pl.errors import InputError


def supported_strategy(strategy: Any) -> Any:
    """Return the strategy to run with: `fsdp` is FSDP2, on any accelerator; others stay as they are.

    Args:
        strategy: name, or class_path and init_args.

    Raises:
        InputError: a run would go wrong with this strategy.
    """
    if isinstance(strategy, str) and strategy.startswith("{"):
        raise InputError(
            f"trainer.strategy {strategy} is not a known strategy, or has an argument or value that the strategy does not "
            "accept: see --help, or give the class as trainer.strategy and each argument as a key below it"
        )
    named = (
        strategy if isinstance(strategy, str) else getattr(strategy, "class_path", type(strategy).__name__)
    )
    kind = named.lower()
    if "deepspeed" in kind:
        raise InputError(
            f"trainer.strategy {named} is not supported: set trainer.strategy fsdp2, which shards weights, gradients and "
            "optimizer states"
        )
    ours = kind in ("fsdp", "fsdp2") or kind.endswith(".fsdp2strategy")
    if ("fsdp" in kind and not ours) or "modelparallel" in kind:
        raise InputError(
            f"trainer.strategy {named} is not supported (it cannot consolidate checkpoints): set trainer.strategy fsdp2, "
            "which shards weights, gradients and optimizer states"
        )
    # Lightning takes the name `fsdp` on GPUs alone.
    return "fsdp2" if named == "fsdp" else strategy
