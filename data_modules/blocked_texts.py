"""Base class of data modules in MUSE's form, which train on plain documents cut into blocks."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from dipo_pl.batch import Encoded
from dipo_pl.data_modules.forget_retain import ForgetRetain
from dipo_pl.data_modules.requests import joined
from dipo_pl.errors import check_count
from dipo_pl.evaluation_set import EvaluationSet, RowSets
from dipo_pl.prompts import Continuation, FewShot
from dipo_pl.rows import Row


@dataclass(frozen=True)
class TextCorpus:
    """Documents to train on, and the texts and questions that a model trained on them is measured with.

    Attributes:
        forget: documents to forget.
        retain: documents that unlearning trains on as retained.
        seen: further documents that the target model was trained on and unlearning does not use.
        texts: texts of `forget`, `retain` and `holdout`, for membership inference.
        verbatim: passages of forgotten documents; the beginning is the question, the continuation the answer.
        questions: questions about the `forget` and the `retain` documents.
        examples: answered questions that come before each of `questions`, by the same names.
    """

    forget: Sequence[Row]
    retain: Sequence[Row]
    seen: Sequence[Row]
    texts: Mapping[str, Sequence[Row]]
    verbatim: Sequence[Row]
    questions: Mapping[str, Sequence[Row]]
    examples: Mapping[str, Sequence[tuple[str, str]]]


class BlockedTexts(ForgetRetain):
    """Base class of data modules that train on documents in blocks and measure texts, passages and questions.

    A subclass reads its documents in `corpus`. Rows are documents, training sequences are blocks of consecutive
    documents, and pairs are pairs of blocks. Documents that the target model was trained on and unlearning does not use
    are trained on only if data.train_on is `all` or `retain`.

    Evaluation sets: `forget`, `retain` and `holdout`, plain texts; `verbatim`, passages to be continued;
    `forget_questions` and `retain_questions`, few-shot questions; `request_1`, ..., the documents of each request.

    Args:
        chunking: how documents become blocks: `muse` cuts the stream of tokens, `open_unlearning` decodes each chunk and
            tokenizes it again.
        max_length: length of a block in tokens, and maximum length of a measured text; `open_unlearning` blocks have
            BOS in addition.
        too_long: `truncate` cuts longer measured texts, `error` refuses them.
        options: arguments of ForgetRetain.
    """

    # Maximum length in tokens of an answer and of a continued passage, as in MUSE.
    answer_tokens = 32
    verbatim_tokens = 128

    def __init__(
        self,
        chunking: Literal["muse", "open_unlearning"] = "muse",
        max_length: int = 2048,
        too_long: Literal["error", "truncate"] = "truncate",
        **options: Any,
    ) -> None:
        super().__init__(max_length=max_length, too_long=too_long, **options)
        # BOS and a token.
        check_count("data.max_length", max_length, 2)
        self.chunking = chunking
        self._documents: Sequence[Row] = ()

    @abstractmethod
    def corpus(self) -> TextCorpus:
        """Read the documents, and the texts and questions to measure.

        Raises:
            InputError: a file is missing or malformed.
        """

    def read(self) -> RowSets:
        """Read the corpus."""
        corpus = self.corpus()
        requested = map(self.forget_set, self.requests)
        holdout = corpus.texts.get("holdout", ())
        self._documents = joined([corpus.forget, corpus.retain, corpus.seen, holdout, *requested])
        seen = corpus.seen if self.train_on in ("all", "retain") else ()
        measured = [EvaluationSet(name, rows, new_tokens=0) for name, rows in corpus.texts.items()]
        length = self.verbatim_tokens
        measured += [EvaluationSet("verbatim", corpus.verbatim, prompt=Continuation(), new_tokens=length)]
        for name, rows in corpus.questions.items():
            measured.append(self.question_set(f"{name}_questions", rows, corpus.examples[name]))
        return RowSets(corpus.forget, [*corpus.retain, *seen], [each for each in measured if each.rows])

    def question_set(
        self, name: str, rows: Sequence[Row], examples: Sequence[tuple[str, str]]
    ) -> EvaluationSet:
        """Return an evaluation set of questions that come after answered examples."""
        return EvaluationSet(name, rows, prompt=FewShot(examples), new_tokens=self.answer_tokens)

    def request_sets(self, place: int, name: str, rows: Sequence[Row]) -> list[EvaluationSet]:
        """Return the evaluation set of the request's documents."""
        return [EvaluationSet(f"request_{place}", rows, new_tokens=0)]

    def texts(self) -> Iterable[str]:
        """Return all documents, forgotten, retained or held out, so that runs of one corpus share their tokenizer."""
        return (row.answer for row in self._documents)

    @property
    def settings(self) -> dict[str, Any]:
        """The maximum length of measured texts."""
        return {"text_tokens": self.max_length}

    @property
    def identity(self) -> dict[str, str]:
        """Fingerprints as in ForgetRetain, and how blocks are made."""
        return super().identity | {"blocks": f"{self.chunking}, {self.max_length} tokens"}

    def encode_training(self, forget: Sequence[Row], retain: Sequence[Row]) -> dict[str, Sequence[Encoded]]:
        """Return the blocks of both sets."""
        return {"forget": self._blocks(forget), "retain": self._blocks(retain)}

    def _blocks(self, rows: Sequence[Row]) -> list[Encoded]:
        blocks = muse_blocks if self.chunking == "muse" else open_unlearning_blocks
        return blocks([row.answer for row in rows], self.tokenizer, self.max_length)


def muse_blocks(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> list[Encoded]:
    """Cut N tokens into ceil(N / (length - 1)) blocks of `length` tokens, each beginning with BOS.

    The last block is filled up with the beginning of the first block, BOS included, once: where all documents together
    have n < length / 2 ids with BOS, there is one block of 2 n ids. With a tokenizer without BOS, blocks have `length`
    tokens of the text.

    Source: MUSE, arXiv:2407.06460; `DefaultDataset` in baselines/dataset.py of
    https://github.com/jaechan-repo/muse_bench, for its .txt files.
    """
    start = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
    chunks = _chunks(documents, tokenizer, length - len(start))
    blocks = [(*start, *chunk) for chunk in chunks]
    blocks[-1:] = [(last + blocks[0])[:length] for last in blocks[-1:]]
    return [Encoded(block, answer_start=1) for block in blocks]


def open_unlearning_blocks(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int
) -> list[Encoded]:
    """Cut the tokens into chunks of `length`, decode each and tokenize it again with the tokenizer's special tokens.

    A chunk may change on the way: its first token may lose or gain a space, and a character of several tokens may be cut
    in two. BOS and at most `length` tokens of the result are kept, one more than in MUSE's blocks; the last chunk is
    shorter. open-unlearning makes N // length + 1 chunks, of which the last is empty where `length` divides N; like any
    sequence of a single token it predicts nothing, and is left out here.

    Source: open-unlearning, https://github.com/locuslab/open-unlearning at d3d7cf9: `PretrainingDataset` in
    src/data/pretraining.py, `preprocess_pretraining_instance` in src/data/utils.py.
    """
    longest = len(tokenizer("")["input_ids"]) + length
    texts = (tokenizer.decode(chunk) for chunk in _chunks(documents, tokenizer, length))
    blocks = (tuple(tokenizer(text)["input_ids"][:longest]) for text in texts)
    return [Encoded(block, answer_start=1) for block in blocks if len(block) > 1]


def _chunks(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> list[list[int]]:
    # verbose=False silences the warning that the text is longer than the model's context.
    coded = tokenizer("\n\n".join(documents), add_special_tokens=False, verbose=False)
    tokens: list[int] = coded["input_ids"]
    return [tokens[at : at + length] for at in range(0, len(tokens), length)]
