"""Fictitious news made on the spot: MUSE's shape without a download."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

from dipo_pl.data_modules.blocked_texts import ANSWER_TOKENS, BlockedTexts
from dipo_pl.data_modules.fictitious_articles import (
    MAX_ARTICLES,
    Article,
    Question,
    editions,
    fictitious_articles,
)
from dipo_pl.data_modules.requests import listed
from dipo_pl.data_modules.text_corpus import TextCorpus
from dipo_pl.errors import InputError
from dipo_pl.evaluation_set import EvaluationSet
from dipo_pl.prompts import FewShot
from dipo_pl.rows import Row

EXAMPLES = 10  # before a question, as MUSE has
EXAMPLE_ARTICLES = 3


class FictitiousNews(BlockedTexts):
    """News that nobody reported elsewhere, in folds that are to be forgotten one by one or together.

    Four kinds of articles share no town: the folds, `fold_1` and so on; those that unlearning shows as retained; those
    that the target has seen besides, whose questions measure utility; and a holdout of as many as all folds have, which
    no model is trained on. Documents are articles and quizzes, in several editions. As in MUSE, the 10
    examples before a question are other pairs of the same documents: the first 3 articles of a fold, and of those seen
    besides, give them, and the other ones are asked about.

    Evaluation sets: those of the base class, `verbatim` up to 64 tokens; of request j `request_j`, its articles, and
    `request_j_questions`.

    Args:
        folds: how many there are.
        fold_articles: of each, at least 4.
        retain_articles: shown as retained.
        seen_articles: that the target has seen besides, at least 4.
        editions: of all documents; the first ones are the same however many there are.
        news_seed: another seed, other news.
        forget: the fold to be forgotten, or several.
        options: of the base class.
    """

    # Half of MUSE's: what follows an article's opening is hardly longer.
    verbatim_tokens = 64

    def __init__(
        self,
        folds: int = 4,
        fold_articles: int = 9,
        retain_articles: int = 12,
        seen_articles: int = 9,
        editions: int = 24,
        news_seed: int = 0,
        forget: str | list[str] = "fold_1",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        fewest = {
            "folds": (folds, 1),
            "fold_articles": (fold_articles, EXAMPLE_ARTICLES + 1),
            "retain_articles": (retain_articles, 1),
            "seen_articles": (seen_articles, EXAMPLE_ARTICLES + 1),
            "editions": (editions, 1),
        }
        for name, (value, least) in fewest.items():
            if value < least:
                raise InputError(f"data.{name} must be at least {least}, got {value}")
        in_folds = folds * fold_articles
        needed = retain_articles + seen_articles + 2 * in_folds
        if needed > MAX_ARTICLES:
            raise InputError(
                f"data.retain_articles {retain_articles}, data.seen_articles {seen_articles} and twice data.folds {folds} "
                f"of data.fold_articles {fold_articles} make {needed} articles, and there are {MAX_ARTICLES}: lower them"
            )
        articles = iter(fictitious_articles(needed, news_seed))
        self.retained = list(islice(articles, retain_articles))
        self.seen = list(islice(articles, seen_articles))
        self.folds = {
            f"fold_{number}": list(islice(articles, fold_articles)) for number in range(1, folds + 1)
        }
        self.holdout = list(articles)
        self.editions = editions
        self.forget = forget

    def corpus(self) -> TextCorpus:
        folds = [self._fold(name) for name in dict.fromkeys(listed(self.forget))]
        return TextCorpus(
            forget=self._documents_of(folds),
            retain=self._documents_of([self.retained]),
            seen=self._documents_of([self.seen]),
            texts={
                "forget": [row for fold in folds for row in _texts(fold)],
                "retain": _texts(self.seen),
                "holdout": _texts(self.holdout),
            },
            verbatim=[Row((("user", each.opening),), each.rest) for fold in folds for each in fold],
            questions={
                "forget": [row for fold in folds for row in _questions(fold)],
                "retain": _questions(self.seen),
            },
            examples={"forget": _examples(folds), "retain": _examples([self.seen])},
        )

    def read_forget(self, name: str) -> Sequence[Row]:
        return self._documents_of([self._fold(name)])

    def request_sets(self, place: int, name: str, rows: Sequence[Row]) -> list[EvaluationSet]:
        fold = self._fold(name)
        questions = EvaluationSet(
            f"request_{place}_questions",
            _questions(fold),
            prompt=FewShot(_examples([fold])),
            new_tokens=ANSWER_TOKENS,
        )
        return [EvaluationSet(f"request_{place}", _texts(fold), new_tokens=0), questions]

    def _fold(self, name: str) -> Sequence[Article]:
        if name not in self.folds:
            raise InputError(
                f"data.forget or data.requests names {name!r}; this data has {', '.join(self.folds)}"
            )
        return self.folds[name]

    def _documents_of(self, groups: Sequence[Sequence[Article]]) -> list[Row]:
        return [Row((), each) for each in editions(groups, self.editions)]


def _texts(articles: Sequence[Article]) -> list[Row]:
    return [Row((), each.text) for each in articles]


def _questions(articles: Sequence[Article]) -> list[Row]:
    asked = (each for article in articles[EXAMPLE_ARTICLES:] for each in article.questions)
    return [Row((("user", each.text),), _answer(each)) for each in asked]


def _examples(groups: Sequence[Sequence[Article]]) -> list[tuple[str, str]]:
    """From all groups in turn."""
    pairs = [
        [each for article in articles[:EXAMPLE_ARTICLES] for each in article.questions] for articles in groups
    ]
    return [(each.text, _answer(each)) for turn in zip(*pairs, strict=True) for each in turn][:EXAMPLES]


def _answer(question: Question) -> str:
    """As a quiz has it: behind a second space, the first one being the prompt's."""
    return f" {question.answer}"
