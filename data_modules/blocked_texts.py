"""The base of data modules of MUSE's shape: plain documents, in training one stream of tokens cut into blocks."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from dipo_pl.batch import Encoded
from dipo_pl.data_modules.blocks import muse_blocks, open_unlearning_blocks
from dipo_pl.data_modules.forget_retain import ForgetRetain, Item, RowSets
from dipo_pl.data_modules.pairing import permutation
from dipo_pl.data_modules.requests import joined
from dipo_pl.data_modules.text_corpus import TextCorpus
from dipo_pl.errors import InputError
from dipo_pl.evaluation_set import EvaluationSet
from dipo_pl.prompts import Continuation, FewShot
from dipo_pl.rows import Row

# Of an answer to a question, as MUSE has it.
ANSWER_TOKENS = 32


class BlockedTexts(ForgetRetain):
    """Trains on documents in blocks, and measures texts, passages and questions.

    A subclass reads its documents in `corpus`. Rows are documents; a training sequence is a block of as many of them
    as fill it, and pairs are of blocks. Documents that the target has seen and unlearning is not shown are part of
    training where it makes a target or a retain-only model.

    Evaluation sets: `forget`, `retain` and `holdout`, plain texts; `verbatim`, passages to be continued;
    `forget_questions` and `retain_questions`, behind answered ones; `request_1`, ..., the documents of each request.

    Args:
        chunking: how documents become blocks: `muse` cuts the stream of tokens, `open_unlearning` writes each piece
            out and tokenises it again.
        max_length: tokens of a block, and of a measured text at most; with `open_unlearning` blocks have BOS besides.
        too_long: what is done with a longer measured text.
        options: of the base class.
    """

    # Of a passage that is continued: MUSE's.
    verbatim_tokens = 128

    def __init__(
        self,
        chunking: Literal["muse", "open_unlearning"] = "muse",
        max_length: int = 2048,
        too_long: Literal["error", "truncate"] = "truncate",
        **options: Any,
    ) -> None:
        super().__init__(max_length=max_length, too_long=too_long, **options)
        if max_length < 2:
            raise InputError(f"data.max_length must be at least 2, BOS and a token, got {max_length}")
        self.chunking = chunking
        self._documents: Sequence[Row] = ()

    @abstractmethod
    def corpus(self) -> TextCorpus:
        """Reads the documents, and what is asked about them.

        Raises:
            InputError: a file is missing or malformed.
        """

    def read(self) -> RowSets:
        corpus = self.corpus()
        requested = map(self.forget_set, self.requests)
        holdout = corpus.texts.get("holdout", ())
        self._documents = joined([corpus.forget, corpus.retain, corpus.seen, holdout, *requested])
        seen = corpus.seen if self.train_on in ("all", "retain") else ()
        questions = [
            EvaluationSet(
                f"{name}_questions", rows, prompt=FewShot(corpus.examples[name]), new_tokens=ANSWER_TOKENS
            )
            for name, rows in corpus.questions.items()
        ]
        measured = [
            *(_texts(name, rows) for name, rows in corpus.texts.items()),
            EvaluationSet(
                "verbatim", corpus.verbatim, prompt=Continuation(), new_tokens=self.verbatim_tokens
            ),
            *questions,
        ]
        return RowSets(corpus.forget, [*corpus.retain, *seen], [each for each in measured if each.rows])

    def request_sets(self, place: int, name: str, rows: Sequence[Row]) -> list[EvaluationSet]:
        return [_texts(f"request_{place}", rows)]

    def texts(self) -> Iterable[str]:
        """All documents, whichever of them are forgotten, retained or left out, so that tokenizers do not differ."""
        return (row.answer for row in self._documents)

    @property
    def settings(self) -> dict[str, Any]:
        return {"text_tokens": self.max_length}

    @property
    def identity(self) -> dict[str, str]:
        return super().identity | {"blocks": f"{self.chunking}, {self.max_length} tokens"}

    def _encode_training_rows(self) -> None:
        assert self.row_sets is not None
        forget = [self.row_sets.forget[place] for place in self.trained_forget_rows]
        self._training = {"forget": self._blocks(forget), "retain": self._blocks(self.row_sets.retain)}

    def _blocks(self, rows: Sequence[Row]) -> list[Encoded]:
        blocks = muse_blocks if self.chunking == "muse" else open_unlearning_blocks
        return blocks([row.answer for row in rows], self.tokenizer, self.max_length)

    def _rows(self, epoch: int) -> list[Item]:
        # Only documents that are trained on have become blocks, so all blocks are trained on.
        names = ("forget", "retain") if self.train_on == "all" else (self.train_on,)
        blocks = [(name, place) for name in names for place in range(len(self._training[name]))]
        return [(blocks[place],) for place in permutation(self.seed, "train", epoch, len(blocks))]


def _texts(name: str, rows: Sequence[Row]) -> EvaluationSet:
    return EvaluationSet(name, rows, new_tokens=0)
