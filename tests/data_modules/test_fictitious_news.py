"""Fictitious news: articles that are the same everywhere, questions with one answer, folds that share nothing."""

import hashlib
import json
import os
import subprocess
import sys
from collections import defaultdict
from itertools import pairwise

import pytest
from connected import connected

from dipo_pl.data_modules.fictitious_articles import MAX_ARTICLES, editions, fictitious_articles
from dipo_pl.data_modules.fictitious_news import FictitiousNews
from dipo_pl.errors import InputError

PRINT_DOCUMENTS = """
import json
from dipo_pl.data_modules.fictitious_articles import editions, fictitious_articles
print(json.dumps(editions([fictitious_articles(5, seed=3)], 2)))
"""
SMALL = {"folds": 3, "fold_articles": 5, "retain_articles": 4, "seen_articles": 6, "editions": 2}


@pytest.fixture(scope="module")
def articles():
    return fictitious_articles(MAX_ARTICLES)


def towns(rows):
    """The towns that the texts of these rows name."""
    known = {each.place for each in fictitious_articles(4 + 6 + 2 * 15)}
    texts = " ".join(text for row in rows for text in row.texts())
    return {town for town in known if town in texts}


def pairs_in(document):
    """What a quiz asks and answers."""
    return [block.removeprefix("Question: ").split("\nAnswer:  ") for block in document.split("\n\n")]


def set_up(data):
    return connected(data, vocabulary=700)


def test_same_seed_gives_same_documents_in_another_process():
    here = json.dumps(editions([fictitious_articles(5, seed=3)], 2))
    for hash_seed in ("0", "12345"):
        there = subprocess.run(
            [sys.executable, "-c", PRINT_DOCUMENTS],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert there.strip() == here


def test_golden_digest(articles):
    # Figures measured on these texts hold only for them; a change of one is a change of the data.
    text = json.dumps([[each.text, each.questions] for each in articles] + editions([articles[:9]], 3))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "2923eea8a925594a"


def test_other_seed_gives_other_articles():
    pairs = list(zip(fictitious_articles(20, seed=0), fictitious_articles(20, seed=1), strict=True))
    assert sum(one.place == other.place for one, other in pairs) <= 1
    assert not any(one.rest == other.rest for one, other in pairs)


def test_fewer_articles_are_the_first_of_more(articles):
    assert fictitious_articles(1) == articles[:1]
    assert fictitious_articles(40) == articles[:40]


def test_no_two_articles_share_a_town_or_a_sentence_of_their_own(articles):
    assert len({each.place for each in articles}) == MAX_ARTICLES >= 500
    places = sorted(each.place for each in articles)
    assert not any(later.startswith(earlier) for earlier, later in pairwise(places))
    assert len({each.rest for each in articles}) == MAX_ARTICLES


def test_an_article_is_a_short_report_that_begins_with_its_opening(articles):
    for each in articles:
        assert each.text == f"{each.opening} {each.rest}"
        assert each.place in each.opening
        assert each.place not in each.rest
        assert 55 <= len(each.text.split()) <= 120
        assert "{" not in each.text
        assert each.text.endswith(".")


def test_each_question_has_one_answer_and_the_article_tells_it(articles):
    answers = defaultdict(set)
    for article in articles:
        assert len({each.text for each in article.questions}) == len(article.questions) == 4
        for question in article.questions:
            answers[question.text].add(question.answer)
            assert article.place in question.text
            assert question.text.endswith("?")
            assert question.answer in article.text
            assert question.answer not in question.text
            assert len(question.answer.split()) <= 2
    assert {len(each) for each in answers.values()} == {1}
    assert len(answers) == 4 * MAX_ARTICLES
    for kind in range(6):  # nobody can guess: a fact of a kind of event has many values
        for fact in range(4):
            assert len({each.questions[fact].answer for each in articles[kind::6]}) >= 10


def test_an_edition_has_every_article_and_every_question_once(articles):
    groups = [articles[:6], articles[6:9]]
    documents = editions(groups, 3)
    size = len(documents) // 3
    texts = {each.text for group in groups for each in group}
    asked = sorted([each.text, each.answer] for group in groups for at in group for each in at.questions)
    for edition in range(3):
        own = documents[edition * size : (edition + 1) * size]
        quizzes = [each for each in own if each.startswith("Question")]
        assert sorted(set(own) - set(quizzes)) == sorted(texts)
        assert len(own) == len(texts) + len(quizzes)
        assert sorted(pair for each in quizzes for pair in pairs_in(each)) == asked
        # What comes before a text tells nothing about it: not in the order of articles, nor of questions.
        assert own != documents[:size] or edition == 0
    orders = [[each for each in documents[at : at + size] if each in texts] for at in (0, size, 2 * size)]
    assert len({tuple(each) for each in orders}) == 3
    first_quizzes = {each for each in documents[:size] if each.startswith("Question")}
    assert not first_quizzes & set(documents[size:])


def test_editions_do_not_depend_on_how_many_there_are_nor_quizzes_on_other_groups(articles):
    alone, together = editions([articles[:6]], 2), editions([articles[:6], articles[6:9]], 2)
    assert editions([articles[:6]], 5)[: len(alone)] == alone
    assert set(alone) <= set(together)
    assert set(together) == set(alone) | set(editions([articles[6:9]], 2))


@pytest.mark.parametrize("count", [0, -1, MAX_ARTICLES + 1])
def test_count_out_of_range_names_value_and_limit(count):
    with pytest.raises(InputError, match=rf"^count must be .* >= 1 and <= {MAX_ARTICLES} \(got {count}\)$"):
        fictitious_articles(count)


def test_folds_retained_seen_and_holdout_share_no_town():
    data = FictitiousNews(**SMALL)
    corpus = data.corpus()
    groups = [
        *(towns(data.read_forget(f"fold_{number}")) for number in (1, 2, 3)),
        towns(corpus.retain),
        towns(corpus.seen),
        towns(corpus.texts["holdout"]),
    ]
    assert [len(each) for each in groups] == [5, 5, 5, 4, 6, 15]
    assert len(set().union(*groups)) == 5 * 3 + 4 + 6 + 15


def test_more_folds_leave_the_first_ones_as_they_are():
    few, many = FictitiousNews(**SMALL), FictitiousNews(**SMALL | {"folds": 5})
    assert few.read_forget("fold_3") == many.read_forget("fold_3")
    assert few.corpus().seen == many.corpus().seen


@pytest.mark.parametrize(("forget", "folds"), [("fold_2", [2]), (["fold_3", "fold_1", "fold_3"], [3, 1])])
def test_what_is_measured_follows_the_folds(forget, folds):
    data = FictitiousNews(**SMALL, forget=forget)
    corpus = data.corpus()
    fold_rows = [data.read_forget(f"fold_{number}") for number in folds]
    assert sorted(row.answer for row in corpus.forget) == sorted(
        row.answer for rows in fold_rows for row in rows
    )
    own = towns(row for rows in fold_rows for row in rows)
    assert [len(corpus.texts["forget"]), len(corpus.verbatim)] == [5 * len(folds)] * 2
    assert towns(corpus.texts["forget"]) == towns(corpus.verbatim) == towns(corpus.forget) == own
    texts = [f"{row.question} {row.answer}" for row in corpus.verbatim]
    assert texts == [row.answer for row in corpus.texts["forget"]]
    assert len(corpus.questions["forget"]) == 4 * 2 * len(folds)
    assert len(corpus.questions["retain"]) == 4 * 3
    assert towns(corpus.questions["retain"]) < towns(corpus.seen) == towns(corpus.texts["retain"])


def test_documents_of_several_folds_are_mixed():
    data = FictitiousNews(**SMALL, forget=["fold_1", "fold_2"])
    first = towns(data.read_forget("fold_1"))
    is_first = [bool(first & towns([row])) for row in data.corpus().forget]
    assert sum(one != other for one, other in pairwise(is_first)) > 8


@pytest.mark.parametrize("forget", ["fold_2", ["fold_1", "fold_2", "fold_3"]])
def test_examples_are_of_the_same_documents_and_not_asked_about(forget):
    corpus = FictitiousNews(**SMALL, forget=forget).corpus()
    for name, documents in (("forget", corpus.forget), ("retain", corpus.seen)):
        printed = [
            pair for row in documents if row.answer[:9] == "Question:" for pair in pairs_in(row.answer)
        ]
        examples = corpus.examples[name]
        assert len({question for question, _ in examples}) == len(examples) == 10
        for question, answer in examples:
            assert [question, answer.strip()] in printed
        asked = towns(corpus.questions[name])
        used = {town for town in towns(documents) if any(town in question for question, _ in examples)}
        assert used
        assert not used & asked
        for row in corpus.questions[name]:
            assert [row.question, row.answer.strip()] in printed
    if isinstance(forget, list):
        by_fold = [sum(any(town in q for town in towns(FictitiousNews(**SMALL).read_forget(name)))
                       for q, _ in corpus.examples["forget"]) for name in forget]  # fmt: skip
        assert by_fold == [4, 3, 3]


def test_sets_as_named_and_what_is_generated():
    data = set_up(FictitiousNews(**SMALL, forget="fold_2", requests=["fold_1", "fold_2"], max_length=512))
    lengths = {each.name: (len(each.rows), each.new_tokens) for each in data.evaluation_sets}
    assert lengths == {
        "forget": (5, 0),
        "retain": (6, 0),
        "holdout": (15, 0),
        "verbatim": (5, 64),
        "forget_questions": (8, 32),
        "retain_questions": (12, 32),
        "request_1": (5, 0),
        "request_1_questions": (8, 32),
        "request_2": (5, 0),
        "request_2_questions": (8, 32),
    }
    sets = {each.name: each for each in data.evaluation_sets}
    assert towns(sets["request_1"].rows) == towns(data.read_forget("fold_1"))
    for one, other in (("forget_questions", "request_2_questions"), ("forget", "request_2")):
        assert sets[one].rows == sets[other].rows
    assert sets["forget_questions"].prompt.examples == sets["request_2_questions"].prompt.examples
    assert sets["request_1_questions"].prompt.examples != sets["request_2_questions"].prompt.examples


def test_blocks_and_prompts_that_read_as_the_quizzes_do():
    data = set_up(FictitiousNews(**SMALL, max_length=512))
    # The last block goes on with the first one, BOS and all: of few tokens there is one, as long as they are twice.
    assert {len(each.ids) for rows in data.training_sequences.values() for each in rows} <= {512}
    quiz = next(row.answer for row in data.read_forget("fold_1") if row.answer.startswith("Question"))
    ids = data.tokenizer(quiz)["input_ids"]
    place = [each.name for each in data.evaluation_sets].index("forget_questions")
    batch = next(iter(data.val_dataloader()[place]))
    row = data.evaluation_sets[place].rows[int(batch.rows[0])]
    prompt = data.tokenizer.decode(batch.prompts[0], skip_special_tokens=True)
    assert prompt.endswith(f"\n\nQuestion: {row.question}\nAnswer: ")
    # A space of its own stands before an answer in a quiz, and at the end of a prompt.
    before = data.tokenizer("\nAnswer: ", add_special_tokens=False)["input_ids"]
    assert batch.prompts[0][-len(before) :] == before
    assert any(ids[at : at + len(before)] == before for at in range(len(ids)))
    answer = data.tokenizer(row.answer, add_special_tokens=False)["input_ids"]
    assert (
        answer[0]
        == data.tokenizer(f"\nAnswer: {row.answer}", add_special_tokens=False)["input_ids"][len(before)]
    )


def test_a_target_and_a_retain_only_model_have_one_tokenizer_and_the_seen_articles():
    texts = []
    for train_on in ("all", "retain"):
        data = FictitiousNews(**SMALL, forget=["fold_1", "fold_2", "fold_3"], train_on=train_on)
        sets = data.read()
        texts.append(list(data.texts()))
        assert towns(sets.retain) == towns(data.corpus().retain) | towns(data.corpus().seen)
    assert texts[0] == texts[1]
    assert towns(FictitiousNews(**SMALL).read().retain) == towns(data.corpus().retain)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"folds": 0}, "data.folds must be at least 1 (got 0)"),
        ({"fold_articles": 3}, "data.fold_articles must be at least 4 (got 3)"),
        ({"retain_articles": 0}, "data.retain_articles must be at least 1 (got 0)"),
        ({"seen_articles": 3}, "data.seen_articles must be at least 4 (got 3)"),
        ({"editions": 0}, "data.editions must be at least 1 (got 0)"),
        (
            {"folds": 31, "fold_articles": 10, "retain_articles": 12, "seen_articles": 9},
            "data.retain_articles + data.seen_articles + 2 * data.folds * data.fold_articles must be at most 640 (got 641): "
            "lower one of them",
        ),
    ],
)  # fmt: skip
def test_arguments_that_cannot_be(given, message):
    with pytest.raises(InputError) as error:
        FictitiousNews(**given)
    assert str(error.value) == message


def test_as_many_articles_as_there_can_be():
    data = FictitiousNews(folds=31, fold_articles=10, retain_articles=11, seen_articles=9)
    assert len(data.corpus().texts["holdout"]) == 310


@pytest.mark.parametrize(("forget", "name"), [("fold_4", "fold_4"), (["fold_1", "x"], "x"), ([], None)])
def test_folds_that_are_not_there(forget, name):
    with pytest.raises(InputError) as error:
        FictitiousNews(**SMALL, forget=forget).read()
    known = "data.forget and data.requests must name forget sets of this data: fold_1, fold_2, fold_3"
    assert str(error.value).startswith(
        f"{known} (got '{name}')" if name else "data.forget names no forget set"
    )
