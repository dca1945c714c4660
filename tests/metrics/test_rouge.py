import functools
import random

import pytest
import torch

from dipo_pl.metrics import rouge_l_recall
from dipo_pl.metrics.functional import rouge


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("the cat sat on the mat", "the cat sat on the mat", 1),
        # "the cat on mat" is the longest common subsequence.
        ("the cat on mat sat", "the cat sat on the mat", 4 / 6),
        ("mat", "the cat sat on the mat", 1 / 6),
        # Order counts: one of the two words.
        ("b a", "a b", 1 / 2),
        # Recall: what the prediction adds costs nothing, what it leaves out does.
        ("well, I think the answer is: red and blue!", "red blue", 1),
        ("red blue", "well, I think the answer is: red and blue!", 2 / 9),
        # Case and punctuation do not count, a hyphen parts words, stems are compared.
        ("RED. Blue?", "red blue", 1),
        ("award-winning", "award winning", 1),
        ("she was writing novels", "she was writes novel", 1),
        ("purple", "red blue", 0),
        ("", "red blue", 0),
        ("red blue", "", 0),
    ],
)
def test_worked_by_hand(prediction, reference, expected):
    assert rouge_l_recall([prediction], [reference]).item() == pytest.approx(expected)


def test_matches_loop():
    @functools.cache
    def common(a, b):
        if not a or not b:
            return 0
        if a[0] == b[0]:
            return 1 + common(a[1:], b[1:])
        return max(common(a[1:], b), common(a, b[1:]))

    rng = random.Random(0)
    # Words of at most three letters have no stem.
    texts = [[tuple(rng.choices("abcde", k=rng.randint(1, 9))) for _ in range(30)] for _ in range(2)]
    expected = [common(p, r) / len(r) for p, r in zip(*texts, strict=True)]
    result = rouge_l_recall(*([" ".join(words) for words in side] for side in texts))
    assert result.dtype == torch.float64
    assert result.tolist() == pytest.approx(expected)


def test_no_answers_give_no_values():
    assert rouge_l_recall([], []).shape == (0,)


def test_builds_the_scorer_once(monkeypatch):
    built = []
    scorer = rouge.RougeScorer
    monkeypatch.setattr(rouge, "RougeScorer", lambda *a, **k: built.append(1) or scorer(*a, **k))
    rouge._scorer.cache_clear()
    for _ in range(3):
        rouge_l_recall(["a", "b"], ["a", "c"])
    assert len(built) == 1


def test_refuses_lengths_that_differ():
    with pytest.raises(ValueError, match="predictions and references must pair up, got 2 and 1"):
        rouge_l_recall(["a", "b"], ["a"])


def test_refuses_what_is_no_list_of_strings():
    with pytest.raises(ValueError, match="predictions must be a list of strings, got the string 'ab'"):
        rouge_l_recall("ab", ["a", "b"])
    with pytest.raises(ValueError, match=r"references must be strings, got None at row 1"):
        rouge_l_recall(["a", "b"], ["a", None])
