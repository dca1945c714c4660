"""MUSE: a data module of news articles or novels, a part of which is to be forgotten."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn

from dipo_pl.data_modules.blocked_texts import BlockedTexts, TextCorpus
from dipo_pl.data_modules.record_files import Placed, load_split, parse_json
from dipo_pl.data_modules.row_files import text_at
from dipo_pl.errors import InputError
from dipo_pl.paths import expanded
from dipo_pl.rows import Row
from dipo_pl.storage.text import read_text

FOLDS = 4
EXAMPLES = 10

# Names that the files had before they were named as on the hub.
FORMER_NAMES = {"retain": "retain2", "retain_qa": "retain2_qa", "retain_qa_icl": "retain2_qa_icl"}


class MUSE(BlockedTexts):
    """Data module of the MUSE benchmark (Shi et al. 2024, arXiv:2407.06460), News or Books.

    News has two kinds of folds as forget sets: each of `scal_1` to `scal_4` contains the one before it, and `sust_1` to
    `sust_4` are disjoint; the first of both is `forget` itself. The texts, passages and questions that are measured are
    about `forget`, whichever set is forgotten. The retain set is `retain1`; `retain2`, which the questions for utility
    are about, is not used in unlearning.

    Args:
        path: `muse-bench/MUSE-News` or `muse-bench/MUSE-Books` on the hub, a copy of either, or the folder of one corpus
            in the benchmark's own repository (data/news or data/books, with the folders raw, verbmem, knowmem, privleak,
            scal and sust): a .json file is a list of texts or records; a .txt file, which is read if there is no .json
            file of its name, is one document, which gives the same blocks.
        corpus: News or Books; null takes it from the name of `path`.
        forget: `forget`, a fold of News (`scal_1` to `scal_4`, `sust_1` to `sust_4`), or a list of these.
        options: arguments of BlockedTexts.
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
        name = found[1].title() if found else corpus
        if name is None:
            raise InputError(
                f"data.corpus must be News or Books where data.path does not say it (got null, {path!r})"
            )
        if corpus not in (None, name):
            raise InputError(f"data.corpus must be {name}, as in data.path {path!r}, or null (got {corpus})")
        self.path = expanded(path)
        self.corpus_name = name
        self.forget = forget

    @property
    def settings(self) -> dict[str, Any]:
        """The maximum length of measured texts, and the corpus."""
        return super().settings | {"corpus": f"MUSE-{self.corpus_name}"}

    def named_forget(self, names: str | Sequence[str]) -> Sequence[Row]:
        """Return the rows of the forget sets; of growing sets that are one text each, only the largest."""
        rows = super().named_forget(names)
        if isinstance(names, str) or len(rows) > len(names):
            return rows
        return [row for row in rows if not any(row.answer in each.answer for each in rows if each is not row)]

    def corpus(self) -> TextCorpus:
        """Read the corpus."""
        sets = ("forget", "retain")
        return TextCorpus(
            forget=self.named_forget(self.forget),
            retain=self._read_texts("raw", "retain1"),
            seen=self._read_texts("raw", "retain2"),
            texts={name: self._read_texts("privleak", name) for name in (*sets, "holdout")},
            verbatim=self._read_pairs("verbmem", "forget", "prompt", "gt"),
            questions={name: self._read_pairs("knowmem", f"{name}_qa") for name in sets},
            examples={name: self._read_examples(f"{name}_qa_icl") for name in sets},
        )

    def read_forget(self, name: str) -> Sequence[Row]:
        """Read `forget` or a fold."""
        fold = re.fullmatch(rf"(scal|sust)_([1-{FOLDS}])", name)
        if fold and self.corpus_name == "News":
            return self._read_texts(fold[1], f"forget_{fold[2]}")
        if name != "forget":
            folds = f", scal_1 to scal_{FOLDS}, sust_1 to sust_{FOLDS}" if self.corpus_name == "News" else ""
            raise InputError(
                f"data.forget and data.requests must name forget sets of MUSE-{self.corpus_name}: forget{folds} "
                f"(got {name!r})"
            )
        return self._read_texts("raw", "forget")

    def _read_texts(self, subset: str, split: str) -> list[Row]:
        records = self._read_records(subset, split)
        return [Row((), text_at(record, "text", where), where=where) for where, record in records]

    def _read_pairs(
        self, subset: str, split: str, question: str = "question", answer: str = "answer"
    ) -> list[Row]:
        return [
            Row((("user", text_at(record, question, where)),), text_at(record, answer, where), where=where)
            for where, record in self._read_records(subset, split)
        ]

    def _read_examples(self, split: str) -> list[tuple[str, str]]:
        rows = self._read_pairs("knowmem", split)
        if len(rows) != EXAMPLES:
            rank_zero_warn(
                f"{self.path} has {len(rows)} answered examples in {split}, and MUSE has {EXAMPLES}: knowledge metrics are "
                "not comparable with the published ones"
            )
        return [(row.question, row.answer) for row in rows]

    def _read_records(self, subset: str, split: str) -> Iterable[Placed]:
        folder = Path(self.path)
        # A copy of the hub's repository is loaded as from the hub.
        if folder.is_dir() and not any(folder.glob("*/*.parquet")):
            return _from_folder(folder / subset, split)
        place = "{path} {configuration}/{split}[{row}]"
        return load_split(self.path, subset, split, f"MUSE's {subset}/{split}", place)


def _from_folder(folder: Path, split: str) -> list[Placed]:
    names = [split, FORMER_NAMES.get(split, split)]
    files = [folder / f"{name}{kind}" for name in names for kind in (".json", ".txt")]
    file = next((each for each in files if each.is_file()), None)
    if file is None:
        raise InputError(
            f"no file {files[0]} or {files[1].name}: data.path must be the folder of one corpus of MUSE, with the folders "
            "raw, verbmem, knowmem and privleak, and for News scal and sust"
        )
    try:
        text = read_text(file)
    except OSError as error:
        raise InputError(f"cannot read {file}: {error}") from None
    # A .txt file is one document: an empty line may end a paragraph or an article.
    records = parse_json(text, str(file)) if file.suffix == ".json" else [text]
    if not isinstance(records, list) or not records:
        raise InputError(
            f"{file} must be a JSON list of at least one text or record (got {str(records)[:60]})"
        )
    found = ({"text": each} if isinstance(each, str) else each for each in records)
    return [(f"{file}[{index}]", record) for index, record in enumerate(found)]
