"""LUME: a data module of stories, invented people and real people, half of which are to be forgotten."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.utilities import rank_zero_info

from dipo_pl.data_modules.forget_retain import ForgetRetain
from dipo_pl.data_modules.record_files import Placed, content_of, load_split, named_file, read_records
from dipo_pl.data_modules.row_files import text_at
from dipo_pl.errors import InputError, check_count
from dipo_pl.evaluation_set import EvaluationSet, RowSets
from dipo_pl.paths import expanded
from dipo_pl.prompts import Continuation
from dipo_pl.rows import Row

TASKS = ("Task1", "Task2", "Task3")
# Kinds of rows by the end of their id, before its digit; in Task1 an id has quotation marks around its document.
KINDS = {"sc": "regurgitation", "qa": "knowledge"}
ID = re.compile(r'"?(?P<document>.+?)"?(?P<kind>sc|qa)\d')


class _Entry(NamedTuple):
    """A row of LUME, with what its id and its task say of it."""

    task: str
    document: str
    kind: str
    row: Row


class LUME(ForgetRetain):
    """Data module of LUME, the benchmark of SemEval-2025 task 4 (Ramakrishna et al. 2025, arXiv:2502.15097).

    Its documents are synthetic stories (Task1), synthetic biographies with personal data (Task2) and real biographies
    (Task3). A document has a row to be continued (its id ends in `sc1`) and questions (`qa0`, ...).

    Evaluation sets: `forget` and `retain`, all rows, for losses alone; of each task `SET_TASK_regurgitation` and
    `SET_TASK_knowledge`, such as `forget_task2_knowledge`, which answers are generated to; with `holdout_documents` the
    same of `holdout`. A folder with `mia_data/member.jsonl` and `mia_data/nonmember.jsonl`, as SemEval's release has
    them, has two sets more, `member` and `nonmember`, whole documents for membership inference.

    Args:
        path: SemEval's release on the hub, whose splits `forget_train` and `retain_train` are read, or a folder: a copy of
            that release, or one that holds `forget.jsonl` and `retain.jsonl`, as `data` in
            https://github.com/amazon-science/lume-llm-unlearning. Rows have `id`, `input`, `output` and `task`.
        tasks: Task1, Task2, Task3, or a part of these; null takes all.
        forget_documents: use only the first documents of each task in the forget set; null uses all.
        retain_documents: use only the first documents of each task in the retain set; null uses all.
        holdout_documents: take this many documents of each task after the first `retain_documents` as `holdout`: a model
            that was trained with the same `retain_documents` has not seen them.
        options: arguments of ForgetRetain; `prompt` null is the benchmark's, the input alone, which the answer follows
            after a space.
    """

    def __init__(
        self,
        path: str = "llmunlearningsemeval2025organization/semeval25-unlearning-dataset-public",
        tasks: list[str] | None = None,
        forget_documents: int | None = None,
        retain_documents: int | None = None,
        holdout_documents: int | None = None,
        **options: Any,
    ) -> None:
        options["prompt"] = options.get("prompt") or Continuation()
        super().__init__(**options)
        self.tasks = [*TASKS] if tasks is None else [*dict.fromkeys(tasks)]
        if not self.tasks or (unknown := [each for each in self.tasks if each not in TASKS]):
            got = repr(unknown[0]) if self.tasks else "[]"
            raise InputError(f"data.tasks must name tasks of LUME: {', '.join(TASKS)} (got {got})")
        check_count("data.forget_documents", forget_documents)
        check_count("data.retain_documents", retain_documents)
        check_count("data.holdout_documents", holdout_documents)
        if holdout_documents is not None and retain_documents is None:
            raise InputError(
                "data.holdout_documents needs data.retain_documents, after which they begin "
                f"(got {holdout_documents} and null)"
            )
        self.path = expanded(path)
        self.forget_documents = forget_documents
        self.retain_documents = retain_documents
        self.holdout_documents = holdout_documents

    @property
    def settings(self) -> dict[str, Any]:
        """The tasks, and what membership is measured on."""
        counts = (self.forget_documents, self.retain_documents, self.holdout_documents)
        return {
            "tasks": ", ".join(self.tasks),
            "documents of each task": ", ".join("all" if each is None else str(each) for each in counts[:2]),
            "membership": "mia_data"
            if self._membership_folder.is_dir()
            else f"{counts[2] or 'no'} holdout documents",
        }

    def read(self) -> RowSets:
        """Read both files, and the documents for membership inference where there are some."""
        retained = self._entries("retain")
        kept = self.retain_documents
        entries = {
            "forget": self._part(self._entries("forget"), "forget", 0, self.forget_documents),
            "retain": self._part(retained, "retain", 0, kept),
        }
        if self.holdout_documents is not None and kept is not None:
            entries["holdout"] = self._part(retained, "holdout", kept, self.holdout_documents)
        rows = {name: [each.row for each in some] for name, some in entries.items()}
        sets = [EvaluationSet(name, each, new_tokens=0) for name, each in rows.items()]
        sets += self._membership_sets()
        for name, some in entries.items():
            for task in self.tasks:
                for kind in KINDS.values():
                    these = [each.row for each in some if (each.task, each.kind) == (task, kind)]
                    sets.append(EvaluationSet(f"{name}_{task.lower()}_{kind}", these))
        self._say_what_the_score_lacks()
        return RowSets(rows["forget"], rows["retain"], sets)

    def _entries(self, name: str) -> list[_Entry]:
        """Return the rows of the chosen tasks, task by task."""
        placed, source = self._placed(name)
        found = [_entry(record, where) for where, record in placed]
        for task in self.tasks:
            for kind in KINDS.values():
                if not any((each.task, each.kind) == (task, kind) for each in found):
                    rest = ", ".join(dict.fromkeys(each.task for each in found)) or "none"
                    raise InputError(
                        f"{source} has no {kind} row of {task} (rows of {rest}): take it out of data.tasks, or complete it"
                    )
        return [each for task in self.tasks for each in found if each.task == task]

    def _placed(self, name: str) -> tuple[Iterable[Placed], str]:
        """Return the records of `forget` or `retain` with their places, and where they are from."""
        folder = Path(self.path)
        if not folder.is_dir():
            split = f"{name}_train"
            place = "{path} {split}, row {row}"
            return load_split(self.path, "default", split, f"LUME's {split}", place), self.path
        names = (name, f"{name}_train-00000-of-00001")
        files = [named_file(each, one) for each in (folder, folder / "data") for one in names]
        file = next((each for each in files if each.exists()), None)
        if file is None:
            raise InputError(
                f"no file {files[0]}: data.path must be a folder with LUME's forget.jsonl and retain.jsonl, or with a copy "
                f"of SemEval's release (it has {content_of(folder)})"
            )
        return read_records(file), str(file)

    def _part(self, entries: Sequence[_Entry], name: str, start: int, count: int | None) -> list[_Entry]:
        """Return the rows of `count` documents of each task, from the document `start` on."""
        chosen: set[tuple[str, str]] = set()
        for task in self.tasks:
            documents = [*dict.fromkeys(each.document for each in entries if each.task == task)][start:]
            if count is not None and count > len(documents):
                raise InputError(
                    f"data.{name}_documents must be at most {len(documents)}, the documents of {task}"
                    f"{f' after the first {start}' if start else ''} (got {count})"
                )
            chosen |= {(task, each) for each in documents[:count]}
        return [each for each in entries if (each.task, each.document) in chosen]

    @property
    def _membership_folder(self) -> Path:
        return Path(self.path) / "mia_data"

    def _membership_sets(self) -> list[EvaluationSet]:
        if not self._membership_folder.is_dir():
            return []
        sets = []
        for name in ("member", "nonmember"):
            records = read_records(named_file(self._membership_folder, name))
            rows = [Row((), text_at(record, "document", where), where=where) for where, record in records]
            sets.append(EvaluationSet(name, rows, new_tokens=0))
        return sets

    def _say_what_the_score_lacks(self) -> None:
        rates = 4 * len(self.tasks)
        lacks = [] if rates == 12 else [f"lume_task_aggregate is of {rates} rates, and the benchmark's of 12"]
        if self.forget_documents is not None or self.retain_documents is not None:
            lacks.append("only a part of the documents is used")
        if self.holdout_documents is None and not self._membership_folder.is_dir():
            lacks.append("lume_membership needs data.holdout_documents, or mia_data in data.path")
        lacks.append("MMLU is not in it, so it has no aggregate to compare with the published one")
        rank_zero_info(f"LUME's score: {'; '.join(lacks)}")


def _entry(record: Mapping[str, Any], where: str) -> _Entry:
    task, name = text_at(record, "task", where), text_at(record, "id", where)
    if task not in TASKS:
        raise InputError(f"{where}: 'task' must be {', '.join(TASKS[:-1])} or {TASKS[-1]} (got {task!r})")
    match = ID.fullmatch(name)
    if match is None:
        raise InputError(
            f"{where}: 'id' must end in sc and a digit, a text to be continued, or in qa and a digit, a question "
            f"(got {name!r})"
        )
    row = Row((("user", text_at(record, "input", where)),), text_at(record, "output", where), where=where)
    return _Entry(task, match["document"], KINDS[match["kind"]], row)
