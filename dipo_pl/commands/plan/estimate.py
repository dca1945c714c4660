"""Estimate of what a run will need, from its command line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dipo_pl.cli.run import data_module, language_model, resolved
from dipo_pl.commands.plan.machine import Machine
from dipo_pl.commands.plan.step import Memory, memory_of
from dipo_pl.commands.plan.workload import Lengths, Workload, workload_of_data, workload_of_lengths
from dipo_pl.errors import InputError
from dipo_pl.modules.base import LanguageModule
from dipo_pl.modules.unlearning import Unlearning
from dipo_pl.references.stored_states import StoredStates

GIB = 2**30
# Share of a device's memory that a run may take; CUDA and the fragments of its allocator take the rest.
USABLE = 0.9


@dataclass(frozen=True)
class Plan:
    """Estimate of the resources that a run will need.

    Attributes:
        title: model, method and devices in one line.
        config: the resolved configuration.
        machine: the devices.
        workload: batches, tokens and steps.
        memory: bytes of a device and of files.
        store: bytes of the reference's stored states; None is unknown.
    """

    title: str
    config: Mapping[str, Any]
    machine: Machine
    workload: Workload
    memory: Memory
    store: int | None

    def fits(self, memory: float) -> bool:
        """Return whether the run fits into a device with this many GiB."""
        return self.memory.peak <= USABLE * memory * GIB


def estimate(
    words: Sequence[str], devices: int | None = None, nodes: int | None = None, lengths: Lengths | None = None
) -> Plan:
    """Return what a run will need.

    Args:
        words: options of `dipo-pl fit`.
        devices: devices of a node, in place of the trainer's.
        nodes: number of nodes, in place of the trainer's.
        lengths: lengths that replace the data.

    Raises:
        InputError: an option is wrong, the data cannot be read, or the memory of the run is not known.
    """
    config = resolved(["fit", *words])
    machine = Machine.of(config["trainer"], devices, nodes)
    module, data = language_model(config), data_module(config)
    if lengths is not None:
        workload = workload_of_lengths(module, data, config, machine, lengths)
    else:
        try:
            workload = workload_of_data(module, data, config, machine)
        except InputError as error:
            raise InputError(f"{error}; to plan without the data, give --tokens and --rows") from error
    stored = isinstance(module, Unlearning) and isinstance(module.reference, StoredStates)
    title = _title(module, machine)
    memory = memory_of(module, workload.shapes, machine, workload.vocabulary, config["export"]["adapter"])
    store: int | None = 0
    if stored and memory.state_bytes:
        positions = workload.store_positions
        store = None if positions is None else positions * sum(memory.state_bytes.values())
    return Plan(title, config, machine, workload, memory, store)


def _title(module: LanguageModule, machine: Machine) -> str:
    policy, method = module.policy, type(module).__name__
    parts = []
    if isinstance(module, Unlearning):
        method += " of " + " + ".join(type(each).__name__ for each in module.losses.values())
        parts += [type(module.reference).__name__] if module.reference_layers else []
    parts += [] if policy.adapter is None else [type(policy.adapter).__name__]
    parts += ["gradient checkpointing"] if policy.gradient_checkpointing else []
    precision = (
        f"{machine.dtype or 'float32'}{f' under {machine.autocast} autocast' if machine.autocast else ''}"
    )
    kind = f"{'CPU' if machine.on_cpu else 'GPU'}{'s' if machine.devices > 1 else ''}"
    parts += [precision, f"{machine.devices} {kind}", machine.strategy]
    return f"{policy.source}: {', '.join([method, *parts])}"
