"""Fluency: whether generated text is still language, and whether it declines to answer.

A word is a run of letters and digits, in lower case, or a single other mark that is not space. A run of more than 30
characters is hardly a word, and a script without spaces has no such runs: both count letter by letter, so that output
without spaces ("whowhowho...") is seen to repeat itself.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dipo_pl.errors import check_count
from dipo_pl.metrics.base import EvaluationMetric
from dipo_pl.metrics.inputs import check_texts
from dipo_pl.metrics.observations import Observations
from dipo_pl.metrics.words import is_unspaced

LONGEST_WORD = 30


def repetition(texts: Sequence[str]) -> Tensor:
    r"""Return 1 - distinct / total, the share of a text's word n-grams that repeat an earlier one.

    n = 4; in a text of w < 7 words it is ceil(w / 2), so that "no no" repeats itself and "no" does not. Answers that
    people wrote are at about 0 (TOFU's mean is 0.0004), a model that loops is near 1.

    Args:
        texts: N generated answers, without prompt and special tokens.

    Returns:
        [N] float64, in [0, 1); 0 for an empty text.

    Raises:
        ValueError: texts is no list of strings.
    """
    return _of_each(texts, lambda words: 1 - _distinct(words, min(4, math.ceil(len(words) / 2))))


def distinct_ngrams(texts: Sequence[str], n: int = 2) -> Tensor:
    r"""Return distinct / total, the share of a text's word n-grams that are different; 1 without repetition.

    Source: Li et al., arXiv:1510.03055, "distinct-1" and "distinct-2". Differs: over n-grams, within each text;
    there over all words, of all texts together.

    Args:
        texts: N generated answers, without prompt and special tokens.
        n: words of an n-gram, at least 1.

    Returns:
        [N] float64, in (0, 1]; 1 for a text of fewer than n words, also for an empty one, which repeats nothing.

    Raises:
        ValueError: texts is no list of strings, or n < 1.
    """
    check_count("n", n)
    return _of_each(texts, lambda words: _distinct(words, n))


def word_entropy(texts: Sequence[str]) -> Tensor:
    r"""Return -sum_w p(w) log p(w), p the shares of the words in a text, in nats.

    It is at most log of the number of words, so it falls both with repetition and with length.

    Args:
        texts: N generated answers, without prompt and special tokens.

    Returns:
        [N] float64, nats, >= 0; 0 for an empty text, as for one that says one word again and again.

    Raises:
        ValueError: texts is no list of strings.
    """
    return _of_each(texts, _entropy)


def refusals(texts: Sequence[str]) -> Tensor:
    """Return 1 where a text says, anywhere in it, that its speaker does not know or will not answer, else 0.

    Refusals are English phrases in the first person ("I don't know", "beyond my knowledge", "I'm sorry, but"), whole
    words in any case, contracted or not. A statement about the world ("that is not publicly known") is an answer:
    TOFU's true answers have many.

    Args:
        texts: N generated answers, without prompt and special tokens.

    Returns:
        [N] float64, 0 or 1; 0 for an empty text.

    Raises:
        ValueError: texts is no list of strings.
    """
    check_texts("texts", texts)
    return torch.tensor([bool(_REFUSAL.search(_spelled_out(text))) for text in texts], dtype=torch.float64)


class Fluency(EvaluationMetric):
    """Metrics `repetition`, `distinct_2`, `word_entropy` and `refusals` of generated answers."""

    inputs = ("generation",)

    def per_row(self, seen: Observations) -> dict[str, Tensor]:
        """Return the four values."""
        return {
            "repetition": repetition(seen.generation),
            "distinct_2": distinct_ngrams(seen.generation, 2),
            "word_entropy": word_entropy(seen.generation),
            "refusals": refusals(seen.generation),
        }


def _of_each(texts: Sequence[str], score: Callable[[list[str]], float]) -> Tensor:
    check_texts("texts", texts)
    return torch.tensor([score(_words(text)) for text in texts], dtype=torch.float64)


def _words(text: str) -> list[str]:
    found = re.findall(r"\w+|[^\w\s]", text.lower())
    return [part for word in found for part in ([word] if _is_word(word) else word)]


def _is_word(run: str) -> bool:
    return len(run) <= LONGEST_WORD and not any(map(is_unspaced, run))


def _distinct(words: list[str], n: int) -> float:
    ngrams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 1.0


def _entropy(words: list[str]) -> float:
    counts = Counter(words).values()
    return math.fsum(count / len(words) * math.log(len(words) / count) for count in counts)


def _spelled_out(text: str) -> str:
    """Return a text in lower case, without contractions, with single spaces."""
    text = " ".join(text.lower().replace("\u2019", "'").split())
    text = text.replace("can't", "cannot").replace("can not", "cannot").replace("won't", "will not")
    for contracted, full in _CONTRACTIONS.items():
        text = text.replace(contracted, full)
    return text


_CONTRACTIONS = {
    "n't": " not",
    "i'm": "i am",
    "i've": "i have",
    "i'd": "i would",
    "that's": "that is",
    "it's": "it is",
}
# Things that one may have or lack in place of an answer.
_KNOWLEDGE = (
    "knowledge|information|info|data|details?|facts|specifics|answers?|idea|clue|insights?|"
    "familiarity|enlightenment"
)
_MINE = "knowledge|training|databases?|dataset|data|understanding|resources|capabilities|programming|memory"
_PHRASES = (
    # I do not know, I really could not tell you, I cannot help
    r"i (?:\w+ )?(?:do|did) not (?:\w+ ){0,3}?"
    rf"(?:know|hold|possess|recall|remember|recogni[sz]e|have (?:\w+ ){{0,4}}?(?:{_KNOWLEDGE}|access))",
    r"i (?:do not think i can|(?:\w+ )?(?:cannot|could not)) (?:\w+ )?"
    r"(?:answer|say|tell|provide|give|offer|share|shed|help|assist|recall|remember|confirm|verify|find|discuss|comply)",
    # I am unable, unsure, not familiar with that
    r"i am (?:\w+ )?(?:unable|unaware|unsure|uncertain|clueless|stumped|blank|unfamiliar|ignorant)",
    r"i (?:am|was) not (?:\w+ )?(?:sure|certain|able|aware|familiar|informed|equipped|acquainted|knowledgeable|versed|"
    r"well-versed|briefed|privy|trained|programmed|the (?:right|best))",
    r"i am (?:drawing a blank|at a (?:loss|disadvantage)|in the dark|(?:lacking|missing) (?:\w+ )?information)",
    r"i am (?:\w+ )?(?:sorry|afraid),? (?:but|i|that)",
    r"i (?:apologi[sz]e|regret to)",
    # I have no idea, I have never heard of it, I lack the knowledge
    rf"(?:i have|i have got|i seem to have) no (?:\w+ )?(?:{_KNOWLEDGE})",
    r"i have(?: not| never| yet to)(?: been| come| yet)? (?:\w+ )?"
    r"(?:learn|learned|learnt|heard|across|encountered|be informed|informed|educated|trained|briefed|the faintest)",
    r"i have (?:come up short|yet to learn)",
    rf"i lack (?:\w+ ){{0,2}}(?:{_KNOWLEDGE})",
    r"i (?:know|can tell you) nothing|nothing (?:that )?i (?:know|can tell)|i would (?:only|just) be guessing",
    r"i (?:need|would have) to look (?:\w+ )?up|i must (?:pass|decline)|i would rather not (?:say|answer)",
    # Beyond my knowledge, unknown to me
    rf"my (?:current |training )?(?:{_MINE}) (?:(?:do|does|did) not|(?:is|are) limited)",
    r"(?:(?:beyond|outside)(?: the \w+)?(?: of)?|out of|not within|not (?:\w+ ){0,2}in|blind spot in|territory for)"
    rf" my (?:\w+ ){{0,3}}?(?:{_MINE}|scope|expertise|reach)",
    r"(?:beyond|outside of|unknown to|a mystery to) (?:me|what i know)|comes to my mind",
    r"not (?:something|information) (?:that )?i (?:am|have|know)",
)
_REFUSAL = re.compile(rf"\b(?:{'|'.join(_PHRASES)})\b")
