"""Forget sets that are asked for one after another."""

from collections.abc import Iterable, Mapping, Sequence

from dipo_pl.errors import InputError
from dipo_pl.rows import Row


def listed(names: str | Sequence[str]) -> list[str]:
    """One forget set's name or several as a list.

    Raises:
        InputError: there is none.
    """
    if isinstance(names, str):
        return [names]
    if not names:
        raise InputError("data.forget names no forget set: give one, or a list of them")
    return list(names)


def joined(sets: Iterable[Sequence[Row]]) -> list[Row]:
    """The rows of all sets in order, those that stand in several once."""
    return list({row.conversation: row for rows in sets for row in rows}.values())


def without(rows: Iterable[Row], others: Iterable[Row]) -> list[Row]:
    """The rows that do not stand, to the letter, among the others."""
    left_out = {row.conversation for row in others}
    return [row for row in rows if row.conversation not in left_out]


def refuse_overlaps(requests: Mapping[str, Sequence[Row]], nested: bool = False) -> None:
    """
    Args:
        requests: the rows of each, by name, in the order in which they are made.
        nested: let a request hold all rows of an earlier one.
    Raises:
        InputError: two requests share rows.
    """
    names = list(requests)
    texts = {name: {row.conversation for row in rows} for name, rows in requests.items()}
    for place, later in enumerate(names):
        for earlier in names[:place]:
            shared = texts[earlier] & texts[later]
            if shared and not (nested and shared == texts[earlier]):
                raise InputError(
                    f"the requests {earlier} and {later} overlap: {len(shared)} of {len(texts[later])} rows of the second "
                    "also stand in the first; give each row to one request"
                )
