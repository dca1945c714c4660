"""FictitiousPeople: a data module of invented people's personal data, and of facts that a pretrained model knows anyway.

The rows are in people/, whose NOTICE.md names their source and license.
"""

from pathlib import Path

from dipo_pl.data_modules.forget_retain import ForgetRetain
from dipo_pl.data_modules.row_files import read_rows
from dipo_pl.evaluation_set import EvaluationSet, RowSets

FOLDER = Path(__file__).with_name("people")


class FictitiousPeople(ForgetRetain):
    """Data module of four facts each about 14 people: 2 to forget, 8 to retain, 4 that no model sees.

    Birth date, number, telephone and address of people who were invented for LUME (arXiv:2502.15097), asked in its words and
    answered in sentences. Evaluation sets: `forget`, `retain`, `holdout`, and `world_facts`, questions of general knowledge
    that training does not teach and that SmolLM2-135M-Instruct answers correctly.

    Args:
        options: arguments of ForgetRetain.
    """

    def read(self) -> RowSets:
        """Read the four files."""
        names = ("forget", "retain", "holdout", "world_facts")
        rows = {name: read_rows(FOLDER / f"{name}.jsonl") for name in names}
        sets = [EvaluationSet(name, each) for name, each in rows.items()]
        return RowSets(rows["forget"], rows["retain"], sets)
