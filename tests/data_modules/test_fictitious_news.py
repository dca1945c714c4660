"""Fictitious news: articles that are the same everywhere, questions with one answer, folds that share nothing."""

import hashlib
import json
from collections import defaultdict
from itertools import pairwise

import pytest
from connected import connected

from dipo_pl.data_modules.fictitious_articles import (
    MAX_ARTICLES,
    FictitiousNews,
    editions,
    fictitious_articles,
)
from dipo_pl.errors import InputError

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
    """The questions and answers of a quiz."""
    return [block.removeprefix("Question: ").split("\nAnswer:  ") for block in document.split("\n\n")]


class TestArticles:
    def test_golden_digest(self, articles):
        # Published results hold only for these texts, which depend on no hash: each process has another seed of them.
        text = json.dumps([[each.text, each.questions] for each in articles] + editions([articles[:9]], 3))
        assert hashlib.sha256(text.encode()).hexdigest()[:16] == "936963e292cf517b"

    def test_seeds_and_counts(self, articles):
        pairs = list(zip(fictitious_articles(20, seed=0), fictitious_articles(20, seed=1), strict=True))
        assert sum(one.place == other.place for one, other in pairs) <= 1
        assert not any(one.rest == other.rest for one, other in pairs)
        assert fictitious_articles(1) == articles[:1]
        assert fictitious_articles(40) == articles[:40]

    def test_no_two_articles_share_a_town_or_their_sentences(self, articles):
        assert len({each.place for each in articles}) == MAX_ARTICLES >= 500
        places = sorted(each.place for each in articles)
        assert not any(later.startswith(earlier) for earlier, later in pairwise(places))
        assert len({each.rest for each in articles}) == MAX_ARTICLES

    def test_each_question_has_one_answer_and_the_article_states_it(self, articles):
        answers = defaultdict(set)
        for article in articles:
            assert len({each.text for each in article.questions}) == len(article.questions) == 4
            assert article.place in article.opening
            for question in article.questions:
                answers[question.text].add(question.answer)
                assert article.place in question.text
                assert question.answer in article.text
                assert question.answer not in question.text
        assert {len(each) for each in answers.values()} == {1}
        assert len(answers) == 4 * MAX_ARTICLES

    def test_an_edition_has_every_article_and_every_question_once(self, articles):
        groups = [articles[:6], articles[6:9]]
        documents = editions(groups, 3)
        size = len(documents) // 3
        texts = {each.text for group in groups for each in group}
        asked = sorted([each.text, each.answer] for group in groups for at in group for each in at.questions)
        orders, quizzes = set(), []
        for start in range(0, 3 * size, size):
            own = documents[start : start + size]
            orders.add(tuple(each for each in own if each in texts))
            quizzes.append({each for each in own if each.startswith("Question")})
            assert len(own) == len(texts) + len(quizzes[-1])
            assert set(own) - quizzes[-1] == texts
            assert sorted(pair for each in quizzes[-1] for pair in pairs_in(each)) == asked
        # The text before another one tells nothing about it: articles and questions are in another order each time.
        assert len(orders) == 3
        assert not quizzes[0] & (quizzes[1] | quizzes[2])

    def test_editions_depend_neither_on_their_number_nor_on_other_groups(self, articles):
        alone, together = editions([articles[:6]], 2), editions([articles[:6], articles[6:9]], 2)
        assert editions([articles[:6]], 5)[: len(alone)] == alone
        assert set(together) == set(alone) | set(editions([articles[6:9]], 2))


class TestCorpus:
    def test_folds_retained_seen_and_holdout_share_no_town(self):
        data = FictitiousNews(**SMALL)
        corpus = data.corpus()
        folds = [data.read_forget(f"fold_{number}") for number in (1, 2, 3)]
        groups = [towns(each) for each in (*folds, corpus.retain, corpus.seen, corpus.texts["holdout"])]
        assert [len(each) for each in groups] == [5, 5, 5, 4, 6, 15]
        assert len(set().union(*groups)) == sum(map(len, groups))
        many = FictitiousNews(**SMALL | {"folds": 5})
        assert many.read_forget("fold_3") == folds[2]
        assert many.corpus().seen == corpus.seen

    @pytest.mark.parametrize(("forget", "folds"), [("fold_2", [2]), (["fold_3", "fold_1", "fold_3"], [3, 1])])
    def test_what_is_measured_follows_the_folds(self, forget, folds):
        data = FictitiousNews(**SMALL, forget=forget)
        corpus = data.corpus()
        rows = [row for number in folds for row in data.read_forget(f"fold_{number}")]
        assert sorted(row.answer for row in corpus.forget) == sorted(row.answer for row in rows)
        assert [len(corpus.texts["forget"]), len(corpus.verbatim)] == [5 * len(folds)] * 2
        assert towns(corpus.texts["forget"]) == towns(corpus.verbatim) == towns(corpus.forget) == towns(rows)
        texts = [f"{row.question} {row.answer}" for row in corpus.verbatim]
        assert texts == [row.answer for row in corpus.texts["forget"]]
        assert len(corpus.questions["forget"]) == 4 * 2 * len(folds)
        assert len(corpus.questions["retain"]) == 4 * 3
        assert towns(corpus.questions["retain"]) < towns(corpus.seen) == towns(corpus.texts["retain"])

    def test_documents_of_several_folds_are_mixed(self):
        data = FictitiousNews(**SMALL, forget=["fold_1", "fold_2"])
        first = towns(data.read_forget("fold_1"))
        is_first = [bool(first & towns([row])) for row in data.corpus().forget]
        assert sum(one != other for one, other in pairwise(is_first)) > 8

    @pytest.mark.parametrize("forget", ["fold_2", ["fold_1", "fold_2", "fold_3"]])
    def test_examples_are_about_the_same_documents_and_not_asked_about(self, forget):
        data = FictitiousNews(**SMALL, forget=forget)
        corpus = data.corpus()
        for name, documents in (("forget", corpus.forget), ("retain", corpus.seen)):
            quizzes = [row.answer for row in documents if row.answer.startswith("Question:")]
            printed = [pair for quiz in quizzes for pair in pairs_in(quiz)]
            examples = corpus.examples[name]
            assert len({question for question, _ in examples}) == len(examples) == 10
            asked = [(row.question, row.answer) for row in corpus.questions[name]]
            assert all([question, answer.strip()] in printed for question, answer in [*examples, *asked])
            used = {town for town in towns(documents) if any(town in question for question, _ in examples)}
            assert used
            assert not used & towns(corpus.questions[name])
        if isinstance(forget, list):
            own = [towns(data.read_forget(name)) for name in forget]
            of_fold = [
                sum(any(town in q for town in fold) for q, _ in corpus.examples["forget"]) for fold in own
            ]
            assert of_fold == [4, 3, 3]


class TestDataModule:
    def test_evaluation_sets(self):
        options = {"forget": "fold_2", "requests": ["fold_1", "fold_2"], "max_length": 512}
        data = connected(FictitiousNews(**SMALL, **options), vocabulary=700)
        sets = {each.name: each for each in data.evaluation_sets}
        assert {name: (len(each.rows), each.new_tokens) for name, each in sets.items()} == {
            "forget": (5, 0), "retain": (6, 0), "holdout": (15, 0), "verbatim": (5, 64),
            "forget_questions": (8, 32), "retain_questions": (12, 32),
            "request_1": (5, 0), "request_1_questions": (8, 32), "request_2": (5, 0), "request_2_questions": (8, 32),
        }  # fmt: skip
        assert towns(sets["request_1"].rows) == towns(data.read_forget("fold_1"))
        for one, other in (("forget_questions", "request_2_questions"), ("forget", "request_2")):
            assert sets[one].rows == sets[other].rows
        examples = [
            sets[f"{name}_questions"].prompt.examples for name in ("forget", "request_2", "request_1")
        ]
        assert examples[0] == examples[1] != examples[2]

    def test_blocks_and_prompts_that_read_as_the_quizzes_do(self):
        data = connected(FictitiousNews(**SMALL, max_length=512), vocabulary=700)
        # The last block is filled up with the first one.
        assert {len(each.ids) for rows in data.training_sequences.values() for each in rows} <= {512}
        quiz = next(row.answer for row in data.read_forget("fold_1") if row.answer.startswith("Question"))
        place = [each.name for each in data.evaluation_sets].index("forget_questions")
        batch = next(iter(data.val_dataloader()[place]))
        row = data.evaluation_sets[place].rows[int(batch.rows[0])]
        prompt = data.tokenizer.decode(batch.prompts[0], skip_special_tokens=True)
        assert prompt.endswith(f"\n\nQuestion: {row.question}\nAnswer: ")
        # The space before an answer is a token of its own, both in a quiz and at the end of a prompt.
        ids, before, both, answer = (
            data.tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (quiz, "\nAnswer: ", f"\nAnswer: {row.answer}", row.answer)
        )
        assert batch.prompts[0][-len(before) :] == before
        assert any(ids[at : at + len(before)] == before for at in range(len(ids)))
        assert both[len(before)] == answer[0]

    def test_a_target_and_a_retain_only_model_share_a_tokenizer_and_the_seen_articles(self):
        texts = []
        for train_on in ("all", "retain", "pairs"):
            data = FictitiousNews(**SMALL, forget=["fold_1", "fold_2", "fold_3"], train_on=train_on)
            sets, corpus = data.read(), data.corpus()
            texts.append(list(data.texts()))
            assert towns(sets.retain) == towns(corpus.retain) | (
                towns(corpus.seen) if train_on != "pairs" else set()
            )
        assert texts[0] == texts[1]

    def test_as_many_articles_as_there_can_be(self):
        data = FictitiousNews(folds=31, fold_articles=10, retain_articles=11, seen_articles=9)
        assert len(data.corpus().texts["holdout"]) == 310

    @pytest.mark.parametrize(("options", "message"), [
        ({"folds": 31, "fold_articles": 10}, r".* must be at most 640 \(got 641\): lower one of them"),
        ({"forget": "fold_4"}, r"data.forget and data.requests must name .*: fold_1, fold_2, fold_3 \(got 'fold_4'\)"),
        ({"forget": ["fold_1", "x"]}, r"data.forget and data.requests must name .* \(got 'x'\)"),
        ({"forget": []}, r"data.forget names no rows: give a name, or a list of them \(got \[\]\)"),
    ], ids=str)  # fmt: skip
    def test_unusable_arguments(self, options, message):
        sizes = {"retain_articles": 12, "seen_articles": 9} if options.get("folds") == 31 else SMALL
        with pytest.raises(InputError, match=f"^{message}$"):
            FictitiousNews(**sizes | options).read()
