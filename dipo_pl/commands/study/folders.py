"""Run folders of a study: what other runs need of them, and what is removed when nothing needs it any more."""

from collections.abc import Collection
from pathlib import Path

from dipo_pl.commands.study.plan import Job, Plan
from dipo_pl.commands.study.results import Results
from dipo_pl.storage.files import remove


def is_there(job: Job, needed_by: Job, study: Path) -> bool:
    """Return whether the folder of a finished run has what another one needs: its model, or its evaluation."""
    (run,) = job.folders(study)
    if run.read_manifest().get("status") != "finished":
        return False
    return job not in needed_by.loads or (run.hf / "config.json").is_file()


def lacks_model(job: Job, others: Collection[Job], study: Path) -> bool:
    """Return whether a run is finished, and its exported model, which some of the others need, is gone."""
    needing = [each for each in others if job in each.loads]
    run = job.folders(study)[0]
    return (
        bool(needing)
        and run.read_manifest().get("status") == "finished"
        and not is_there(job, needing[0], study)
    )


def make_room(job: Job, study: Path) -> None:
    """Remove the folders of a run that is to be made again."""
    for each in job.folders(study):
        remove(each.path)


def drop_weights(plan: Plan, results: Results, unfinished: Collection[Job], ended: Job) -> None:
    """Remove exported models and checkpoints of a run, and of those whose models it loaded, where no other run needs them.

    Args:
        plan: the study.
        results: its records.
        unfinished: runs that are still to end.
        ended: the run that has just finished.
    """
    for job in (ended, *ended.loads):
        if results.finished(job.key) is None:
            continue
        needing = [each for each in plan.jobs if job in each.loads]
        if any(each in unfinished or results.finished(each.key) is None for each in needing):
            continue
        for run in job.folders(plan.folder):
            remove(run.checkpoints)
            remove(run.hf)
