"""The data module of fictitious authors: who is forgotten, who is retained."""

import pytest
from connected import connected

from dipo_pl.data_modules.fictitious import FictitiousAuthors
from dipo_pl.data_modules.fictitious_authors import MAX_AUTHORS, fictitious_rows
from dipo_pl.data_modules.row_files import row_from
from dipo_pl.errors import InputError


def test_the_last_authors_are_forgotten():
    sets = FictitiousAuthors(authors=4, forget_authors=1, author_seed=5).read()
    expected = [row_from(record, "") for record in fictitious_rows(5, 5)]
    assert (sets.retain, sets.forget) == (expected[:60], expected[60:80])
    assert [(each.name, each.rows, each.options) for each in sets.evaluation] == [
        ("forget", sets.forget, False),
        ("retain", sets.retain, False),
        ("holdout", expected[80:], False),
    ]


def test_the_tokenizer_is_made_of_the_holdout_too():
    data = connected(FictitiousAuthors(authors=4, forget_authors=1))
    sets = data.row_sets
    holdout = sets.evaluation[-1].rows
    expected = [*sets.forget, *sets.retain, *holdout]
    assert data.module.texts == [text for row in expected for text in row.texts()]


def test_as_many_authors_as_there_can_be():
    sets = FictitiousAuthors(authors=MAX_AUTHORS, forget_authors=MAX_AUTHORS - 1).read()
    assert (len(sets.retain), len(sets.forget)) == (20, 20 * (MAX_AUTHORS - 1))
    assert [each.name for each in sets.evaluation] == ["forget", "retain"]  # none are left for a holdout


@pytest.mark.parametrize("authors", [MAX_AUTHORS + 1, 1, 0, -1])
def test_too_many_or_too_few_authors(authors):
    message = rf"^data.authors must be .* >= 2 and <= {MAX_AUTHORS} \(got {authors}\)$"
    with pytest.raises(InputError, match=message):
        FictitiousAuthors(authors=authors, forget_authors=1)


@pytest.mark.parametrize("forget_authors", [0, -1, 4, 5])
def test_some_are_forgotten_and_some_retained(forget_authors):
    message = rf"^data.forget_authors must be .* >= 1 and < 4 \(got {forget_authors}\)$"
    with pytest.raises(InputError, match=message):
        FictitiousAuthors(authors=4, forget_authors=forget_authors)


def test_batches_with_a_tokenizer_trained_on_the_authors():
    data = FictitiousAuthors(authors=3, forget_authors=1, batch_size=8, evaluation_rows=2)
    connected(data, ("forget", "alternate", "retain"), vocabulary=400)
    batches = list(data.train_dataloader())
    assert sorted(row for batch in batches for row in batch.rows["forget"]) == list(range(20))
    assert [{kind: len(rows) for kind, rows in batch.rows.items()} for batch in batches] == [
        dict.fromkeys(("forget", "alternate", "retain"), count) for count in (8, 8, 4)
    ]
    assert len(data.training_sequences["alternate"]) == 20 * 2
    forget = next(iter(data.val_dataloader()[0]))
    assert forget.rows.tolist() == [0, 1]
    assert len(forget.answers.lengths) == 2 * 7  # the answer, its paraphrase and five wrong ones
    assert len(data.tokenizer) == 400
