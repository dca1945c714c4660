"""What a corpus of MUSE's shape holds, wherever it comes from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dipo_pl.rows import Row


@dataclass(frozen=True)
class TextCorpus:
    """Documents to train on, and what is asked of a model that was trained on them.

    Attributes:
        forget: documents that are to be forgotten now.
        retain: documents that unlearning shows as retained.
        seen: further documents that the target was trained on, and unlearning is not shown.
        texts: `forget`, `retain` and `holdout` texts, by which members are told from others.
        verbatim: passages of forgotten documents: how one begins is the question, how it goes on the answer.
        questions: about the `forget` and the `retain` documents.
        examples: answered questions that stand before each of `questions`, by the same names.
    """

    forget: Sequence[Row]
    retain: Sequence[Row]
    seen: Sequence[Row]
    texts: Mapping[str, Sequence[Row]]
    verbatim: Sequence[Row]
    questions: Mapping[str, Sequence[Row]]
    examples: Mapping[str, Sequence[tuple[str, str]]]
