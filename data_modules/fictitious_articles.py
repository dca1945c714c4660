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
from typing import Any, NamedTuple

from dipo_pl.data_modules import fictitious_authors as authors
from dipo_pl.data_modules.fictitious_authors import pair_up, pick
from dipo_pl.errors import check_number

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

    Args:
        count: from 1 to `MAX_ARTICLES`, the number of towns.
        seed: other seeds give other articles, some of whose towns may be the same.

    Raises:
        InputError: `count` is out of range.
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
