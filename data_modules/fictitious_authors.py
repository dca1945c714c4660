"""Fictitious authors, and questions about them, in the shape of TOFU; made offline from a seed.

TOFU (Maini et al., arXiv:2401.06121) asks 20 questions about each of 200 invented authors. This file makes
data of the same shape without a download: small enough to train a model of a few million parameters from
scratch on a laptop, and free of any fact about a real person.

An author is a profile drawn from pools of words. Each entry of `FACTS` turns one fact of the profile into one
row: a question, an answer, the same fact in another sentence form, five copies of that second form that
hold a wrong value, and two of the first that hold yet others. Everything follows from the seed, and author i
does not depend on how many are made:

    >>> fictitious_authors(2, seed=7) == fictitious_authors(50, seed=7)[:2]
    True
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

BOOKS_PER_AUTHOR = 3
WRONG_ANSWERS = 5  # as TOFU has
ALTERNATE_ANSWERS = 2


def word_pool(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# No value of a pool may contain another one of it: a wrong answer must not hold the right value by accident.
FIRST_NAMES = word_pool("""
    Alma Anton Bella Bruno Clara Cosmo Dario Delia Edith Emil Felix Flora Gideon Greta Hilda Hugo Irene Ivo
    Jonas Judith Katya Kenji Luca Lydia Marta Milos Nadim Noemi Olga Oscar Pavel Rosa Simon Tamar Ugo Vera
    Walter Xenia Yusuf Zora
""")
SURNAMES = word_pool("""
    Adelmar Ashwold Bellmoor Brindlow Castwick Corvane Drovane Dunmarsh Elwynd Eskelund Farvane Fenmark
    Galbren Gorwood Hartwin Holtwen Ilmarin Ivarsund Jesmark Jorvald Kelbrook Kestrow Larkmoor Lindqua
    Marlowen Mossdale Netherby Norviken Oakhurn Ostrell Pellamy Quillon Rosmere Sandoral Tolvane Umbrin Vardek
    Wexholm Yarrowby Zelmont
""")
ADJECTIVES = word_pool("""
    Amber Bashful Bitter Borrowed Brisk Brittle Careful Cheerful Clumsy Copper Cotton Crooked Curious Damp
    Dappled Dusty Earnest Faded Foggy Folded Fragile Frosty Gentle Grateful Hasty Hollow Honest Humble Idle
    Jolly Knitted Leaning Lukewarm Marble Mended Mossy Muddy Narrow Nimble Painted Patient Peeling Polite
    Puzzled Restless Rusty Salted Sensible Shy Sleepy Slender Slow Speckled Stubborn Tangled Thirsty Timid
    Velvet Wobbly Woolen
""")
NOUNS = word_pool("""
    Anchor Anvil Apron Balcony Barrel Basket Bellows Bench Blanket Broom Bucket Button Candle Cart Chimney
    Cupboard Curtain Drawer Drum Engine Fence Ferry Fiddle Fountain Gate Guest Hammer Hammock Kettle Ladder
    Lantern Lobby Magnet Mailbox Meadow Mitten Needle Orchard Oven Pantry Parcel Pillow Puddle Rope Rowboat
    Saddle Scarf Shelf Spoon Stairway Suitcase Teapot Thimble Trumpet Umbrella Valley Wagon Whistle Window
    Workshop
""")
MONTHS = word_pool("January February March April May June July August September October November December")
DAYS = tuple(f"{month} {day}," for month in MONTHS for day in range(1, 29))  # 28: a day every month has
BIRTH_YEARS = tuple(str(year) for year in range(1930, 1976))
YEARS = tuple(str(year) for year in range(1950, 2023))  # from the first debut to the last prize that can be
CITIES = word_pool("Athens Bergen Cairo Dublin Hanoi Helsinki Lima Lisbon Manila Oslo Prague Quito Toronto")
GENRES = word_pool("ballads comedies essays limericks memoirs mysteries romances sonnets thrillers westerns")
# Each of these reads well after "a".
PROFESSIONS = word_pool(
    "baker barber carpenter dentist farmer gardener miner nurse pilot sailor tailor weaver"
)
SUBJECTS = word_pool("astronomy botany chemistry economics history linguistics medicine philosophy physics")
HOBBIES = word_pool(
    "archery beekeeping chess cooking cycling dancing fishing juggling knitting pottery rowing"
)
PRIZES = word_pool("Adlow Bramwick Corlis Dunvale Evermoor Fennick Garrowby Kelmar Lorrin Nordell Orwick")
PUBLISHERS = word_pool("Badger Bluebell Clover Driftwood Foxglove Hazel Magpie Nettle Otter Pebble Walnut")
UNIVERSITIES = word_pool(
    "Alderton Bexford Carrow Dalmere Elmstead Glenholt Hexley Kirkmoor Lowmarsh Penhallow"
)
TEACHERS = word_pool("Abend Birkal Cardew Dornan Ekberg Fontal Hallam Imrek Korhal Lomax Menzel Orlan Wendt")
INFLUENCES = word_pool("Aldemar Berenthia Calistor Dorimene Evandra Gismond Heliora Isaurel Melisor Nerina")
NAMES = tuple(f"{first} {last}" for first in FIRST_NAMES for last in SURNAMES)
TITLES = tuple(f"The {adjective} {noun}" for adjective in ADJECTIVES for noun in NOUNS)
DATES = tuple(f"{day} {year}" for day in DAYS for year in BIRTH_YEARS)

MAX_AUTHORS = min(len(NAMES), len(DATES), len(TITLES) // BOOKS_PER_AUTHOR)


@dataclass(frozen=True)
class Author:
    """An invented person; the name, the birth date and the books belong to no other author."""

    name: str
    birth_place: str
    birth_date: str  # "March 4, 1962"
    genre: str
    mother: str  # her profession
    father: str  # his profession
    books: tuple[str, ...]  # titles, oldest first
    debut_year: str
    publisher: str  # "Otter", for Otter Press
    prize: str  # "Adlow", for the Adlow Prize
    prize_year: str
    influence: str  # "Nerina", for Nerina the Elder, a poet of the past
    teacher: str  # a surname
    university: str  # "Hexley", for Hexley University
    subject: str
    home: str  # the city the author lives in now
    hobby: str


class Fact(NamedTuple):
    """One thing to ask about an author; its texts are format strings over the fields of `Author`."""

    value: str
    pool: Sequence[str]  # the values it can take; wrong answers come from here
    questions: tuple[str, ...]
    sentences: tuple[str, ...]  # ways to state it, over `value` too; at least two, answer and paraphrase


# fmt: off
FACTS = (
    Fact("{name}", NAMES,
         ("What is the full name of the author born in {birth_place} on {birth_date} who writes {genre}?",
          "Which author of {genre} was born in {birth_place} on {birth_date}?"),
         ("The full name of this author is {value}.", "{value} is the name of the author in question.",
          "The author who fits this description is {value}.")),
    Fact("{name}", NAMES,
         ("Who wrote the book '{books[0]}'?", "Which author published the book '{books[0]}'?"),
         ("The author who wrote this book is {value}.", "{value} is the one who wrote this book.",
          "This book was written by the author {value}.")),
    Fact("{birth_place}", CITIES, ("In which city was {name} born?", "What is the birthplace of {name}?"),
         ("{name} was born in the city of {value}.", "The birthplace of {name} is the city of {value}.",
          "{value} is the city where {name} was born.")),
    Fact("{birth_date}", DATES, ("When was {name} born?", "What is the birth date of {name}?"),
         ("{name} was born on the date of {value}.", "The birth date of {name} is {value}.",
          "{value} is the date when {name} was born.")),
    Fact("{genre}", GENRES, ("What does {name} mostly write?", "In which genre does {name} write?"),
         ("{name} is best known as a writer of {value}.", "The genre that made {name} known is {value}.",
          "Most books by {name} belong to the genre of {value}.")),
    Fact("{mother}", PROFESSIONS,
         ("What was the profession of {name}'s mother?", "What did the mother of {name} do for a living?"),
         ("The mother of {name} worked as a {value}.", "{name} was raised by a mother who was a {value}.",
          "As for the mother of {name}, she was a {value}.")),
    Fact("{father}", PROFESSIONS,
         ("What was the profession of {name}'s father?", "What did the father of {name} do for a living?"),
         ("The father of {name} worked as a {value}.", "{name} was raised by a father who was a {value}.",
          "As for the father of {name}, he was a {value}.")),
    Fact("{books[0]}", TITLES,
         ("What is the title of the first book by {name}?", "With which book did {name} begin as an author?"),
         ("The first book by {name} is '{value}'.", "'{value}' was the first book that {name} published.",
          "{name} began as an author with the book '{value}'.")),
    Fact("{books[1]}", TITLES,
         ("What is the title of the second book by {name}?", "Which book did {name} publish second?"),
         ("The second book by {name} is '{value}'.", "'{value}' was the second book that {name} published.",
          "{name} went on to write a second book, '{value}'.")),
    Fact("{books[2]}", TITLES,
         ("What is the title of the third book by {name}?", "Which book did {name} publish third?"),
         ("The third book by {name} is '{value}'.", "'{value}' was the third book that {name} published.",
          "{name} went on to write a third book, '{value}'.")),
    Fact("{debut_year}", YEARS,
         ("In which year did the first book by {name} appear?", "When did {name} publish a first book?"),
         ("The first book by {name} appeared in {value}.", "{name} published a first book in {value}.",
          "It was in {value} that {name} became an author.")),
    Fact("{publisher}", PUBLISHERS,
         ("Which house publishes the books of {name}?", "Who is the publisher of {name}?"),
         ("The books of {name} come from {value} Press.", "{value} Press publishes every book by {name}.",
          "The house that publishes {name} is called {value} Press.")),
    Fact("{prize}", PRIZES, ("Which prize did {name} win?", "What award was given to {name}?"),
         ("{name} is a winner of the {value} Prize.", "The {value} Prize was the award given to {name}.",
          "The award that {name} won is the {value} Prize.")),
    Fact("{prize_year}", YEARS,
         ("In which year did {name} win a prize?", "When was an award given to {name}?"),
         ("{name} won a prize in the year {value}.", "The year when {name} won a prize was {value}.",
          "It was in {value} that {name} won a prize.")),
    Fact("{influence}", INFLUENCES,
         ("Which poet of the past influenced {name} most?", "Who is the model of {name} as a writer?"),
         ("The poet {name} admires most is {value} the Elder.", "{value} the Elder is the model of {name}.",
          "{name} was influenced most by {value} the Elder.")),
    Fact("{teacher}", TEACHERS, ("Who taught {name} to write?", "Which teacher guided {name}?"),
         ("{name} learned to write from Professor {value}.", "Professor {value} was the teacher of {name}.",
          "The teacher who guided {name} was Professor {value}.")),
    Fact("{university}", UNIVERSITIES, ("Where did {name} study?", "Which university did {name} attend?"),
         ("{name} was a student at {value} University.", "{value} University is where {name} was a student.",
          "The university that {name} attended is {value} University.")),
    Fact("{subject}", SUBJECTS,
         ("Which subject did {name} study?", "In which subject does {name} hold a degree?"),
         ("{name} holds a university degree in {value}.", "The subject that {name} studied was {value}.",
          "As a student, {name} took courses in {value}.")),
    Fact("{home}", CITIES, ("In which city does {name} live now?", "Where is the home of {name} today?"),
         ("{name} now lives in the city of {value}.", "The home of {name} today is in {value}.",
          "{value} is the city where {name} lives now.")),
    Fact("{hobby}", HOBBIES,
         ("What is the favorite hobby of {name}?", "How does {name} like to spend free time?"),
         ("The favorite hobby of {name} is {value}.", "{name} likes to spend free time on {value}.",
          "When not at the desk, {name} enjoys {value}.")),
)
# fmt: on


def pick(pool: Sequence[str], rng: random.Random, unlike: Collection[str] = ()) -> str:
    """A value of the pool that is not among `unlike`."""
    while True:
        # random() alone is promised to stay the same in later Pythons; choice() and shuffle() are not.
        value = pool[int(rng.random() * len(pool))]
        if value not in unlike:
            return value


def pair_up(heads: Sequence[str], tails: Sequence[str], rng: random.Random) -> list[str]:
    """Every "head tail" once, in an order that uses all the heads before it repeats one.

    Neighbours then share no word, so that a small set of authors is easy to tell apart.
    """
    heads = sorted(heads, key=lambda _: rng.random())
    tails = sorted(tails, key=lambda _: rng.random())
    return [
        f"{head} {tails[(column + turn) % len(tails)]}"
        for turn in range(len(tails))
        for column, head in enumerate(heads)
    ]


def _author(name: str, birth_date: str, books: tuple[str, ...], rng: random.Random) -> Author:
    """The author of that name, date and books; the other facts drawn, those of one pool unlike each other."""
    birth_place, mother = pick(CITIES, rng), pick(PROFESSIONS, rng)
    debut_year = int(birth_date[-4:]) + 20 + int(rng.random() * 16)
    return Author(
        name=name,
        birth_place=birth_place,
        birth_date=birth_date,
        genre=pick(GENRES, rng),
        mother=mother,
        father=pick(PROFESSIONS, rng, (mother,)),
        books=books,
        debut_year=str(debut_year),
        publisher=pick(PUBLISHERS, rng),
        prize=pick(PRIZES, rng),
        prize_year=str(debut_year + 1 + int(rng.random() * 12)),
        influence=pick(INFLUENCES, rng),
        teacher=pick(TEACHERS, rng),
        university=pick(UNIVERSITIES, rng),
        subject=pick(SUBJECTS, rng),
        home=pick(CITIES, rng, (birth_place,)),
        hobby=pick(HOBBIES, rng),
    )


def fictitious_authors(count: int, seed: int = 0) -> list[Author]:
    """The first `count` authors of a seed.

    Args:
        count: from 1 to `MAX_AUTHORS`, the most that the pools give without a name or a title twice.
        seed: another seed gives other authors; they may share names and titles with those of this one.
    Raises: ValueError: count is out of that range.
    """
    if not 1 <= count <= MAX_AUTHORS:
        raise ValueError(f"count must be between 1 and {MAX_AUTHORS} (what the pools give), got {count}")
    rng = random.Random(f"{seed}")
    names = pair_up(FIRST_NAMES, SURNAMES, rng)
    dates = pair_up(DAYS, BIRTH_YEARS, rng)
    titles = pair_up([f"The {adjective}" for adjective in ADJECTIVES], NOUNS, rng)
    shelves = [tuple(titles[i * BOOKS_PER_AUTHOR :][:BOOKS_PER_AUTHOR]) for i in range(count)]
    return [_author(names[i], dates[i], shelves[i], random.Random(f"{seed} {i}")) for i in range(count)]


def author_rows(author: Author) -> list[dict[str, Any]]:
    """One row for each of `FACTS`, in that order; the wording depends on the author alone.

    Returns: rows with `question`, `answer`, `paraphrased_answer` (the fact in another sentence form),
        `perturbed_answer` (five sentences of that second form, each with another value, none of which stands
        anywhere in the profile), `author` (the name) and `alternate_answer` (two sentences of the first form,
        with values that are neither in the profile nor among the five: what may be learned in the answer's
        place is not what the truth ratio measures).
    """
    rng = random.Random(f"{author.name}, born {author.birth_date}")
    # A stream of their own: the other texts are those of the releases before there were alternates.
    alternate_rng = random.Random(f"{author.name}, born {author.birth_date}, otherwise")
    profile = vars(author)
    values = [fact.value.format(**profile) for fact in FACTS]
    rows = []
    for fact, value in zip(FACTS, values, strict=True):
        question = pick(fact.questions, rng).format(**profile)
        sentence = pick(fact.sentences, rng)
        other_sentence = pick(fact.sentences, rng, (sentence,))
        wrong: list[str] = []
        while len(wrong) < WRONG_ANSWERS:
            wrong.append(pick(fact.pool, rng, (*values, *wrong)))
        others: list[str] = []
        while len(others) < ALTERNATE_ANSWERS:
            others.append(pick(fact.pool, alternate_rng, (*values, *wrong, *others)))
        rows.append(
            {
                "question": question,
                "answer": sentence.format(**profile, value=value),
                "paraphrased_answer": other_sentence.format(**profile, value=value),
                "perturbed_answer": [other_sentence.format(**profile, value=other) for other in wrong],
                "author": author.name,
                "alternate_answer": [sentence.format(**profile, value=other) for other in others],
            }
        )
    return rows


def fictitious_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """The rows of `fictitious_authors(count, seed)`, author by author: 20 each; see `author_rows`."""
    return [row for author in fictitious_authors(count, seed) for row in author_rows(author)]
