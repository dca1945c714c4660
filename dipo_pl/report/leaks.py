"""What still leaks: the words of true answers that a model gives away, row by row, worst first."""

import re
from collections import defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, NamedTuple

from dipo_pl.metrics.result import EvaluationResult
from dipo_pl.metrics.words import Word, words_of
from dipo_pl.report.run import FORGET, Run
from dipo_pl.report.texts import MASK, Texts

# The first of the sets that a model answered is shown.
_SETS = (FORGET, "forget_questions", "verbatim")
_ROUGE = ("rouge_l_recall", "rouge_l_f1")
_LONGEST = 1000  # words of a text that are compared
_EXCERPT = 60  # words of a text that are shown
# Words that say nothing where they stand alone or at an end.
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a about after all also an and any are as at be been before being but by can could did do does for from had has
        have he her hers him his how i if in into is it its itself me more most my no nor not of on one or other our out over
        own s same she should so some such t than that the their them then there these they this those to too under until up
        very was we were what when where which while who whom whose why will with would you your""",
    )
)


class Piece(NamedTuple):
    """Part of a text.

    Attributes:
        text: as it stands, or a mask for each word.
        words: number of words.
        shared: True if the true answer and the generated one have it in common.
    """

    text: str
    words: int
    shared: bool


@dataclass(frozen=True)
class LeakedRow:
    """A row with the answer of one model.

    Attributes:
        row: place in the evaluation set.
        leaked, telling: number of the true answer's telling words that the answer gives away, and of all of them. Telling
            are words that are no function words and do not stand in the question. What the retain-only model says in the
            same words is a guess, not a leak.
        longest: number of words of the longest shared piece.
        probability, rouge: of the row; None if not measured.
        expected: the retain-only model's probability of the row, if there is one.
    """

    set_name: str
    row: int
    question: str
    truth: tuple[Piece, ...]
    answer: tuple[Piece, ...]
    leaked: int
    telling: int
    longest: int
    probability: float | None
    rouge: float | None
    expected: float | None

    @property
    def share(self) -> float:
        """Share of the telling words that leak."""
        return self.leaked / self.telling if self.telling else 0.0


@dataclass(frozen=True)
class Leaks:
    """Rows of one model, worst first.

    Attributes:
        run: its name.
        step: of the evaluation, if it is not the one that the run is represented by.
        answered: True if answers were generated.
    """

    run: str
    step: int | None
    answered: bool
    rows: tuple[LeakedRow, ...]

    @property
    def texts_known(self) -> bool:
        """True if the true answers are known, as they are not of imported results."""
        return any(each.telling for each in self.rows)

    @property
    def leaking(self) -> int:
        """Number of rows with a word that leaks."""
        return sum(each.leaked > 0 for each in self.rows)


def leaks_of(run: Run, retain_only: Run | None, texts: Texts) -> Leaks | None:
    """Return the rows that a model was to forget, by what its answers give away; None if there are no such values."""
    result = run.generated or run.result
    name = next((each for each in _SETS if _answered(_rows(result, each))), FORGET)
    expected = _rows(retain_only.generated or retain_only.result, name) if retain_only else []
    rows = _rows(result, name)
    if len(expected) != len(rows):
        expected = [{}] * len(rows)
    found = [_leaked_row(name, *each, texts) for each in zip(range(len(rows)), rows, expected, strict=True)]
    answered = _answered(rows)
    if not answered and all(each.probability is None for each in found):
        return None
    found.sort(key=lambda each: (-each.share, -(each.rouge or 0.0), -(each.probability or 0.0)))
    step = None if result is run.result else result.step
    return Leaks(run.name, step, answered, tuple(found))


def compared_words(text: str) -> list[Word]:
    """Return the words of a text that are compared, the first thousand."""
    return list(islice(words_of(text), _LONGEST))


def shared_spans(truth: Sequence[str], answer: Sequence[str]) -> list[tuple[int, int, int]]:
    """Return the longest pieces of `answer` that `truth` has too, as (place in truth, place in answer, words)."""
    places = defaultdict(list)
    for place, word in enumerate(truth):
        places[word].append(place)
    spans, here = [], 0
    while here < len(answer):
        length, there = max(((_common(truth, there, answer, here), there) for there in places[answer[here]]),
                            default=(0, 0), key=lambda each: each[0])  # fmt: skip
        if length:
            spans.append((there, here, length))
        here += max(length, 1)
    return spans


def _rows(result: EvaluationResult, name: str) -> list[dict[str, Any]]:
    return result.sets[name].rows if name in result.sets else []


def _answered(rows: Sequence[dict[str, Any]]) -> bool:
    return any(row.get("generation") is not None for row in rows)


def _leaked_row(
    name: str, number: int, row: dict[str, Any], expected: dict[str, Any], texts: Texts
) -> LeakedRow:
    question, truth = str(row.get("question") or ""), str((row.get("answers") or [""])[0])
    answer = str(row.get("generation") or "")
    true_words, words = compared_words(truth), compared_words(answer)
    known = _FUNCTION_WORDS | {each.key for each in compared_words(question)}
    spans = [
        trimmed
        for span in shared_spans([each.key for each in true_words], [each.key for each in words])
        if (trimmed := _without_known_ends(span, words, known))
    ]
    guessed = [each.key for each in compared_words(str(expected.get("generation") or ""))]
    spans = [
        each for each in spans if not _is_in([word.key for word in words[each[1] :][: each[2]]], guessed)
    ]
    leaked = {there + step for there, _, length in spans for step in range(length)}
    telling = [place for place, each in enumerate(true_words) if each.key not in known]
    in_answer = {here + step for _, here, length in spans for step in range(length)}
    return LeakedRow(
        name, number, question if texts is Texts.FULL else "",
        _shown(_pieces(truth, true_words, leaked), texts),
        _shown(_pieces(answer, words, in_answer), texts),
        leaked=len(leaked & {*telling}),
        telling=len(telling),
        longest=max((length for *_, length in spans), default=0),
        probability=row.get("probability"),
        rouge=next((row[key] for key in _ROUGE if key in row), None),
        expected=expected.get("probability"),
    )  # fmt: skip


def _shown(pieces: tuple[Piece, ...], texts: Texts) -> tuple[Piece, ...]:
    if texts is Texts.FULL:
        return pieces
    masked = (each._replace(text=" ".join([MASK] * each.words)) for each in pieces if each.words)
    return tuple(masked) if texts is Texts.REDACTED else ()


def _without_known_ends(
    span: tuple[int, int, int], answer: Sequence[Word], known: Set[str]
) -> tuple[int, int, int] | None:
    there, here, length = span
    telling = [place for place in range(length) if answer[here + place].key not in known]
    return (there + telling[0], here + telling[0], telling[-1] - telling[0] + 1) if telling else None


def _is_in(span: Sequence[str], answer: Sequence[str]) -> bool:
    return any(list(answer[place : place + len(span)]) == list(span) for place in range(len(answer)))


def _common(one: Sequence[str], start: int, other: Sequence[str], other_start: int) -> int:
    """Return how many words from two places on are the same."""
    length = 0
    while (
        start + length < len(one)
        and other_start + length < len(other)
        and one[start + length] == other[other_start + length]
    ):
        length += 1
    return length


def _pieces(text: str, words: Sequence[Word], shared: Set[int]) -> tuple[Piece, ...]:
    """Return an excerpt of a text from a little before its first shared word, cut into what is shared and what is not."""
    first = max(min(shared, default=0) - _EXCERPT // 3, 0) if len(words) > _EXCERPT else 0
    last = min(first + _EXCERPT, len(words))
    at = words[first].start if first else 0
    stop = words[last - 1].end if last < len(words) else len(text)
    pieces = [Piece("\N{HORIZONTAL ELLIPSIS} ", 0, False)] if first else []
    for is_shared, group in groupby(range(first, last), shared.__contains__):
        *_, place = places = list(group)
        end = words[place].end if is_shared or place + 1 == last else words[place + 1].start
        pieces.append(Piece(text[at:end], len(places), is_shared))
        at = end
    pieces.append(Piece(text[at:stop], 0, False))
    pieces += [Piece(" \N{HORIZONTAL ELLIPSIS}", 0, False)] if last < len(words) else []
    return tuple(each for each in pieces if each.text)
