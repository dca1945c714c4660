"""Continual unlearning: forget sets that are requested one after another."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from lightning.pytorch.utilities import rank_zero_info

from dipo_pl.data_modules.stored_rows import stored
from dipo_pl.errors import InputError
from dipo_pl.evaluation_set import RowSets
from dipo_pl.rows import Row
from dipo_pl.storage.fingerprints import conversation_digest


def listed(names: str | Sequence[str], option: str = "data.forget") -> list[str]:
    """Return the name of one set of rows, or of several, as a list; raise InputError if there is none."""
    if isinstance(names, str):
        return [names]
    if not names:
        raise InputError(f"{option} names no rows: give a name, or a list of them (got [])")
    return list(names)


def joined(sets: Iterable[Iterable[Row]]) -> Sequence[Row]:
    """Return the rows of all sets in order, without those that an earlier set has."""
    return stored(_joined(sets))


def _joined(sets: Iterable[Iterable[Row]]) -> Iterator[Row]:
    # The digests of a million rows take little memory, and their texts would take much.
    earlier: set[bytes] = set()
    for rows in sets:
        own: set[bytes] = set()
        for row in rows:
            digest = conversation_digest(row)
            own.add(digest)
            if digest not in earlier:
                yield row
        earlier |= own


def named_rows(
    names: str | Sequence[str], read: Callable[[str], Sequence[Row]], option: str = "data.forget"
) -> Sequence[Row]:
    """Return the rows of one name, or of several without those that an earlier one has, whose number is said."""
    if isinstance(names, str):
        return read(names)
    sets = [read(each) for each in listed(names, option)]
    rows, count = joined(sets), sum(map(len, sets))
    if again := count - len(rows):
        rank_zero_info(
            f"{again} of {count} rows of {option} also stand in an earlier entry of the list, and are taken from there alone"
        )
    return rows


def without(rows: Iterable[Row], others: Iterable[Row]) -> Sequence[Row]:
    """Return the rows of which no exact copy is among the others."""
    left_out = {conversation_digest(row) for row in others}
    return stored(row for row in rows if conversation_digest(row) not in left_out)


def new_rows(requests: Mapping[str, Sequence[Row]]) -> dict[str, Sequence[Row]]:
    """Return the rows of each request that no earlier one holds: MUSE's growing sets hold those before."""
    names = list(requests)
    return {
        name: without(requests[name], joined(requests[earlier] for earlier in names[:place]))
        for place, name in enumerate(names)
    }


def sets_to_forget(requests: Iterable[Sequence[Row]], forget: Sequence[Row]) -> list[str]:
    """Return the names of the evaluation sets of which all rows are to be forgotten, by the new rows of each request.

    These are `request_1` and so on as far as they are in the forget rows. Where they leave out some of the forget rows,
    or there are no requests, it is the set `forget`.
    """
    held = {f"request_{place}": rows for place, rows in enumerate(requests, start=1) if _holds(forget, rows)}
    return ["forget"] if without(forget, joined(held.values())) else list(held)


def _holds(forget: Sequence[Row], rows: Sequence[Row]) -> bool:
    """Return whether all rows are among the forget rows; a text may be a part of another: MUSE's growing sets."""
    return all(
        not row.messages and any(row.answer in each.answer for each in forget)
        for row in without(rows, forget)
    )


def without_requests(
    rows: RowSets, requests: Mapping[str, Sequence[Row]], to_come: Iterable[Sequence[Row]]
) -> RowSets:
    """Return the rows of which nothing that was ever requested to be forgotten is retained; as they are without requests.

    The evaluation set `retain` loses the rows of requests to come too.

    Raises:
        InputError: requests overlap, what is forgotten now is not among them, or no retain row is left.
    """
    if not requests:
        return rows
    refuse_overlaps(requests, nested=True)
    requested = joined(requests.values())
    if missing := len(without(rows.forget, requested)):
        raise InputError(
            f"{missing} of {len(rows.forget)} forget rows are in none of data.requests ({', '.join(requests)}): "
            "what is to be forgotten now must be among them"
        )
    retain = without(rows.retain, requested)
    if not retain:
        raise InputError("all retain rows are in one of data.requests: give others to retain")
    unmeasured = joined([requested, *to_come])
    kept = [
        without(each.rows, unmeasured) if each.name == "retain" else each.rows for each in rows.evaluation
    ]
    sets = [replace(each, rows=some) for each, some in zip(rows.evaluation, kept, strict=True) if some]
    return RowSets(rows.forget, retain, sets)


def refuse_overlaps(requests: Mapping[str, Sequence[Row]], nested: bool = False) -> None:
    """Refuse requests that share rows; with `nested`, a request may hold all rows of an earlier one.

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
                    "are also in the first; give each row to one request"
                )
