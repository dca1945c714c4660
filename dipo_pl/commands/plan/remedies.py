"""Search for settings with which a run fits into a device."""

from collections.abc import Callable, Sequence

from dipo_pl.commands.plan.estimate import Plan

Settings = tuple[str, ...]


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
    policy = found.config["model"]["init_args"]["policy"]["init_args"]
    memory, batch = found.memory, data["batch_size"]
    candidates: list[Settings] = []
    if not policy["gradient_checkpointing"]:
        candidates.append(("--model.policy.gradient_checkpointing=true",))
    if memory.reference and not policy["adapter"]:
        candidates.append(("--model.reference=StoredStates",))
    if batch > 1:
        smaller: Settings = ("--data.batch_size=1",)
        if data.get("global_batch_size") is None:
            accumulated = (trainer["accumulate_grad_batches"] or 1) * batch
            smaller += (f"--trainer.accumulate_grad_batches={accumulated}",)
        candidates.append(smaller)
    if memory.evaluation + memory.overhead == memory.peak:
        candidates.append((f"--data.evaluation_tokens={max(1, data['evaluation_tokens'] // 8)}",))
    if found.machine.devices > 1 and "weights" not in found.machine.sharded:
        candidates.append(("--trainer.strategy=fsdp2",))
    if not policy["adapter"]:
        candidates.append(("--config=lora.yaml",))
    return candidates
