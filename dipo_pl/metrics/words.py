"""Words of a text in any script, with or without spaces between them."""

import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

# Scripts that are written without spaces; each of their characters is a word.
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")


class Word(NamedTuple):
    """Word of a text: where it stands, and what it is compared by."""

    start: int
    end: int
    key: str


def words_of(text: str) -> Iterator[Word]:
    """Yield the words of a text, without punctuation; a character of a script without spaces is a word."""
    start = 0
    for place, character in enumerate(f"{text} "):
        in_word = unicodedata.category(character)[0] in "LNM"
        alone = in_word and is_unspaced(character)
        if start < place and (alone or not in_word):
            yield Word(start, place, _key(text[start:place]))
        if alone:
            yield Word(place, place + 1, _key(character))
        if alone or not in_word:
            start = place + 1


def is_unspaced(character: str) -> bool:
    """Return whether a character is of a script that is written without spaces."""
    return character > "\u0e00" and unicodedata.name(character, "").startswith(_UNSPACED)


def _key(word: str) -> str:
    return unicodedata.normalize("NFKC", word).casefold()
