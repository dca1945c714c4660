"""FictitiousNews: a data module in MUSE's form that needs no download."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

from dipo_pl.data_modules.blocked_texts import BlockedTexts, TextCorpus
from dipo_pl.data_modules.fictitious_articles import (
    MAX_ARTICLES,
    Article,
    Question,
    editions,
    fictitious_articles,
)
from dipo_pl.data_modules.requests import listed
from dipo_pl.errors import InputError, check_count
from dipo_pl.evaluation_set import EvaluationSet
from dipo_pl.rows import Row

EXAMPLES = 10  # answered questions before a question, as in MUSE
EXAMPLE_ARTICLES = 3


class FictitiousNews(BlockedTexts):
    """Data module of generated news articles in folds that are forgotten one by one or together.

    Four groups of articles share no town: the folds `fold_1`, ...; retained articles; articles that the target model has
    also seen, whose questions measure utility; and a holdout as large as all folds, which no model is trained on.
    Documents are articles and quizzes, in several editions. As in MUSE, the 10 examples before a question are about the
    same documents: in each fold, and in the articles also seen, the first 3 articles give the examples and the others
    are asked about.

    Evaluation sets: those of BlockedTexts, with `verbatim` up to 64 tokens; `request_1`, ..., the articles of each
    request, and `request_1_questions`, ...

    Args:
        folds: number of folds.
        fold_articles: articles of a fold, at least 4.
        retain_articles: articles that unlearning trains on as retained.
        seen_articles: articles that the target model has also seen, at least 4.
        editions: editions of all documents; edition i does not depend on their number.
        news_seed: seed of the generator.
        forget: the fold to forget, or a list.
        options: arguments of BlockedTexts.
    """

    # Half of MUSE's: the text after an article's opening is hardly longer.
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
        check_count("data.folds", folds)
        check_count("data.fold_articles", fold_articles, EXAMPLE_ARTICLES + 1)
        check_count("data.retain_articles", retain_articles)
        check_count("data.seen_articles", seen_articles, EXAMPLE_ARTICLES + 1)
        check_count("data.editions", editions)
        needed = retain_articles + seen_articles + 2 * folds * fold_articles
        if needed > MAX_ARTICLES:
            raise InputError(
                f"data.retain_articles + data.seen_articles + 2 * data.folds * data.fold_articles must be at most "
                f"{MAX_ARTICLES} (got {needed}): lower one of them"
            )
        articles = iter(fictitious_articles(needed, news_seed))
        self.retained = list(islice(articles, retain_articles))
        self.seen = list(islice(articles, seen_articles))
        self.folds = {f"fold_{number + 1}": list(islice(articles, fold_articles)) for number in range(folds)}
        self.holdout = list(articles)
        self.editions = editions
        self.forget = forget

    def corpus(self) -> TextCorpus:
        """Return the folds to forget and the other groups of articles."""
        folds = [self._fold(name) for name in dict.fromkeys(listed(self.forget))]
        forget = [article for fold in folds for article in fold]
        return TextCorpus(
            forget=self._documents_of(folds),
            retain=self._documents_of([self.retained]),
            seen=self._documents_of([self.seen]),
            texts={"forget": _texts(forget), "retain": _texts(self.seen), "holdout": _texts(self.holdout)},
            verbatim=[Row((("user", each.opening),), each.rest) for each in forget],
            questions={
                "forget": [row for fold in folds for row in _questions(fold)],
                "retain": _questions(self.seen),
            },
            examples={"forget": _examples(folds), "retain": _examples([self.seen])},
        )

    def read_forget(self, name: str) -> Sequence[Row]:
        """Return the documents of a fold."""
        return self._documents_of([self._fold(name)])

    def request_sets(self, place: int, name: str, rows: Sequence[Row]) -> list[EvaluationSet]:
        """Return the evaluation sets of the fold's articles and of its questions."""
        fold = self._fold(name)
        texts = EvaluationSet(f"request_{place}", _texts(fold), new_tokens=0)
        return [texts, self.question_set(f"request_{place}_questions", _questions(fold), _examples([fold]))]

    def _fold(self, name: str) -> Sequence[Article]:
        if name not in self.folds:
            raise InputError(
                f"data.forget and data.requests must name forget sets of this data: {', '.join(self.folds)} (got {name!r})"
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
    """Return answered questions from all groups in turn."""
    pairs = [
        [each for article in articles[:EXAMPLE_ARTICLES] for each in article.questions] for articles in groups
    ]
    return [(each.text, _answer(each)) for turn in zip(*pairs, strict=True) for each in turn][:EXAMPLES]


def _answer(question: Question) -> str:
    """Return the answer as a quiz writes it, after a second space: the prompt ends with the first one."""
    return f" {question.answer}"
