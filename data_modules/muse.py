"""MUSE: news articles, or novels, of which a part is to be forgotten."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn

from dipo_pl.data_modules.blocked_texts import BlockedTexts
from dipo_pl.data_modules.hub import load_split
from dipo_pl.data_modules.row_files import text_at
from dipo_pl.data_modules.text_corpus import TextCorpus
from dipo_pl.errors import InputError
from dipo_pl.rows import Row

FOLDS = 4
EXAMPLES = 10

# Names that the files had before they were called as on the hub.
FORMER_NAMES = {"retain": "retain2", "retain_qa": "retain2_qa", "retain_qa_icl": "retain2_qa_icl"}

# A record of a set of rows, and where it stands.
Record = tuple[str, Mapping[str, Any]]


class MUSE(BlockedTexts):
    """The MUSE benchmark (Shi et al. 2024, arXiv:2407.06460), News or Books.

    Of News, `scal_1` to `scal_4` are forget sets that hold one another, and `sust_1` to `sust_4` such as share
    nothing; the first of either is `forget` itself. Texts, passages and questions that are measured are about `forget`,
    whatever is forgotten. What is retained is `retain1`; `retain2`, which the questions for utility are about, is not
    shown to unlearning.

    Args:
        path: `muse-bench/MUSE-News` or `muse-bench/MUSE-Books` on the hub, a copy of one of these, or the folder of one
            corpus as the benchmark's own repository has it (data/news or data/books, with the folders raw, verbmem,
            knowmem, privleak, scal and sust): a .json is a list of texts or records; a .txt, read where there is no
            .json of its name, is one document, which trains the same blocks.
        corpus: which of the two; null takes it from the name of `path`.
        forget: `forget`, or of News a fold (`scal_1` to `scal_4`, `sust_1` to `sust_4`), or a list of these.
        options: of the base class.
    """

    def __init__(
        self,
        path: str = "muse-bench/MUSE-News",
        corpus: Literal["News", "Books"] | None = None,
        forget: str | list[str] = "forget",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        found = re.search(r"MUSE-(News|Books)$", path.rstrip("/"), re.IGNORECASE)
        named = found[1].title() if found else corpus
        if named is None:
            raise InputError(
                f"data.corpus is null, and data.path {path!r} does not say it: give News or Books"
            )
        if corpus not in (None, named):
            raise InputError(
                f"data.corpus is {corpus}, and data.path {path!r} is {named}: give one of the two"
            )
        self.path = path
        self.corpus_name = named
        self.forget = forget

    @property
    def settings(self) -> dict[str, Any]:
        return super().settings | {"corpus": f"MUSE-{self.corpus_name}"}

    def named_forget(self, names: str | Sequence[str]) -> Sequence[Row]:
        """Of growing sets that are a text each, the greatest holds the others."""
        rows = super().named_forget(names)
        if isinstance(names, str) or len(rows) > len(names):
            return rows
        return [row for row in rows if not any(row.answer in each.answer for each in rows if each is not row)]

    def corpus(self) -> TextCorpus:
        forget = self.named_forget(self.forget)
        names = ("forget", "retain")
        return TextCorpus(
            forget=forget,
            retain=self._read_texts("raw", "retain1"),
            seen=self._read_texts("raw", "retain2"),
            texts={name: self._read_texts("privleak", name) for name in (*names, "holdout")},
            verbatim=self._read_pairs("verbmem", "forget", "prompt", "gt"),
            questions={
                name: self._read_pairs("knowmem", f"{name}_qa", "question", "answer") for name in names
            },
            examples={name: self._read_examples(f"{name}_qa_icl") for name in names},
        )

    def read_forget(self, name: str) -> Sequence[Row]:
        if name == "forget":
            return self._read_texts("raw", "forget")
        fold = re.fullmatch(rf"(scal|sust)_([1-{FOLDS}])", name)
        if self.corpus_name == "Books":
            why = "which only MUSE-News has" if fold else "which MUSE-Books does not have"
            raise InputError(
                f"data.forget or data.requests names {name!r}, {why}: MUSE-Books has forget alone"
            )
        if fold is None:
            raise InputError(
                f"data.forget or data.requests names {name!r}, which MUSE-News does not have: give forget, scal_1 to "
                f"scal_{FOLDS}, sust_1 to sust_{FOLDS}, or a list of these"
            )
        return self._read_texts(fold[1], f"forget_{fold[2]}")

    def _read_texts(self, subset: str, split: str) -> list[Row]:
        return [
            Row((), text_at(record, "text", where)) for where, record in self._read_records(subset, split)
        ]

    def _read_pairs(self, subset: str, split: str, question: str, answer: str) -> list[Row]:
        return [
            Row((("user", text_at(record, question, where)),), text_at(record, answer, where))
            for where, record in self._read_records(subset, split)
        ]

    def _read_examples(self, split: str) -> list[tuple[str, str]]:
        rows = self._read_pairs("knowmem", split, "question", "answer")
        if len(rows) != EXAMPLES:
            rank_zero_warn(
                f"{self.path} has {len(rows)} answered questions to stand before each other one ({split}), and MUSE "
                f"{EXAMPLES}: figures of knowledge do not compare with those published"
            )
        return [(row.question, row.answer) for row in rows]

    def _read_records(self, subset: str, split: str) -> list[Record]:
        folder = Path(self.path)
        # A copy of the hub's repository is a data set like the original.
        if folder.is_dir() and not any(folder.glob("*/*.parquet")):
            return _from_folder(folder / subset, split)
        records = load_split(self.path, subset, split, f"MUSE's {subset}/{split}")
        return [(f"{self.path} {subset}/{split}[{i}]", record) for i, record in enumerate(records)]


def _from_folder(folder: Path, split: str) -> list[Record]:
    names = [split, FORMER_NAMES.get(split, split)]
    files = [folder / f"{name}{kind}" for name in names for kind in (".json", ".txt")]
    file = next((each for each in files if each.is_file()), None)
    if file is None:
        raise InputError(
            f"no file {files[0]} or {files[1].name}: data.path must be the folder of one corpus of MUSE, which has "
            "raw, verbmem, knowmem and privleak in it, and of News scal and sust"
        )
    try:
        content = file.read_text(encoding="utf-8-sig")
        # Paragraphs too have an empty line between them: where an article ends, the text does not say.
        records = json.loads(content) if file.suffix == ".json" else [content]
        json.dumps(records, ensure_ascii=False).encode()
    except (OSError, ValueError, RecursionError) as error:
        kind = "a JSON list in UTF-8" if file.suffix == ".json" else "text in UTF-8"
        raise InputError(f"cannot read {file}, which must be {kind}: {error}") from None
    if not isinstance(records, list) or not records:
        raise InputError(f"{file} must hold a list of at least one text or record, got {str(records)[:60]}")
    texts = ({"text": record} if isinstance(record, str) else record for record in records)
    return [(f"{file}[{index}]", record) for index, record in enumerate(texts)]
