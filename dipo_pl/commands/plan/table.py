"""Output of a plan: table, verdict, and record for programs."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dipo_pl.commands.plan.estimate import GIB, USABLE, Plan, Settings


def table(plan: Plan) -> list[str]:
    """Return the lines of the table."""
    memory, workload, machine = plan.memory, plan.workload, plan.machine
    sequences = [each for section in workload.shapes.training.values() for each in section]
    rows, width = workload.shapes.evaluation
    unit, size = ("GiB", GIB) if memory.peak >= GIB else ("MiB", 2**20)

    def count(name: str, value: float | None, note: str = "", form: str = ",") -> str:
        return f"  {name:<28}{'unknown' if value is None else format(value, form):>12}   {note}".rstrip()

    def amount(name: str, value: float | None, note: str = "") -> str:
        return count(name, None if value is None else value / size, note, ",.2f")

    def peak(name: str, value: float, note: str = "") -> str:
        return amount(name, value + memory.overhead, note)

    share = f"1 of {machine.devices} shards" if machine.sharded else ""
    if machine.sharded_checkpoints:
        written = f"{machine.devices} shards, one written by each rank"
    else:
        written = "gathered in the memory of rank 0" if machine.sharded else ""
    longest = max(len(each.ids) for each in sequences)
    answers = "" if workload.answer_tokens is None else f"{workload.answer_tokens:,} in answers"
    return [
        plan.title,
        "",
        f"memory of a device, {unit}",
        amount("weights", memory.weights, share),
        amount("reference", memory.reference),
        amount("gradients", memory.gradients, share),
        amount("optimizer moments", memory.moments, share),
        amount("activations", memory.activations, f"{len(sequences)} x {longest} tokens"),
        amount("weights cast by autocast", memory.casts),
        amount(
            "logits and their gradients", memory.head, "of a group of positions, with the head's gradient"
        ),
        amount("keys and values", memory.cache, "during generation"),
        amount("overhead of the strategy", memory.overhead),
        "peaks, everything included",
        peak("forward pass and losses", memory.forward),
        peak("backward pass", memory.backward),
        peak("optimizer step", memory.optimizer),
        peak("evaluation", memory.evaluation, f"{rows} x {width} tokens"),
        peak("generation", memory.generation),
        amount("maximum", memory.peak),
        f"files, {unit}",
        amount("checkpoint", memory.checkpoint, written),
        amount("exported model", memory.export),
        amount("stored reference states", plan.store),
        "parameters",
        count("trained", memory.trained, f"{memory.adapter:,} in adapters" if memory.adapter else ""),
        count("frozen", memory.frozen),
        "run",
        count("rows per epoch", workload.rows),
        count("batches per epoch", workload.batches, "on each device"),
        count("epochs", workload.epochs),
        count("steps", workload.steps),
        count("tokens per epoch", workload.tokens, answers),
    ]


def verdict(plan: Plan, memory: float, remedies: Mapping[Settings, Plan]) -> list[str]:
    """Return whether a run fits into a device with this many GiB, and with which settings it would."""
    usable = f"{USABLE:.0%} of {memory:g} GiB"
    if plan.fits(memory):
        return [f"fits: {plan.memory.peak / GIB:,.1f} GiB of {usable}"]
    lines = [f"does not fit: {plan.memory.peak / GIB:,.1f} GiB of {usable}"]
    if not remedies:
        return [*lines, "does not fit with all settings that save memory either: use more devices"]
    fitting = (
        f"  {' '.join(words):<76} {each.memory.peak / GIB:,.1f} GiB" for words, each in remedies.items()
    )
    return [*lines, "fits with", *fitting]


def record(plan: Plan, memory: float | None, remedies: Mapping[Settings, Plan]) -> dict[str, Any]:
    """Return the plan as JSON values."""
    sizes = asdict(plan.memory) | {"peak": plan.memory.peak, "store": plan.store}
    states = sizes.pop("state_bytes")
    values: dict[str, Any] = {
        "title": plan.title,
        "machine": asdict(plan.machine),
        "bytes": {name: value if value is None else round(value) for name, value in sizes.items()},
        "state_bytes": {"last" if layer is None else str(layer): size for layer, size in states.items()},
        "run": {name: value for name, value in vars(plan.workload).items() if name != "shapes"},
    }
    if memory is not None:
        fitting = [{"with": [*words], "peak": round(each.memory.peak)} for words, each in remedies.items()]
        values |= {"fits": plan.fits(memory), "would_fit": fitting}
    return values
