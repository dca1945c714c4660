"""The devices of a run."""

from dataclasses import dataclass
from typing import Any, Self

import torch

from dipo_pl.errors import InputError, check_number

SHARDED = ("fsdp", "fsdp2", "FSDP2Strategy")
STRATEGIES = ("auto", "ddp", "SingleDeviceStrategy", "DDPStrategy", *SHARDED)
MOST_DEVICES = 10_000
PRECISIONS = {
    "32-true": ("float32", None), "32": ("float32", None),
    "64-true": ("float64", None), "64": ("float64", None),
    "bf16-true": ("bfloat16", None), "16-true": ("float16", None),
    "bf16-mixed": ("float32", "bfloat16"), "bf16": ("float32", "bfloat16"),
    "16-mixed": ("float32", "float16"), "16": ("float32", "float16"),
}  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """The devices of a run.

    Attributes:
        devices: number of devices of all nodes together.
        strategy: name of the strategy.
        sharded: whether each device holds 1 / `devices` of weights, gradients and optimizer moments.
        on_cpu: whether the run computes on CPUs.
        dtype: dtype that weights are cast to, or None.
        autocast: dtype of autocast, or None.
        sharded_checkpoints: whether each rank writes a shard of a checkpoint.
    """

    devices: int
    strategy: str
    sharded: bool
    on_cpu: bool
    dtype: str | None
    autocast: str | None
    sharded_checkpoints: bool = False

    @classmethod
    def of(cls, trainer: dict[str, Any], devices: int | None = None, nodes: int | None = None) -> Self:
        """Return the machine that `trainer` of a configuration asks for, or the one with the given numbers per node.

        Raises:
            InputError: a strategy or precision is not known, or the number of devices cannot be found out.
        """
        check_number("--devices", devices, minimum=1, maximum=MOST_DEVICES)
        check_number("--nodes", nodes, minimum=1, maximum=MOST_DEVICES)
        strategy: Any = trainer["strategy"]
        options: dict[str, Any] = {}
        if isinstance(strategy, dict):
            options = strategy.get("init_args") or {}
            strategy = strategy["class_path"].rpartition(".")[2]
        if strategy.startswith("ddp_"):
            strategy = "ddp"
        precision = str(trainer["precision"] or "32-true")
        for name, value, known in (("strategy", strategy, STRATEGIES), ("precision", precision, PRECISIONS)):
            if value not in known:
                raise InputError(
                    f"trainer.{name} must be one of {', '.join(known)}, whose memory can be planned (got {value})"
                )
        dtype, autocast = PRECISIONS[precision]
        count = _devices(trainer, strategy, devices) * (nodes or trainer["num_nodes"])
        if strategy == "SingleDeviceStrategy" and count > 1:
            raise InputError(f"trainer.strategy SingleDeviceStrategy needs one device (got {count})")
        if strategy in ("auto", "ddp", "DDPStrategy"):
            strategy = "ddp" if count > 1 else "single device"
        return cls(
            count,
            strategy,
            count > 1 and strategy in SHARDED,
            on_cpu=trainer["accelerator"] == "cpu",
            # Weights are cast for a true precision other than the default.
            dtype=None if dtype == "float32" else dtype,
            autocast=autocast,
            sharded_checkpoints=bool(options.get("sharded_checkpoints")),
        )


def _devices(trainer: dict[str, Any], strategy: str, given: int | None) -> int:
    """Return the number of devices of a node."""
    devices = trainer["devices"]
    if isinstance(devices, str) and "," in devices:
        devices = [each for each in devices.split(",") if each.strip()]
    if given or isinstance(devices, list):
        return given or len(devices)
    if str(devices).isdigit() and int(devices) > 0:
        return int(devices)
    found = 1 if trainer["accelerator"] == "cpu" else torch.cuda.device_count()
    if not found and strategy != "auto":
        raise InputError(
            f"trainer.devices is {devices} with trainer.strategy {strategy}, and this machine has no GPU to count: give "
            "--devices, the number of devices of a node"
        )
    return max(found, 1)
