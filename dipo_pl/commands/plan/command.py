"""The command `dipo-pl plan`: estimate what a run will need: memory, files, tokens, steps."""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dipo_pl.cli.command_parser import Parser
from dipo_pl.errors import InputError

if TYPE_CHECKING:
    from dipo_pl.commands.plan.machine import Machine
    from dipo_pl.commands.plan.step import Memory
    from dipo_pl.commands.plan.workload import Workload

DESCRIPTION = """\
Tells what a run will need: memory of a device, files, tokens and steps. Takes all that `dipo-pl fit` takes. No weights
are loaded: a training step is followed operation by operation on tensors that have a shape alone. Of a model on the
hub only config.json and tokenizer are needed; without the data, --tokens (and --rows) stand for it."""

EXAMPLES = """\
examples:
  dipo-pl plan --config tofu.yaml --devices 8 --memory 80
  dipo-pl plan --config tofu.yaml --config lora.yaml --tokens 256 --answer_tokens 170 --rows 400
"""

# Of a device's memory what may be planned with: the rest is for what an allocator wastes, and CUDA's own.
USABLE = 0.9
GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """What was found for one configuration."""

    title: str
    machine: "Machine"
    workload: "Workload"
    memory: "Memory"
    store: int | None

    def fits(self, memory: float) -> bool:
        """Into a device of that many GiB."""
        return self.memory.peak <= USABLE * memory * GIB


def plan(arguments: Sequence[str], debug: bool = False) -> int:
    """Returns 0, 2 where what was given is wrong, 1 where something else failed."""
    given, further = parser().parse_known_args(arguments)
    if given.memory is not None and not 0 < given.memory < math.inf:
        raise InputError(f"--memory must be a device's memory in GiB, got {given.memory}")
    for name in ("rows", "retain_rows", "answer_tokens"):
        if getattr(given, name) is not None and given.tokens is None:
            raise InputError(
                f"--{name} goes with --tokens, the length of the longest sequence: give that as well"
            )
    found = _found(given, further)
    remedies = []
    if given.memory is not None and not found.fits(given.memory):
        remedies = [(words, each) for words, each in _remedies(given, further, found)]
    if given.json:
        print(json.dumps(_record(found, given.memory, remedies), indent=2))
        return 0
    print("\n".join(_table(found)))
    if given.memory is not None:
        print("\n".join(["", *_verdict(found, given.memory, remedies)]))
    return 0


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    made = Parser("plan", DESCRIPTION, epilog=EXAMPLES)
    made.add_argument("--devices", type=int, help="of a node; else trainer.devices")
    made.add_argument("--nodes", type=int, help="else trainer.num_nodes")
    made.add_argument(
        "--memory", type=float, metavar="GIB", help="of a device: does it fit, and what would make it?"
    )
    made.add_argument("--tokens", type=int, help="of the longest sequence; the data are then not read")
    made.add_argument("--answer_tokens", type=int, help="of these; all but one by default")
    made.add_argument("--rows", type=int, help="of an epoch (the forget rows), with --tokens")
    made.add_argument("--retain_rows", type=int, help="that stored states hold as well; as many by default")
    made.add_argument("--json", action="store_true", help="bytes and counts, for programs")
    return made


def _found(given: argparse.Namespace, words: Sequence[str]) -> Plan:
    from dipo_pl.cli.run import data_module, language_model, resolved
    from dipo_pl.commands.plan.machine import Machine
    from dipo_pl.commands.plan.step import memory_of
    from dipo_pl.commands.plan.workload import Lengths, of_data, of_lengths
    from dipo_pl.references.stored_states import StoredStates

    config = resolved(["fit", *words])
    machine = Machine.of(config["trainer"], given.devices, given.nodes)
    module, data = language_model(config), data_module(config)
    if given.tokens is None:
        try:
            workload = of_data(module, data, config, machine)
        except InputError as error:
            raise InputError(f"{error}; to plan without the data, give --tokens and --rows") from error
    else:
        lengths = Lengths(given.tokens, given.rows, given.retain_rows, given.answer_tokens)
        workload = of_lengths(module, data, config, machine, lengths)
    reference: Any = getattr(module, "reference", None)
    stored = isinstance(reference, StoredStates)
    title = _title(module, config, machine)
    memory = memory_of(module, workload.shapes, machine, workload.vocabulary, config["export"]["adapter"])
    store: int | None = 0
    if stored and memory.state_bytes:
        positions = workload.store_positions
        store = None if positions is None else positions * sum(memory.state_bytes.values())
    return Plan(title, machine, workload, memory, store)


def _title(module: Any, config: dict[str, Any], machine: "Machine") -> str:
    losses = [type(each).__name__ for each in getattr(module, "losses", {}).values()]
    parts = [" of ".join([type(module).__name__, *([" + ".join(losses)] if losses else [])])]
    if getattr(module, "reference_layers", None):
        parts.append(type(module.reference).__name__)
    if module.policy.adapter is not None:
        parts.append(type(module.policy.adapter).__name__)
    if module.policy.gradient_checkpointing:
        parts.append("gradient checkpointing")
    parts.append(
        f"{machine.dtype or 'float32'}{f' under {machine.autocast} autocast' if machine.autocast else ''}"
    )
    kind = "CPU" if machine.on_cpu else "GPU"
    parts.append(f"{machine.devices} {kind}{'s' if machine.devices > 1 else ''}, {machine.strategy}")
    return f"{module.policy.source}: {', '.join(parts)}"


def _table(found: Plan) -> list[str]:
    memory, workload, shapes = found.memory, found.workload, found.workload.shapes
    sequences = [each for section in shapes.training.values() for each in section]
    largest = f"{len(sequences)} x {max(len(each.ids) for each in sequences)} tokens"
    unit, size = ("GiB", GIB) if memory.peak >= GIB else ("MiB", 2**20)

    def row(name: str, value: float | None, note: str = "") -> str:
        number = "unknown" if value is None else f"{value / size:,.2f}"
        return f"  {name:<28}{number:>12}   {note}".rstrip()

    def count(name: str, value: int | None, note: str = "") -> str:
        return f"  {name:<28}{'unknown' if value is None else f'{value:,}':>12}   {note}".rstrip()

    return [
        found.title,
        "",
        f"memory of a device, {unit}",
        row("weights", memory.weights, _share(found, "weights")),
        row("reference", memory.reference),
        row("gradients", memory.gradients, _share(found, "gradients")),
        row("optimizer's moments", memory.moments, _share(found, "moments")),
        row("activations", memory.activations, f"of {largest}"),
        row("weights cast by autocast", memory.casts),
        row(
            "logits and their gradients",
            memory.head,
            "of groups of answer positions, and the head's gradient",
        ),
        row("keys and values", memory.cache, "while answers are generated"),
        row("strategy's own", memory.overhead),
        "peaks, with all that is there at the time",
        row("forward pass and losses", memory.forward + memory.overhead),
        row("backward pass", memory.backward + memory.overhead),
        row("optimizer's step", memory.optimizer + memory.overhead),
        row(
            "measuring answers",
            memory.evaluation + memory.overhead,
            f"of {'{} x {}'.format(*shapes.evaluation)} tokens",
        ),
        row("generating answers", memory.generation + memory.overhead),
        row("greatest", memory.peak),
        f"files, {unit}",
        row("a checkpoint", memory.checkpoint, _written_by(found.machine)),
        row("exported model", memory.export),
        row("reference's states", found.store),
        "parameters",
        count(
            "trained", memory.trained, f"of these {memory.adapter:,} in adapters" if memory.adapter else ""
        ),
        count("frozen", memory.frozen),
        "the run",
        count("rows of an epoch", workload.rows),
        count("batches of an epoch", workload.batches, "each one a device"),
        count("epochs", workload.epochs),
        count("steps", workload.steps),
        count("tokens of an epoch", workload.tokens, _answers(workload)),
    ]


def _answers(workload: "Workload") -> str:
    return "" if workload.answer_tokens is None else f"of these {workload.answer_tokens:,} of answers"


def _written_by(machine: "Machine") -> str:
    if machine.sharded_checkpoints:
        return f"in {machine.devices} shares, each from a device's process"
    return "put together in the first process's memory" if "weights" in machine.sharded else ""


def _share(found: Plan, part: Any) -> str:
    return f"one of {found.machine.devices} shares" if part in found.machine.sharded else ""


def _remedies(
    given: argparse.Namespace, words: Sequence[str], found: Plan
) -> Iterator[tuple[list[str], Plan]]:
    """Settings that would make it fit: those that do so alone, else the first that do together."""
    from dipo_pl.cli.run import resolved

    config = resolved(["fit", *words])
    batch = config["data"]["init_args"]["batch_size"]
    smaller = ["--data.batch_size=1"]
    if config["data"]["init_args"].get("global_batch_size") is None:
        accumulate = (config["trainer"]["accumulate_grad_batches"] or 1) * batch
        smaller.append(f"--trainer.accumulate_grad_batches={accumulate}")
    policy = config["model"]["init_args"]["policy"]["init_args"]
    settings = [] if policy["gradient_checkpointing"] else [["--model.policy.gradient_checkpointing=true"]]
    if found.memory.reference and not policy["adapter"]:
        settings.append(["--model.reference=StoredStates"])
    if batch > 1:
        settings.append(smaller)
    if found.memory.evaluation + found.memory.overhead == found.memory.peak:
        settings.append(
            [f"--data.evaluation_tokens={max(1, config['data']['init_args']['evaluation_tokens'] // 8)}"]
        )
    if found.machine.devices > 1 and "weights" not in found.machine.sharded:
        settings.append(["--trainer.strategy=fsdp2"])
    if not policy["adapter"]:
        settings.append(["--config=lora.yaml"])
    alone = [(each, _found(given, [*words, *each])) for each in settings]
    fitting = [(each, plan) for each, plan in alone if plan.fits(given.memory)]
    if fitting:
        yield from fitting
        return
    together: list[str] = []
    for each in settings:
        together += each
        if len(together) > len(each) and (plan := _found(given, [*words, *together])).fits(given.memory):
            yield together, plan
            return


def _verdict(found: Plan, memory: float, remedies: Sequence[tuple[list[str], Plan]]) -> list[str]:
    room = f"{USABLE:.0%} of {memory:g} GiB"
    if found.fits(memory):
        return [f"fits: {found.memory.peak / GIB:,.1f} GiB of {room}"]
    lines = [f"does not fit: {found.memory.peak / GIB:,.1f} GiB into {room}"]
    if not remedies:
        return [*lines, "nor does it with all settings that save memory: take more devices"]
    lines.append("would fit with")
    return [
        *lines,
        *(f"  {' '.join(words):<76} {each.memory.peak / GIB:,.1f} GiB" for words, each in remedies),
    ]


def _record(found: Plan, memory: float | None, remedies: Sequence[tuple[list[str], Plan]]) -> dict[str, Any]:
    sizes = asdict(found.memory) | {"peak": found.memory.peak, "store": found.store}
    states = sizes.pop("state_bytes")
    record: dict[str, Any] = {
        "title": found.title,
        "machine": asdict(found.machine),
        "bytes": {name: value if value is None else round(value) for name, value in sizes.items()},
        "state_bytes": {"last" if layer is None else str(layer): size for layer, size in states.items()},
        "run": {name: value for name, value in vars(found.workload).items() if name != "shapes"},
    }
    if memory is not None:
        record |= {
            "fits": found.fits(memory),
            "would_fit": [{"with": words, "peak": round(each.memory.peak)} for words, each in remedies],
        }
    return record
