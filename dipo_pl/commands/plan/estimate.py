"""Estimate of what a run will need, from its command line."""

from collections.abc import Callable, Mapping, Sequence
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

Settings = tuple[str, ...]


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
        nodes: in place of the trainer's.
        lengths: these replace the data.


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
    store = workload.store_positions if stored else 0
    store = None if store is None else store * sum(memory.state_bytes.values())
    return Plan(title, config, machine, workload, memory, store)


def remedies(found: Plan, memory: float, estimate: Callable[[Sequence[str]], Plan]) -> dict[Settings, Plan]:
    """Return the plans with settings that make a run fit, by these settings.

    Args:
        found: the plan of the run, which does not fit.
        memory: memory of a device in GiB.
        estimate: returns the plan of the run with more settings.

    Returns:
        The settings that suffice alone, else the shortest sufficient series of them, else nothing.
    """
    candidates = _candidates(found)
    plans = {settings: estimate(settings) for settings in candidates}
    fitting = {settings: plan for settings, plan in plans.items() if plan.fits(memory)}
    if fitting:
        return fitting
    for count in range(2, len(candidates) + 1):
        together = sum(candidates[:count], ())
        if (plan := estimate(together)).fits(memory):
            return {together: plan}
    return {}


def _candidates(found: Plan) -> list[Settings]:
    """Return settings that save memory, those that cost least first."""
    data, trainer = found.config["data"]["init_args"], found.config["trainer"]
    model = found.config["model"]["init_args"]
    policy = model["policy"]["init_args"]
    memory, batch = found.memory, data["batch_size"]
    smaller: Settings = ("--data.batch_size=1",)
    if data.get("global_batch_size") is None:
        smaller += (f"--trainer.accumulate_grad_batches={(trainer['accumulate_grad_batches'] or 1) * batch}",)
    fewer = f"--data.evaluation_tokens={max(1, data['evaluation_tokens'] // 8)}"
    candidates: list[tuple[object, Settings]] = [
        (not policy["gradient_checkpointing"], ("--model.policy.gradient_checkpointing=true",)),
        (memory.reference and not policy["adapter"], ("--model.reference=StoredStates",)),
        (batch > 1, smaller),
        (memory.evaluation + memory.overhead == memory.peak, (fewer,)),
        (found.machine.devices > 1 and not found.machine.sharded, ("--trainer.strategy=fsdp2",)),
        (not policy["adapter"] and not model.get("trainable"), ("--config=lora.yaml",)),
    ]
    return [settings for saves, settings in candidates if saves]


def _title(module: LanguageModule, machine: Machine) -> str:
    policy, parts = module.policy, [type(module).__name__]
    if isinstance(module, Unlearning):
        parts[0] += " of " + " + ".join(type(each).__name__ for each in module.losses.values())
        parts += [type(module.reference).__name__] if module.reference_layers else []
        parts += [type(module.step).__name__] if module.step.separate else []
    parts += [] if policy.adapter is None else [type(policy.adapter).__name__]
    parts += ["gradient checkpointing"] if policy.gradient_checkpointing else []
    autocast = f" under {machine.autocast} autocast" if machine.autocast else ""
    kind = f"{'CPU' if machine.on_cpu else 'GPU'}{'s' if machine.devices > 1 else ''}"
    parts += [f"{machine.dtype or 'float32'}{autocast}", f"{machine.devices} {kind}", machine.strategy]
    return f"{policy.source}: {', '.join(parts)}"
