"""WMDP: a data module of corpora of hazardous knowledge, which is to be forgotten, and of texts to retain."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from dipo_pl.data_modules.blocked_texts import BlockedTexts, TextCorpus
from dipo_pl.data_modules.file_content import read_content
from dipo_pl.data_modules.record_files import named_file, read_records
from dipo_pl.data_modules.requests import listed, named_rows
from dipo_pl.data_modules.row_files import checked_text, text_at
from dipo_pl.errors import InputError, check_count
from dipo_pl.paths import expanded
from dipo_pl.rows import Row
from dipo_pl.storage.text import decoded


class WMDP(BlockedTexts):
    """Data module of the corpora of WMDP (Li et al. 2024, arXiv:2403.03218), read from a folder, in blocks like MUSE's.

    The corpora of biology and cybersecurity are on the hub for those who ask for them (cais/wmdp-corpora,
    cais/wmdp-bio-forget-corpus); the paper's RMU retains WikiText. What a model knows of the hazards, and of all else, is
    measured by tasks of lm-eval (lm_eval.tasks: wmdp_bio, wmdp_cyber, mmlu), not by these texts. Evaluation sets: `forget`
    and `retain`, the first data.evaluation_rows documents of each.

    Args:
        path: folder with a file for each corpus, such as bio-forget-corpus.jsonl: JSON lines, a JSON list, CSV, Parquet or
            Arrow with the column `text`, or a .txt file, which is one document. Other columns are not read.
        forget: name of a corpus to forget, or several.
        retain: name of a corpus to retain, or several.
        shortest: documents of fewer characters are left out.
        options: arguments of BlockedTexts.

    Raises:
        InputError: `shortest` is negative.
    """

    def __init__(
        self,
        path: str,
        forget: str | list[str] = "bio-forget-corpus",
        retain: str | list[str] = "wikitext",
        shortest: int = 50,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_count("data.shortest", shortest, 0)
        self.path = expanded(path)
        self.forget = forget
        self.retain = listed(retain, "data.retain")
        self.shortest = shortest

    def corpus(self) -> TextCorpus:
        """Read the corpora."""
        forget = self.named_forget(self.forget)
        retain = named_rows(self.retain, self.read_forget, "data.retain")
        return TextCorpus(
            forget=forget,
            retain=retain,
            seen=(),
            texts={"forget": forget, "retain": retain},
            verbatim=(),
            questions={},
            examples={},
        )

    def read_forget(self, name: str) -> Sequence[Row]:
        """Read the corpus of this name.

        Raises:
            InputError: there is no such corpus, or all of its documents are too short.
        """
        rows = self._documents_of(name)
        kept = [row for row in rows if len(row.answer) >= self.shortest]
        if not kept:
            raise InputError(
                f"all {len(rows)} documents of {name} in {self.path} have fewer than {self.shortest} characters: lower "
                "data.shortest"
            )
        if len(kept) < len(rows):
            rank_zero_info(
                f"{name}: {len(rows) - len(kept)} of {len(rows)} documents have fewer than {self.shortest} characters and "
                "are left out (data.shortest)"
            )
        return kept

    def _documents_of(self, name: str) -> list[Row]:
        folder = Path(self.path)
        if not folder.is_dir():
            raise InputError(f"data.path must be a folder with the corpora of WMDP (got {self.path!r})")
        text, records = folder / f"{name}.txt", named_file(folder, name)
        if text.is_file() and not records.exists():
            whole = decoded(read_content(text, "a text file"), text)
            return [Row((), checked_text(whole, "text", str(text)), where=str(text))]
        return [
            Row((), text_at(record, "text", where), where=where) for where, record in read_records(records)
        ]
