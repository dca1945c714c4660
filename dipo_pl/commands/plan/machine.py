"""What a run is spread over, and what of it is divided among the devices."""

from dataclasses import dataclass
from typing import Any, Literal, Self

import torch

from dipo_pl.errors import InputError

Part = Literal["weights", "gradients", "moments"]

# By the strategy's name, or its class's: what each device holds a share of.
SHARDED: dict[str, tuple[Part, ...]] = {
    "auto": (),
    "ddp": (),
    "SingleDeviceStrategy": (),
    "DDPStrategy": (),
    "fsdp": ("weights", "gradients", "moments"),
    "fsdp2": ("weights", "gradients", "moments"),
    "FSDP2Strategy": ("weights", "gradients", "moments"),
}
# Of devices in a node, or of nodes.
MOST = 10_000
PRECISIONS = {
    "32-true": ("float32", None), "32": ("float32", None),
    "64-true": ("float64", None), "64": ("float64", None),
    "bf16-true": ("bfloat16", None), "16-true": ("float16", None),
    "bf16-mixed": ("float32", "bfloat16"), "bf16": ("float32", "bfloat16"),
    "16-mixed": ("float32", "float16"), "16": ("float32", "float16"),
}  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """
    Attributes:
        devices: of all nodes together.
        strategy: its name.
        sharded: what each device holds one part in `devices` of.
        on_cpu: whether the run computes on CPUs.
        dtype: that weights are cast to, or null where they stay as they are.
        autocast: the dtype of products, where it is another than the weights'.
        sharded_checkpoints: whether each device writes its own part of them.
    """

    devices: int
    strategy: str
    sharded: tuple[Part, ...]
    on_cpu: bool
    dtype: str | None
    autocast: str | None
    sharded_checkpoints: bool = False

    @classmethod
    def of(cls, trainer: dict[str, Any], devices: int | None, nodes: int | None) -> Self:
        """The machine that a configuration's `trainer` asks for; `devices` of a node and `nodes` in place of its own.

        Raises:
            InputError: a strategy or a precision that is not known here.
        """
        for name, value in {"--devices": devices, "--nodes": nodes}.items():
            if value is not None and not 1 <= value <= MOST:
                raise InputError(f"{name} must be at least 1 and at most {MOST:,}, got {value}")
        strategy: Any = trainer["strategy"]
        options: dict[str, Any] = {}
        if isinstance(strategy, dict):
            options = strategy.get("init_args") or {}
            strategy = strategy["class_path"].rpartition(".")[2]
        if strategy.startswith("ddp_"):
            strategy = "ddp"
        if strategy not in SHARDED:
            raise InputError(
                f"trainer.strategy {strategy} is not one whose memory is known here: plan with one of "
                f"{', '.join(SHARDED)}"
            )
        precision = str(trainer["precision"] or "32-true")
        if precision not in PRECISIONS:
            raise InputError(
                f"trainer.precision {precision} is not one whose memory is known here: plan with one of "
                f"{', '.join(PRECISIONS)}"
            )
        dtype, autocast = PRECISIONS[precision]
        of_a_node = devices or _count(trainer["devices"])
        if of_a_node is None:
            # Of a machine that is not the one planned for, nothing is known.
            of_a_node = torch.cuda.device_count() if trainer["accelerator"] != "cpu" else 1
            if not of_a_node and strategy != "auto":
                raise InputError(
                    f"trainer.devices is {trainer['devices']} with trainer.strategy {strategy}, and there is no GPU here to "
                    "count: say with --devices how many a node has"
                )
        count = max(of_a_node, 1) * (nodes or trainer["num_nodes"])
        if strategy in ("auto", "ddp", "DDPStrategy"):
            strategy = "ddp" if count > 1 else "single device"
            sharded: tuple[Part, ...] = ()
        else:
            sharded = SHARDED[strategy] if count > 1 else ()
        if strategy == "SingleDeviceStrategy" and count > 1:
            raise InputError(f"trainer.strategy is SingleDeviceStrategy, and there are {count} devices")
        on_cpu = trainer["accelerator"] == "cpu"
        # Of true precisions only those that are not the default are cast to.
        in_shards = bool(options.get("sharded_checkpoints"))
        return cls(
            count, strategy, sharded, on_cpu, None if dtype == "float32" else dtype, autocast, in_shards
        )


def _count(devices: Any) -> int | None:
    """Of a node; None where it is what the node has."""
    if isinstance(devices, list):
        return len(devices)
    if isinstance(devices, str) and "," in devices:
        return len([each for each in devices.split(",") if each.strip()])
    return int(devices) if str(devices).isdigit() and int(devices) > 0 else None
