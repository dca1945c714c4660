import functools
import itertools
import random

import pytest
import rouge_score.rouge_scorer
import torch

from dipo_pl.metrics import rouge
from dipo_pl.metrics.knowledge import before_next_question
from dipo_pl.metrics.rouge import rouge_l_f1, rouge_l_recall


@pytest.mark.parametrize(("prediction", "reference", "expected"), [
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
    # Other scripts: words, and characters where there are no spaces.
    ("Мира живёт в Москве.", "мира живёт в москве", 1),
    ("Анна живёт в Москве", "Мира живёт в Москве", 3 / 4),
    ("我住在北京", "我住在上海", 3 / 5),
    ("เขาอยู่", "เขาอยู่", 1),
    ("मीरा दिल्ली में रहती है", "मीरा मुंबई में रहती है", 4 / 5),
    ("nothing", "Мира", 0),
    # A name with an accent is not another script: the field's words, "tom", "s" and "lives".
    ("Tom s lives", "Tomás lives", 1),
])  # fmt: skip
def test_recall_worked_by_hand(prediction, reference, expected):
    assert rouge_l_recall([prediction], [reference]).item() == pytest.approx(expected)


@pytest.mark.parametrize(("prediction", "reference", "words", "stems"), [
    ("the cat sat on the mat", "the cat sat on the mat", 1, 1),
    # 4 words in common: of 5 that are said and 6 that are true.
    ("the cat on mat sat", "the cat sat on the mat", 2 * 4 / (5 + 6), 2 * 4 / (5 + 6)),
    # What the prediction adds costs as much as what it leaves out.
    ("red blue and nothing more", "red blue", 2 * 2 / 7, 2 * 2 / 7),
    ("red blue", "red blue and nothing more", 2 * 2 / 7, 2 * 2 / 7),
    ("she was writing novels", "she was writes novel", 2 * 2 / 8, 1),
    ("Harry's OWL.", "harry s owl", 1, 1),
    ("purple", "red", 0, 0),
    ("", "red", 0, 0),
    ("red", "", 0, 0),
])  # fmt: skip
def test_f1_worked_by_hand(prediction, reference, words, stems):
    assert rouge_l_f1([prediction], [reference]).item() == pytest.approx(words)
    assert rouge_l_f1([prediction], [reference], stemmer=True).item() == pytest.approx(stems)


def test_recall_matches_loop():
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


def longest_common(one, other):
    """Try all subsequences of one, longest first."""
    for size in range(min(len(one), len(other)), 0, -1):
        for places in itertools.combinations(range(len(one)), size):
            rest = iter(other)
            if all(one[place] in rest for place in places):
                return size
    return 0


def test_f1_matches_a_definition():
    rng = random.Random(1)
    pairs = [
        [rng.choices(["ab", "winning", "wins", "c"], k=rng.randint(1, 7)) for _ in "pr"] for _ in range(40)
    ]
    found = rouge_l_f1([" ".join(p) for p, _ in pairs], [" ".join(r) for _, r in pairs])
    assert found.dtype == torch.float64
    for value, (p, r) in zip(found.tolist(), pairs, strict=True):
        common = longest_common(p, r)
        precision, recall = common / len(p), common / len(r)
        expected = 0.0 if common == 0 else 2 * precision * recall / (precision + recall)
        assert value == pytest.approx(expected, rel=1e-12)
    assert found.unique().numel() > 5


def test_builds_the_scorer_once(monkeypatch):
    built = []
    scorer = rouge_score.rouge_scorer.RougeScorer
    monkeypatch.setattr(
        rouge_score.rouge_scorer, "RougeScorer", lambda *a, **k: built.append(k) or scorer(*a, **k)
    )
    rouge._scorer.cache_clear()
    for _ in range(3):
        rouge_l_recall(["a", "b"], ["a", "c"])
        rouge_l_f1(["a", "b"], ["a", "c"])
    assert [each["use_stemmer"] for each in built] == [True, False]


@pytest.mark.parametrize("score", [rouge_l_recall, rouge_l_f1])
def test_takes_lists_of_strings_that_pair_up(score):
    assert score([], []).shape == (0,)
    with pytest.raises(
        ValueError, match=r"predictions and references must have as many rows \(got 2 and 1\)"
    ):
        score(["a", "b"], ["a"])
    with pytest.raises(ValueError, match=r"predictions must be a list of strings \(got the string 'ab'\)"):
        score("ab", ["a", "b"])
    with pytest.raises(ValueError, match=r"references must be strings \(got None at row 1\)"):
        score(["a", "b"], ["a", None])


@pytest.mark.parametrize(("text", "answer"), [
    ("In Paris.\n\nQuestion: Who?\nAnswer: He.", "In Paris."),
    ("In Paris.\nQuestion: Who?", "In Paris."),
    ("In Paris. Question: Who?", "In Paris. "),
    ("Questions were asked\nby many\n\nof them", "Questions were asked\nby many"),
    ("\n\nIn Paris.", ""),
    ("\nQuestionable\n\n", ""),
    ("\n Question\n", "\n Question\n"),
    ("", ""),
])  # fmt: skip
def test_an_answer_ends_where_the_next_question_begins(text, answer):
    assert before_next_question(text) == answer
    # One after the other, as MUSE does it.
    for mark in ("\n\n", "\nQuestion", "Question:"):
        text = text.partition(mark)[0]
    assert text == answer
