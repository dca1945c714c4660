"""The data module of fictitious authors: which are forgotten and which retained."""

from connected import connected

from dipo_pl.data_modules.fictitious_authors import MAX_AUTHORS, FictitiousAuthors, fictitious_rows
from dipo_pl.data_modules.row_files import row_from


def test_the_last_authors_are_forgotten():
    data = connected(FictitiousAuthors(authors=4, forget_authors=1, author_seed=5))
    expected = [row_from(record, "") for record in fictitious_rows(5, 5)]
    sets = data.row_sets
    assert (sets.retain, sets.forget) == (expected[:60], expected[60:80])
    assert [(each.name, each.rows, each.options) for each in sets.evaluation] == [
        ("forget", sets.forget, False),
        ("retain", sets.retain, False),
        ("holdout", expected[80:], False),
    ]
    # The tokenizer is trained on the holdout too.
    order = [*sets.forget, *sets.retain, *expected[80:]]
    assert data.module.texts == [text for row in order for text in row.texts()]


def test_as_many_authors_as_there_can_be():
    sets = FictitiousAuthors(authors=MAX_AUTHORS, forget_authors=MAX_AUTHORS - 1).read()
    assert (len(sets.retain), len(sets.forget)) == (20, 20 * (MAX_AUTHORS - 1))
    assert [each.name for each in sets.evaluation] == ["forget", "retain"]  # none are left for a holdout


def test_batches():
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
