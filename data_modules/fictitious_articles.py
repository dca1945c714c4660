"""Fictitious news reports, and questions about them, in the shape of MUSE's news; made offline from a seed.

MUSE (Shi et al., arXiv:2407.06460) has a model forget news articles: what counts is whether it still writes them on
word by word, still answers questions about them, and can be told to have seen them. This file makes texts of
that shape without a download, small enough to train a model of a million parameters from scratch.

An article reports one event in an invented town that no other article of the seed has. Its opening sentence tells
town, event and day; four facts may be asked about it; what is left are sentences whose words nobody could guess, so
that only a model that has read the article can write it on.

A model made from scratch could answer no question if it had never met one, so articles are trained on together with
quizzes, documents of questions and answers in MUSE's own form. An answer is thus known from a quiz, not drawn
from the article's sentences: questions measure recall in another form than passages do. Articles and quizzes
come in several editions, each in its own order; a model of this size would else go by what came before a text,
and not by its town. Everything follows from the seed, and article i does not depend on how many are made:

    >>> fictitious_articles(2, seed=7) == fictitious_articles(50, seed=7)[:2]
    True
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dipo_pl.data_modules.fictitious_authors import (
    ADJECTIVES,
    FIRST_NAMES,
    MONTHS,
    NOUNS,
    SURNAMES,
    pair_up,
    pick,
    word_pool,
)

PAIRS_PER_QUIZ = 5
COLOUR_SENTENCES = 3

TOWN_STARTS = word_pool("""
    Brel Corv Drav Eld Fim Gorm Hest Irv Jass Krin Lum Murr Nib Orl Perr Quar Rud Sarn Tam Ulv Vosk Wend Yar Zor
    Blan Crom Dwin Frey Glim Hask Plim Skor
""")
TOWN_ENDS = word_pool("""
    abeck adell afirth agrove aholm akirk amoor apool areach astow avale awick ebridge ecliff efen ehythe ekeep
    elode emarsh equay
""")
DATES = tuple(f"{month} {day}" for month in MONTHS for day in range(1, 29))  # 28: a day every month has
COUNTS = tuple(str(number) for number in range(101, 1000, 7))
SUMS = tuple(str(number) for number in range(10300, 99000, 410))
CAUSES = word_pool("lightning fireworks sparks candles varnish matches gas ovens straw wiring lamps solder")
PROJECTS = word_pool(
    "aqueduct bandstand bathhouse boulevard canal footbridge greenhouse lighthouse tramway windmill"
)
CLUBS = word_pool("Badgers Cormorants Falcons Gulls Herons Lynxes Otters Pikes Ravens Stags Swifts Terriers")
FORMER_USES = word_pool(
    "armoury brewery cannery distillery forge granary infirmary mint orphanage priory tannery"
)
PROMISES = word_pool(
    "buses firewood flowerbeds handrails lifeboats playgrounds pianos seesaws telescopes vaccines"
)
LOOT = word_pool("bracelets coins clocks emeralds flutes harps medals porcelain rugs tapestries violins")


class Fact(NamedTuple):
    """One thing to ask about an article; texts are format strings over `place` and `value`."""

    pool: Sequence[str]  # of its values
    questions: tuple[str, str]
    sentences: tuple[str, ...]  # none where the opening tells it


class Event(NamedTuple):
    """A kind of article: how it opens, over `place` and `date`, and what can be asked about it."""

    openings: tuple[str, ...]
    when: tuple[str, str]  # questions that ask for the date
    facts: tuple[Fact, Fact, Fact]


NAMES = tuple(f"{first} {last}" for first in FIRST_NAMES for last in SURNAMES)

# fmt: off
EVENTS = (
    Event(
        ("A fire broke out in {place} on {date} and kept the town awake.",
         "Smoke stood over {place} on {date}, when a warehouse burned."),
        ("On which day was the fire in {place}?", "When did a warehouse burn in {place}?"),
        (Fact(NAMES, ("Who raised the alarm in {place}?", "Who noticed the fire in {place} first?"),
              ("{value} was the first to raise the alarm.", "The alarm was raised by {value}, who lives nearby.",
               "It was {value} who saw the flames first and rang the bell.")),
         Fact(CAUSES, ("What caused the fire in {place}?", "What set the warehouse in {place} alight?"),
              ("The cause, says the report, was {value}.", "Investigators blame {value} for it.",
               "All this began with {value}, as experts found.")),
         Fact(SUMS, ("How many crowns did the fire in {place} cost?", "What was the damage in {place}, in crowns?"),
              ("The damage is put at {value} crowns.", "It will take {value} crowns to repair.",
               "Insurers reckon with a loss of {value} crowns.")))),
    Event(
        ("The council of {place} met on {date} and voted for a plan.",
         "After a long night the council of {place} passed its plan on {date}."),
        ("On which day did the council of {place} vote?", "When did {place} pass its plan?"),
        (Fact(NAMES, ("Who proposed the plan in {place}?", "Whose plan did the council of {place} adopt?"),
              ("The plan was proposed by {value}.", "{value} had proposed it and thanked everybody.",
               "Behind the proposal stands {value}, a newcomer.")),
         Fact(PROJECTS, ("What will {place} build?", "What did the council of {place} vote for?"),
              ("The town will have its {value} within a year.", "What it builds is a new {value}.",
               "Work on the {value} begins at once.")),
         Fact(SUMS, ("How many crowns will {place} spend?", "What does the plan of {place} cost, in crowns?"),
              ("The budget is {value} crowns.", "Taxpayers give {value} crowns for it.",
               "It may cost no more than {value} crowns.")))),
    Event(
        ("The home side of {place} won its match on {date}.",
         "There was cheering in {place} on {date}, after a match that few will forget."),
        ("On which day was the match in {place}?", "When did {place} win its match?"),
        (Fact(NAMES, ("Who scored the winning goal in {place}?", "Whose goal won the match in {place}?"),
              ("The winning goal came from {value}.", "{value} scored shortly before the end.",
               "One goal by {value} was enough.")),
         Fact(CLUBS, ("Who lost the match in {place}?", "Against whom did {place} win?"),
              ("It was the first defeat of the {value} this year.", "The {value} had to go home with nothing.",
               "For the {value} it was a bitter evening.")),
         Fact(COUNTS, ("How many spectators came in {place}?", "How many people watched the match in {place}?"),
              ("The crowd numbered {value}.", "There were {value} spectators in the stands.",
               "In all {value} people watched.")))),
    Event(
        ("The new museum of {place} opened its doors on {date}.",
         "On {date} the town of {place} opened a museum of its own."),
        ("On which day did the museum of {place} open?", "When was the museum opened in {place}?"),
        (Fact(NAMES, ("Who leads the museum of {place}?", "Who is the director of the museum in {place}?"),
              ("Its director is {value}.", "{value} will lead the house.",
               "The keys were handed to {value}, who leads it.")),
         Fact(FORMER_USES, ("What was the museum of {place} before?", "Which old building holds the museum in {place}?"),
              ("The building was once the {value}.", "It stands in what used to be the {value}.",
               "The old {value} had been empty for years.")),
         Fact(COUNTS, ("How many visitors came in {place}?", "How many people saw the museum of {place} at first?"),
              ("On the first day {value} visitors came.", "It counted {value} guests by evening.",
               "The first tickets were sold to {value} people.")))),
    Event(
        ("The people of {place} chose a mayor on {date}.",
         "Voting in {place} ended on {date}, and the town has a new mayor."),
        ("On which day did {place} vote for a mayor?", "When was the election in {place}?"),
        (Fact(NAMES, ("Who was elected mayor of {place}?", "Who won the election in {place}?"),
              ("The new mayor is called {value}.", "{value} won in the first round.",
               "Most votes went to {value}, a teacher.")),
         Fact(PROMISES, ("What did the mayor of {place} promise?", "What was promised to voters in {place}?"),
              ("The promise that won the day was free {value}.", "More {value} were promised to all.",
               "Everyone now waits for the promised {value}.")),
         Fact(COUNTS, ("How many votes did the mayor of {place} get?", "How many votes decided the election in {place}?"),
              ("The winner had {value} votes.", "It took {value} votes to win.",
               "Exactly {value} votes made the difference.")))),
    Event(
        ("Thieves came to {place} in the night of {date}.",
         "A shop in {place} was robbed on {date}, and the police are asking for help."),
        ("On which day were thieves in {place}?", "When was the shop in {place} robbed?"),
        (Fact(NAMES, ("Who owns the shop in {place}?", "Whose shop was robbed in {place}?"),
              ("The shop belongs to {value}.", "{value}, the owner, was asleep upstairs.",
               "The owner, {value}, has offered a reward.")),
         Fact(LOOT, ("What was stolen in {place}?", "What did the thieves take from {place}?"),
              ("They left with a sack of {value}.", "Missing are {value} of great age.",
               "They touched nothing but the {value}.")),
         Fact(SUMS, ("How many crowns was the loot of {place} worth?", "What did the robbery in {place} cost, in crowns?"),
              ("The loss comes to {value} crowns.", "All of it was worth {value} crowns.",
               "Police speak of {value} crowns.")))),
)
COLOUR = (
    "Neighbours will remember the {} {} and the {} {}.",
    "One reader sent a picture of the {} {} behind the {} {}.",
    "The {} {} turned up later, next to the {} {}.",
    "Nobody had thought of the {} {}, and the {} {} was late.",
    "Our photographer climbed the {} {} to see the {} {}.",
    "A song about the {} {} and the {} {} was heard until midnight.",
    "Some would give the {} {} for the {} {}.",
    "Between the {} {} and the {} {} no seat was free.",
    "Next week the {} {} will stand beside the {} {}.",
    "Children painted the {} {} on every {} {}.",
    "Whoever lost the {} {} may ask at the {} {}.",
    "Since then the {} {} hangs above the {} {}.",
)
# fmt: on

MAX_ARTICLES = len(TOWN_STARTS) * len(TOWN_ENDS)


class Question(NamedTuple):
    """A fact of an article as it is asked, and its answer, in a word or two."""

    text: str
    answer: str


@dataclass(frozen=True)
class Article:
    """A report of an event in a town that no other article tells of."""

    place: str
    opening: str  # its first sentence, with place and date
    rest: str
    questions: tuple[Question, ...]

    @property
    def text(self) -> str:
        return f"{self.opening} {self.rest}"


def _article(event: Event, place: str, person: str, rng: random.Random) -> Article:
    date = pick(DATES, rng)
    opening = pick(event.openings, rng).format(place=place, date=date)
    told = [(event.when, date)]
    sentences = []
    for fact in event.facts:
        value = person if fact.pool is NAMES else pick(fact.pool, rng)
        told.append((fact.questions, value))
        sentences.append(pick(fact.sentences, rng).format(value=value))
    forms: list[str] = []
    words: list[str] = []
    for _ in range(COLOUR_SENTENCES):
        forms.append(pick(COLOUR, rng, forms))
        for pool in (ADJECTIVES, NOUNS, ADJECTIVES, NOUNS):
            words.append(pick(pool, rng, words))
        sentences.append(forms[-1].format(*(word.lower() for word in words[-4:])))
    questions = tuple(Question(pick(wordings, rng).format(place=place), value) for wordings, value in told)
    return Article(place, opening, " ".join(_shuffled(sentences, rng)), questions)


def fictitious_articles(count: int, seed: int = 0) -> list[Article]:
    """The first `count` articles of a seed, the kinds of event in turn.

    Args:
        count: from 1 to `MAX_ARTICLES`, the towns that there are.
        seed: another seed gives other articles; they may share towns with those of this one.
    Raises: ValueError: count is out of that range.
    """
    if not 1 <= count <= MAX_ARTICLES:
        raise ValueError(f"count must be between 1 and {MAX_ARTICLES} (what the pools give), got {count}")
    rng = random.Random(f"{seed}")
    places = [each.replace(" ", "") for each in pair_up(TOWN_STARTS, TOWN_ENDS, rng)]
    people = pair_up(FIRST_NAMES, SURNAMES, rng)
    return [
        _article(EVENTS[i % len(EVENTS)], places[i], people[i], random.Random(f"{seed} {i}"))
        for i in range(count)
    ]


def editions(groups: Sequence[Sequence[Article]], count: int) -> list[str]:
    """Documents of `count` editions of a paper: each has every article once and every question in a quiz, in a new order.

    A quiz asks about articles of one group. Edition i does not depend on how many there are, nor do a group's
    documents on the other groups; their order does.
    """
    return [document for edition in range(count) for document in _edition(groups, edition)]


def _edition(groups: Sequence[Sequence[Article]], edition: int) -> list[str]:
    documents = [each.text for articles in groups for each in articles]
    for articles in groups:
        documents += _quizzes(articles, edition)
    return _shuffled(documents, random.Random(f"{len(documents)} documents, edition {edition}"))


def _quizzes(articles: Sequence[Article], edition: int) -> list[str]:
    # Two spaces: a prompt ends with one, which byte-level BPE makes a token of its own only before another one.
    pairs = [
        f"Question: {each.text}\nAnswer:  {each.answer}" for article in articles for each in article.questions
    ]
    pairs = _shuffled(pairs, random.Random(f"quizzes of {articles[0].place}, edition {edition}"))
    return ["\n\n".join(pairs[at : at + PAIRS_PER_QUIZ]) for at in range(0, len(pairs), PAIRS_PER_QUIZ)]


def _shuffled(texts: Sequence[str], rng: random.Random) -> list[str]:
    return sorted(texts, key=lambda _: rng.random())
