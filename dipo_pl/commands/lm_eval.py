"""The command `dipo-pl lm-eval`: measure tasks of lm-eval, such as MMLU and WMDP, on a finished run's model."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from dipo_pl.cli.command_parser import Parser
from dipo_pl.commands.probes.finished_run import FinishedRun
from dipo_pl.errors import InputError
from dipo_pl.storage.files import locked, write_text
from dipo_pl.storage.run_folder import RunFolder
from dipo_pl.storage.signature import refuse_signed

FILE = "lm_eval.json"
DESCRIPTION = f"""\
Measure tasks of EleutherAI's lm-eval on the exported model of a finished run, as lm-eval's own command does. The metrics,
lm_eval_TASK_METRIC, are added to the run's metrics.jsonl, to the evaluation of the exported model, and are in its reports
from then on; what else lm-eval says (versions, numbers of documents and of solved examples, all tasks of a group) is in
RUN/{FILE}. Needs lm-eval: pip install 'dipo-pl[lm-eval]'."""

EXAMPLES = """\
examples:
  dipo-pl lm-eval runs/tofu --tasks mmlu
  dipo-pl lm-eval runs/wmdp --tasks wmdp_bio,wmdp_cyber,mmlu --batch-size 16
  dipo-pl lm-eval runs/own --tasks my_task --include-path my_tasks
"""


def lm_eval(arguments: Sequence[str], debug: bool = False) -> int:
    """Measure the tasks on each run's model, and add the metrics to the run; return 0."""
    given = parser().parse_args(arguments)
    runs = [FinishedRun.read(each) for each in given.runs]
    for run in runs:
        refuse_signed(run.path)
    # These take seconds to import.
    from dipo_pl.evaluation.lm_eval_tasks import LMEvalTasks

    tasks = LMEvalTasks(
        [name for each in given.tasks for name in each.split(",") if name],
        given.include_path,
        given.limit,
        given.num_fewshot,
        given.batch_size,
        option="-",
    )
    tasks.load()
    with ExitStack() as held:
        for run in runs:
            held.enter_context(locked(run.path))
        for run in runs:
            _measure(run, tasks)
    return 0


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    made = Parser("lm-eval", DESCRIPTION, epilog=EXAMPLES)
    made.add_argument("runs", nargs="+", metavar="RUN", help="folder of a finished run")
    tasks = (
        "tasks, groups or tags, with commas between them; repeatable (`lm-eval ls tasks` lists lm-eval's own)"
    )
    made.add_argument("--tasks", required=True, action="append", metavar="NAMES", help=tasks)
    include = "folder with tasks of your own, YAML files in lm-eval's format; they may run code"
    made.add_argument("--include-path", metavar="FOLDER", help=include)
    made.add_argument(
        "--limit", type=int, help="measure only the first documents of each task (default: all)"
    )
    fewshot = "solved examples before each question (default: the task's own number)"
    made.add_argument("--num-fewshot", type=int, help=fewshot)
    made.add_argument("--batch-size", type=int, default=8, help="sequences in a forward pass (default: 8)")
    return made


def _measure(run: FinishedRun, tasks: Any) -> None:
    from lightning.fabric import Fabric

    from dipo_pl.evaluation.lm_eval_tasks import metrics_of
    from dipo_pl.models.pretrained import Pretrained

    folder = RunFolder(run.path)
    step = folder.final_step
    if step is None:
        raise InputError(
            f"{folder.path} has {folder.lack}, to which the scores could be added: evaluate its model with dipo-pl "
            "validate, and give that run's folder"
        )
    accelerator = (run.config.get("trainer") or {}).get("accelerator") or "auto"
    # The data type is the checkpoint's, as in lm-eval's own command.
    dtype = str(Pretrained(**run.policy).configuration().dtype or "float32").removeprefix("torch.")
    source = Pretrained(**{"dtype": dtype} | run.policy)
    model = source.load().to(Fabric(accelerator=accelerator, devices=1).device)
    results = tasks.results(model, source.tokenizer())
    metrics = metrics_of(results)
    record = {"of": source.source, "weights": run.weights, "step": step, **tasks.versions, **results}
    write_text(folder.path / FILE, json.dumps(record, indent=2, default=str) + "\n")
    folder.add_to_evaluation(step, others_stay=True, **metrics)
    width = max(map(len, metrics))
    print(f"\n{run.path}, step {step}")
    print("\n".join(f"  {name:{width}}  {value:.4f}" for name, value in metrics.items()))
