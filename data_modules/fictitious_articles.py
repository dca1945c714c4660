"""Generator of fictitious news articles and questions about them, in the shape of MUSE-News.

MUSE (Shi et al., arXiv:2407.06460) measures whether a model still continues news articles word by word, still answers
questions about them, and still gives away that it has seen them. This module generates such texts offline from a seed,
small enough to train a model of a million parameters from scratch.

An article reports one event in an invented town that no other article of the seed has. Its opening sentence states
town, event and day, and four facts can be asked about it. The other sentences are made of words that nobody can guess,
so that only a model that has read the article can continue it.

A model trained from scratch answers no question if it has never seen one. Articles are therefore trained on together
with quizzes, documents of questions and answers in MUSE's prompt format. Both come in several editions, each in its own
order: models of this size would otherwise rely on the text before an article, and not on its town. The words and
sentences are in fictitious_articles.toml. Article i does not depend on how many articles are generated:

    >>> fictitious_articles(2, seed=7) == fictitious_articles(50, seed=7)[:2]
    True
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from dipo_pl.data_modules import fictitious_authors as authors
from dipo_pl.data_modules.blocked_texts import BlockedTexts, TextCorpus
from dipo_pl.data_modules.fictitious_authors import pair_up, pick
from dipo_pl.data_modules.requests import listed
from dipo_pl.errors import InputError, check_count, check_number
from dipo_pl.evaluation_set import EvaluationSet
from dipo_pl.rows import Row

PAIRS_PER_QUIZ = 5
COLOR_SENTENCES = 3

_TABLES, POOLS = authors.read_tables("fictitious_articles.toml")
POOLS |= {
    "counts": tuple(str(number) for number in range(101, 1000, 7)),
    "sums": tuple(str(number) for number in range(10300, 99000, 410)),
}
EVENTS: list[dict[str, Any]] = _TABLES["events"]
MAX_ARTICLES = len(POOLS["town_starts"]) * len(POOLS["town_ends"])


class Question(NamedTuple):
    """A question about an article and its answer in one or two words."""

    text: str
    answer: str


@dataclass(frozen=True)
class Article:
    """A report of an event in a town that no other article names.

    Attributes:
        place: the town.
        opening: the first sentence, with place and date.
        rest: all other sentences.
        questions: four questions and answers.
    """

    place: str
    opening: str
    rest: str
    questions: tuple[Question, ...]

    @property
    def text(self) -> str:
        """The whole article."""
        return f"{self.opening} {self.rest}"


def _article(event: dict[str, Any], place: str, person: str, rng: random.Random) -> Article:
    date = pick(authors.days(), rng)
    opening = pick(event["openings"], rng).format(place=place, date=date)
    asked = [(event["when"], date)]
    sentences = []
    for fact in event["facts"]:
        value = person if fact["pool"] == "names" else pick(POOLS[fact["pool"]], rng)
        asked.append((fact["questions"], value))
        sentences.append(pick(fact["sentences"], rng).format(value=value))
    forms: list[str] = []
    words: list[str] = []
    for _ in range(COLOR_SENTENCES):
        forms.append(pick(_TABLES["color"], rng, forms))
        for pool in ("adjectives", "nouns", "adjectives", "nouns"):
            words.append(pick(authors.POOLS[pool], rng, words))
        sentences.append(forms[-1].format(*(word.lower() for word in words[-4:])))
    questions = tuple(Question(pick(wordings, rng).format(place=place), value) for wordings, value in asked)
    return Article(place, opening, " ".join(_shuffled(sentences, rng)), questions)


def fictitious_articles(count: int, seed: int = 0) -> list[Article]:
    """Generate the first `count` articles of a seed, cycling through the kinds of event.

    Articles of different seeds may share towns.

    Raises:
        InputError: `count` is not in 1 to `MAX_ARTICLES`, the number of towns.
    """
    check_number("count", count, minimum=1, maximum=MAX_ARTICLES)
    rng = random.Random(f"{seed}")
    places = [each.replace(" ", "") for each in pair_up(POOLS["town_starts"], POOLS["town_ends"], rng)]
    people = pair_up(authors.POOLS["first_names"], authors.POOLS["surnames"], rng)
    return [
        _article(EVENTS[i % len(EVENTS)], places[i], people[i], random.Random(f"{seed} {i}"))
        for i in range(count)
    ]


def editions(groups: Sequence[Sequence[Article]], count: int) -> list[str]:
    """Return the documents of `count` editions, each with every article and every question once, in a new order.

    A quiz asks about the articles of one group. Edition i does not depend on `count`, and a group's documents do not
    depend on the other groups, but for their order.
    """
    return [document for edition in range(count) for document in _edition(groups, edition)]


def _edition(groups: Sequence[Sequence[Article]], edition: int) -> list[str]:
    documents = [each.text for articles in groups for each in articles]
    for articles in groups:
        documents += _quizzes(articles, edition)
    return _shuffled(documents, random.Random(f"{len(documents)} documents, edition {edition}"))


def _quizzes(articles: Sequence[Article], edition: int) -> list[str]:
    # Two spaces: a prompt ends with one, which byte-level BPE keeps as a separate token only before another space.
    pairs = [
        f"Question: {each.text}\nAnswer:  {each.answer}" for article in articles for each in article.questions
    ]
    pairs = _shuffled(pairs, random.Random(f"quizzes of {articles[0].place}, edition {edition}"))
    return ["\n\n".join(pairs[at : at + PAIRS_PER_QUIZ]) for at in range(0, len(pairs), PAIRS_PER_QUIZ)]


def _shuffled(texts: Sequence[str], rng: random.Random) -> list[str]:
    return sorted(texts, key=lambda _: rng.random())


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
        for name, value in {"folds": folds, "retain_articles": retain_articles, "editions": editions}.items():
            check_count(f"data.{name}", value)
        check_count("data.fold_articles", fold_articles, EXAMPLE_ARTICLES + 1)
        check_count("data.seen_articles", seen_articles, EXAMPLE_ARTICLES + 1)
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
        asked = [row for fold in folds for row in _questions(fold)]
        return TextCorpus(
            forget=self._documents_of(folds),
            retain=self._documents_of([self.retained]),
            seen=self._documents_of([self.seen]),
            texts={"forget": _texts(forget), "retain": _texts(self.seen), "holdout": _texts(self.holdout)},
            verbatim=[Row((("user", each.opening),), each.rest) for each in forget],
            questions={"forget": asked, "retain": _questions(self.seen)},
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
