"""Rows as token ids, with a warning that counts those that were cut."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lightning.pytorch.utilities import rank_zero_warn
from transformers import PreTrainedTokenizerBase

from dipo_pl.batch import Encoded
from dipo_pl.chat_rendering import without_spaces
from dipo_pl.data_modules.packed_sequences import Groups, packed
from dipo_pl.errors import InputError
from dipo_pl.evaluation_set import EvaluationSet
from dipo_pl.prompts import PromptFormat, Rendered
from dipo_pl.rows import Row


def encode(
    row: Row,
    answer: str,
    prompt_format: PromptFormat,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    truncate: bool = False,
) -> Encoded:
    """Return the ids of `row`'s prompt followed by `answer` and EOS.

    Prompt and answer are tokenized as one text, because a token may join the end of one with the start of the other; a
    token that contains any character of the answer belongs to the answer. The prompt is tokenized separately only where
    its format asks for it.

    Args:
        row: the row whose messages are the prompt.
        answer: the answer, which may differ from the row's own.
        prompt_format: the prompt format.
        tokenizer: a fast tokenizer.
        max_length: maximum length in tokens, EOS included.
        truncate: cut a longer sequence at `max_length` instead of refusing it.

    Raises:
        InputError: the sequence is too long, no answer token is left to be predicted, or the tokenizer has no EOS.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no EOS token: without one an answer has no end")
    row = replace(row, answer=answer)
    rendered = prompt_format.render(row, tokenizer)
    written = answer if rendered.answer is None else rendered.answer
    ids, offsets = _tokens(rendered, written, tokenizer)
    answer_at = len(rendered.prompt)
    closing_at = answer_at + len(written)
    end = closing_at + len(rendered.closing)
    if rendered.after:
        kept = next((index for index, (start, _) in enumerate(offsets) if start >= end), len(ids))
        ids, offsets = ids[:kept], offsets[:kept]
    of_answer = [
        index for index, (start, stop) in enumerate(offsets) if start < closing_at and stop > answer_at
    ]
    answer_start, last = (of_answer[0], of_answer[-1]) if of_answer else (len(ids), 0)
    # Some templates end a turn with their own token (<|eot_id|>), at which generation also stops.
    if not rendered.closing and ids[-1] != tokenizer.eos_token_id:
        ids.append(tokenizer.eos_token_id)
    cut = len(ids) > max_length
    if cut and not truncate:
        raise InputError(
            f"{row.label} has {len(ids)} tokens, more than data.max_length {max_length}: raise it, up to the model's "
            "context, or set data.too_long to truncate"
        )
    ids = ids[:max_length]
    answer_start = max(answer_start, 1)
    if answer_start >= len(ids):
        raise InputError(
            f"no answer token is left in {row.label}: its answer is {answer[:60]!r}, its prompt {answer_start} tokens, "
            f"data.max_length {max_length}"
        )
    # Where no token of the answer can be predicted, the closing stands for it.
    closing = max(len(ids) - 1 - max(last, answer_start), 0)
    return Encoded(tuple(ids), answer_start, closing, cut, without_spaces(written) != without_spaces(answer))


def encode_entity(
    row: Row, prompt_format: PromptFormat, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Encoded:
    """Return the ids of `row`'s prompt and answer up to the end of its entity, which is what is to be predicted.

    A token that contains any character of the entity belongs to it. Without an entity it is the whole answer, without
    what closes it.

    Args:
        row: the row.
        prompt_format: the prompt format.
        tokenizer: a fast tokenizer.
        max_length: maximum length in tokens.

    Raises:
        InputError: the entity does not stand in the answer as the format writes it, or lies beyond `max_length`.
    """
    whole = encode(row, row.answer, prompt_format, tokenizer, max_length, truncate=True)
    if row.entity is None:
        return Encoded(whole.ids[: len(whole.ids) - whole.closing], whole.answer_start)
    rendered = prompt_format.render(row, tokenizer)
    written = row.answer if rendered.answer is None else rendered.answer
    at = written.find(row.entity)
    if at < 0:
        raise InputError(
            f"the entity {row.entity[:60]!r} does not stand in the answer of {row.label}: write it as there"
        )
    ids, offsets = _tokens(rendered, written, tokenizer)
    begin = len(rendered.prompt) + at
    end = begin + len(row.entity)
    places = [index for index, (start, stop) in enumerate(offsets) if start < end and stop > begin]
    # Nothing precedes the first token to predict it from.
    first, last = max(places[0], 1), places[-1]
    if last >= len(whole.ids) or last < first:
        raise InputError(
            f"the entity {row.entity[:60]!r} of {row.label} ends at token {last + 1}, which data.max_length {max_length} "
            "cuts off: raise it"
        )
    return Encoded(tuple(ids[: last + 1]), first)


def _tokens(
    rendered: Rendered, written: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the ids of the whole text and the range of characters of each."""
    rest = written + rendered.closing + rendered.after
    first = rendered.prompt if rendered.apart else rendered.prompt + rest
    ids, offsets = _coded(first, rendered.special_tokens, tokenizer)
    if rendered.apart:
        more, places = _coded(rest, False, tokenizer)
        ids += more
        offsets += [(start + len(first), stop + len(first)) for start, stop in places]
    return ids, offsets


def _coded(
    text: str, special_tokens: bool, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[tuple[int, int]]]:
    coded = tokenizer(text, add_special_tokens=special_tokens, return_offsets_mapping=True)
    ids, offsets = list(coded["input_ids"]), list(coded["offset_mapping"])
    markers = tokenizer.added_tokens_decoder.keys()
    for index, (start, stop) in enumerate(offsets):
        if ids[index] in markers:
            # Some markers take in the spaces beside them, which may be the answer's: what counts is where they stand.
            piece = text[start:stop]
            start += len(piece) - len(piece.lstrip())
            offsets[index] = start, start + len(piece.strip())
    return ids, offsets


@dataclass(frozen=True)
class RowEncoder:
    """Tokenizes rows and their answers.

    Attributes:
        tokenizer: the policy's.
        prompt: format of the text before an answer, where no other is given.
        max_length: tokens of a sequence, EOS included.
        too_long: `error` refuses a longer row, `truncate` cuts it.
    """

    tokenizer: PreTrainedTokenizerBase
    prompt: PromptFormat
    max_length: int
    too_long: Literal["error", "truncate"]

    def encode(self, row: Row, answer: str, prompt: PromptFormat | None = None) -> Encoded:
        """Return the ids of the row's prompt and of one answer to it."""
        truncate = self.too_long == "truncate"
        return encode(row, answer, prompt or self.prompt, self.tokenizer, self.max_length, truncate)

    def entity(self, row: Row) -> Encoded:
        """Return the ids of the row up to the end of its entity, see `encode_entity`."""
        return encode_entity(row, self.prompt, self.tokenizer, self.max_length)

    def rows(self, rows: Iterable[Row]) -> Sequence[Encoded]:
        """Return each row with its own answer."""
        return packed(self.encode(row, row.answer) for row in rows)

    def companions(self, rows: Iterable[Row], answers: Iterable[Sequence[str]]) -> Sequence[Encoded]:
        """Return each row with each of K other answers; answer k of row r is at r * K + k."""
        return packed(
            self.encode(row, answer) for row, some in zip(rows, answers, strict=True) for answer in some
        )

    def measured(self, evaluation_set: EvaluationSet) -> Sequence[Sequence[Encoded]]:
        """Return all measured answers of each row of an evaluation set.

        Raises:
            InputError: rows have different numbers of wrong answers.
        """
        counts = {len(row.wrong_answers) for row in evaluation_set.rows}
        if len(counts) > 1:
            raise InputError(
                f"rows of the evaluation set {evaluation_set.name!r} have {sorted(counts)} wrong answers: "
                "give every row the same number, or none"
            )
        sequences = packed(
            self.encode(row, answer, evaluation_set.prompt)
            for row in evaluation_set.rows
            for answer in row.measured_answers
        )
        # The right answer twice, once for the truth ratio, and the wrong ones.
        size = max((2 + count if count else 1 for count in counts), default=1)
        return Groups(sequences, size)

    def warn_of_changes(self, what: str, sequences: Iterable[Encoded]) -> None:
        """Warn with the numbers of sequences that were cut, and of answers that the prompt format rewrites, if any."""
        count = cut = rewritten = 0
        for each in sequences:
            count, cut, rewritten = count + 1, cut + each.cut, rewritten + each.rewritten
        if cut:
            rank_zero_warn(
                f"{cut} of {count} {what} are longer than data.max_length {self.max_length} "
                "with their prompt, and are cut there"
            )
        if rewritten:
            rank_zero_warn(
                f"the chat template writes {rewritten} of {count} {what} otherwise than the rows have them: they are "
                "trained and measured as it writes them"
            )
