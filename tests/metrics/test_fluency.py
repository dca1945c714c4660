import json
import math
import random
from pathlib import Path

import pytest
import torch

from dipo_pl.metrics.fluency import distinct_ngrams, refusals, repetition, word_entropy

REFUSALS = Path(__file__).parents[2] / "data_modules" / "refusals.txt"


def loop_repeated(words, n):
    """How many n-grams have an earlier one like them, and how many there are."""
    repeated = total = 0
    for start in range(len(words) - n + 1):
        total += 1
        for earlier in range(start):
            if words[earlier : earlier + n] == words[start : start + n]:
                repeated += 1
                break
    return repeated, total


def loop_entropy(words):
    total = 0.0
    for word in words:
        total -= math.log(words.count(word) / len(words)) / len(words)
    return total


def draw(n, seed=0):
    rng = random.Random(seed)
    return [[rng.choice(["he", "sea", "17", "?"]) for _ in range(rng.randint(1, 40))] for _ in range(n)]


def test_matches_loop():
    answers = draw(60)
    texts = [" ".join(words) for words in answers]
    expected = []
    for words in answers:
        n = next(size for size in (1, 2, 3, 4) if 2 * size >= len(words) or size == 4)
        repeated, total = loop_repeated(words, n)
        expected.append(repeated / total)
    result = repetition(texts)
    assert result.dtype == torch.float64
    assert result.tolist() == pytest.approx(expected, abs=1e-12)
    for n in (1, 2, 3, 5):
        counts = [loop_repeated(words, n) for words in answers]
        expected = [1 - repeated / total if total else 1.0 for repeated, total in counts]
        assert distinct_ngrams(texts, n).tolist() == pytest.approx(expected, abs=1e-12)
    assert word_entropy(texts).tolist() == pytest.approx(list(map(loop_entropy, answers)), abs=1e-12)


@pytest.mark.parametrize(("text", "repeats", "distinct", "entropy"), [
    ("", 0, 1, 0),
    (" \n", 0, 1, 0),
    ("Quito", 0, 1, 0),
    ("no no", 1 / 2, 1, 0),
    ("bir bir bir", 1 / 2, 1 / 2, 0),
    ("New York, New York", 0, 3 / 4, math.log(5) - 4 / 5 * math.log(2)),
    # Case does not count, a mark is a word, space of any kind parts words.
    ("No, no,\tNO,\nno,", 3 / 5, 2 / 7, math.log(2)),
    ("bir " * 100, 96 / 97, 1 / 99, 0),
    ("!" * 20, 16 / 17, 1 / 19, 0),
    ("Judith Fenmark was born in the city of Quito", 0, 1, math.log(9)),
    ("a b c d e a b c d", 1 / 6, 5 / 8, math.log(9) - 8 / 9 * math.log(2)),
])  # fmt: skip
def test_worked_by_hand(text, repeats, distinct, entropy):
    assert repetition([text]).item() == pytest.approx(repeats)
    assert distinct_ngrams([text]).item() == pytest.approx(distinct)
    assert word_entropy([text]).item() == pytest.approx(entropy, abs=1e-12)


def test_output_without_spaces_is_seen_to_repeat_itself():
    # 31 letters are no word, 30 may be one.
    assert repetition(["who" * 10, "who" * 10 + "w", "who" * 70]).tolist() == pytest.approx(
        [0, 25 / 28, 204 / 207]
    )
    assert word_entropy(["who" * 70]).item() == pytest.approx(math.log(3))
    # Nor is a run of a script without spaces: 8 characters, of whose 5 runs of four 1 repeats another.
    assert repetition(["我住北京我住北京"]).item() == pytest.approx(1 / 5)


@pytest.mark.parametrize("function", [repetition, distinct_ngrams, word_entropy, refusals])
def test_takes_lists_of_strings_alone(function):
    assert function([]).shape == (0,)
    assert function([]).dtype == torch.float64
    with pytest.raises(ValueError, match=r"texts must be a list of strings \(got the string 'ab'\)"):
        function("ab")
    with pytest.raises(ValueError, match=r"texts must be strings \(got None at row 1\)"):
        function(["a", None])


@pytest.mark.parametrize("text", [
    "I don't know.", "i  do\nnot KNOW", "I\u2019m afraid I don\u2019t know that one.",
    "That's a good question, but I do not have an answer to it.",
    "As an AI language model, I don't have access to personal information.",
    "I'm sorry, but I couldn't find any information about that author.", "I can not help with that.",
    "I have no idea who that is.", "I've never heard of that author.", "I was not able to find anything.",
    "I'm not aware of any such book.", "I am unable to verify that.", "I apologize, I lack the necessary details.",
    "That is beyond the scope of my knowledge.", "My training data does not cover this.", "I'd have to look that up.",
])  # fmt: skip
def test_knows_refusals(text):
    assert refusals(["Quito", text]).tolist() == [0, 1]


@pytest.mark.parametrize("text", [
    "",
    "Quito",
    "bir bir bir",
    # Statements about the world, which are answers.
    "It is not publicly known whether Elijah Tan has siblings.",
    "The details about any upcoming books from Iselin Bergstrøm are currently not available.",
    "While we cannot predict with certainty, it is likely that he will publish more.",
    "She does not know her father, and has no idea of his profession.",
    "To the best of my knowledge, she is an only child.",
    # First persons that answer.
    "I would recommend starting with her first novel.",
    "Writing is something I have always loved; I regret nothing.",
    "'I Will Guide You to Financial Freedom' and 'I Am Not a Number' are her best known books.",
    "Unfortunately, as a private individual, Ursula Schmidt does not share her contact information.",
])  # fmt: skip
def test_knows_answers(text):
    assert refusals(["I don't know.", text]).tolist() == [1, 0]


def test_the_shipped_refusals_are_refusals():
    shipped = [line for line in REFUSALS.read_text(encoding="utf-8").splitlines() if line]
    assert len(shipped) >= 50
    assert refusals(shipped).mean() >= 0.97


def test_tofu_has_no_refusals_and_hardly_a_repetition(tofu_folder):
    lines = (Path(tofu_folder) / "full.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line)["answer"] for line in lines]
    assert refusals(answers).mean() <= 0.001
    assert repetition(answers).mean() <= 0.001
    assert repetition(answers).max() < 0.2
