"""The base of all data modules: what it tokenizes, pairs, batches and measures, and how it resumes."""

from dataclasses import replace

import pytest
import torch
from connected import PAIR, Memory, Module, connected, lengthened, rows, texts_of
from lightning import LightningModule, Trainer

from dipo_pl.data_modules.alternates import Refusals
from dipo_pl.data_modules.forget_retain import ForgetRetain
from dipo_pl.data_modules.training_batches import ResumableSampler, forget_retain_pairs, permutation
from dipo_pl.errors import InputError
from dipo_pl.evaluation_set import EvaluationSet
from dipo_pl.prompts import Llama2Chat, QuestionAnswer
from dipo_pl.rows import Row

BOS, EOS = 0, 1  # of train_tokenizer; bytes follow PAD, in the order of their letters
BYTE = {letter: index + 3 for index, letter in enumerate(map(chr, range(ord("!"), ord("~") + 1)))}
ALTERNATES = ("No.", "Or so.", "Maybe.")
WRONG = {"paraphrased_answer": "It is so.", "wrong_answers": ("a.", "bb.")}


def batches(data, epoch=0, kinds=PAIR, rank=0, world_size=1):
    """An epoch's."""
    loader = connected(data, kinds, rank, world_size).train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def pairs_in(batch):
    return list(zip(batch.rows["forget"], batch.rows["retain"], strict=True))


def asked(name, row, answer=None):
    return f"Question: {name} {row}?\nAnswer: {answer or f'{name}{row}.'}"


# Training batches.


def test_pairs_are_those_of_the_seed():
    data = Memory(batch_size=2, seed=3, group_by_length=False)
    found, pairs = batches(data), forget_retain_pairs(3, 0, 5, 7)
    assert [pairs_in(batch) for batch in found] == [pairs[:2], pairs[2:4], pairs[4:]]
    for batch in found:
        assert list(batch.sections) == ["forget", "retain"]
        assert texts_of(data, batch) == [asked(name[0], row) for name in PAIR for row in batch.rows[name]]


def test_every_id():
    data = Memory(forget=1, retain=1, prompt=QuestionAnswer("", ""))
    (batch,) = batches(data)
    space = data.tokenizer.convert_tokens_to_ids("Ġ")
    assert batch.input_ids.tolist() == [
        [BOS, BYTE[name], space, BYTE["0"], BYTE["?"], BYTE[name], BYTE["0"], BYTE["."], EOS] for name in "fr"
    ]
    assert batch.positions.tolist() == [4, 5, 6, 7, 13, 14, 15, 16]
    assert batch.lengths == (4, 4)


@pytest.mark.parametrize(("train_on", "names"), [("all", "fr"), ("forget", "f"), ("retain", "r")])
def test_fine_tuning_passes_once_over_its_rows_an_epoch(train_on, names):
    data = Memory(train_on=train_on, batch_size=4, prompt=Llama2Chat())
    orders = []
    for epoch in range(2):
        found = batches(data, epoch)
        assert all(list(batch.sections) == ["train"] for batch in found)
        orders.append([text for batch in found for text in texts_of(data, batch)])
    count = {"f": 5, "r": 7}
    wanted = [f"[INST] {name} {row}? [/INST]{name}{row}." for name in names for row in range(count[name])]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(wanted)
    assert orders[0] != orders[1]
    assert len(found) == -(-len(wanted) // 4)


def test_fine_tuning_has_another_order_with_another_seed():
    options = {"train_on": "all", "batch_size": 12, "group_by_length": False}
    first, second = (batches(Memory(seed=seed, **options))[0].rows["train"] for seed in (0, 1))
    assert sorted(first) == sorted(second)
    assert first != second


@pytest.mark.parametrize(("forget", "world_size"), [(5, 2), (5, 3), (1, 4)])
def test_ranks_share_out_the_pairs(forget, world_size):
    """Where there are more ranks than pairs, some have the first one too, which then counts nothing."""
    shares = [
        batches(Memory(forget, batch_size=1, group_by_length=False), rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    pairs = forget_retain_pairs(0, 0, forget, 7)
    samplers = [ResumableSampler(lambda _: pairs, 1, rank, world_size) for rank in range(world_size)]
    assert pairs == [
        pair
        for number, step in enumerate(zip(*shares, strict=True))
        for batch, sampler in zip(step, samplers, strict=True)
        for pair in pairs_in(batch)
        if sampler.weight(number)
    ]


@pytest.mark.parametrize("train_on", ["pairs", "all"])
def test_worker_processes_change_nothing(train_on):
    one, two = (
        connected(Memory(train_on=train_on, batch_size=2, evaluation_tokens=90, workers=workers))
        for workers in (0, 2)
    )
    loaders = one.train_dataloader(), two.train_dataloader()
    assert [loader.num_workers for loader in loaders] == [0, 2]

    def contents(batch):
        return batch.sections, [
            each.tolist() for each in vars(batch).values() if isinstance(each, torch.Tensor)
        ]

    for epoch in (0, 1):
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
        assert [*map(contents, loaders[0])] == [*map(contents, loaders[1])]
    for ours, theirs in zip(one.val_dataloader()[1], two.val_dataloader()[1], strict=True):
        assert contents(ours.answers) == contents(theirs.answers)
        assert (ours.rows.tolist(), ours.prompts) == (theirs.rows.tolist(), theirs.prompts)


# Kinds of sequences.


@pytest.mark.parametrize("kinds", [("forget",), PAIR])
def test_a_batch_holds_what_the_module_wants(kinds):
    data = Memory(batch_size=2, forget=rows("f", 5, alternate_answers=ALTERNATES))
    (first, *_) = batches(data, kinds=kinds)
    assert {kind: len(some) for kind, some in first.rows.items()} == dict.fromkeys(kinds, 2)
    counts = {"forget": 5, "retain": 7}
    assert {kind: len(each) for kind, each in data.training_sequences.items()} == {
        kind: counts[kind] for kind in kinds
    }


@pytest.mark.parametrize("group_by_length", [False, True])
@pytest.mark.parametrize("epoch", [0, 1, 2, 3, 10])
def test_epoch_e_takes_alternate_e_mod_k(epoch, group_by_length):
    forget = lengthened("f", 5, alternate_answers=ALTERNATES)
    data = Memory(forget=forget, batch_size=2, seed=3, group_by_length=group_by_length)
    pairs, seen = dict(forget_retain_pairs(3, epoch, 5, 7)), []
    for batch in batches(data, epoch, ("forget", "alternate", "retain")):
        own, other, kept = (batch.rows[kind] for kind in ("forget", "alternate", "retain"))
        assert kept == tuple(pairs[row] for row in own)
        assert other == tuple(row * 3 + epoch % 3 for row in own)
        assert texts_of(data, batch)[: 2 * len(own)] == [
            *(asked("f", row, forget[row].answer) for row in own),
            *(asked("f", row, ALTERNATES[epoch % 3]) for row in own),
        ]
        seen += own
    assert sorted(seen) == list(range(5))


def test_rows_count_in_the_training_sequences():
    data = Memory(forget=lengthened("f", 5, alternate_answers=ALTERNATES), batch_size=2)
    kinds = ("forget", "alternate", "mismatched", "retain")
    for epoch in range(3):
        for batch in batches(data, epoch, kinds):
            sequences = data.training_sequences
            assert tuple(sequences) == tuple(batch.rows) == kinds
            assert list(batch.sections) == ["forget", "retain"]
            places = [(kind, row) for kind, some in batch.rows.items() for row in some]
            for (kind, row), ids, mask in zip(places, batch.input_ids, batch.attention_mask, strict=True):
                assert list(sequences[kind][row].ids) == ids[mask].tolist()


def test_mismatched_answers_are_those_of_the_next_row():
    data = Memory(forget=4, batch_size=4)
    (batch,) = batches(data, kinds=("forget", "mismatched", "retain"))
    assert batch.rows["forget"] == batch.rows["mismatched"]
    assert sorted(texts_of(data, batch)[4:8]) == [asked("f", row, f"f{(row + 1) % 4}.") for row in range(4)]


def test_alternates_of_the_config_come_before_the_rows_own_and_are_dealt_by_the_seed(tmp_path):
    (tmp_path / "no.txt").write_text("Never.\n")
    data = Memory(
        rows("f", 2, alternate_answers=ALTERNATES), alternates=Refusals(str(tmp_path / "no.txt"), 1)
    )
    (batch,) = batches(data, kinds=("forget", "alternate", "retain"))
    assert [text[-6:] for text in texts_of(data, batch)[2:4]] == ["Never."] * 2
    dealt = [
        connected(
            Memory(alternates=Refusals(per_row=2), seed=seed), ("forget", "alternate")
        ).training_sequences
        for seed in (0, 0, 1)
    ]
    assert dealt[0] == dealt[1] != dealt[2]


def test_companions_are_made_only_for_a_training_on_pairs_that_wants_them():
    """These rows have no alternates, so that to make them is an error."""
    wanted = ("forget", "alternate", "retain")
    connected(Memory(), wanted, stage="validate")
    connected(Memory(train_on="all"), wanted)
    assert tuple(connected(Memory()).training_sequences) == PAIR
    with pytest.raises(InputError, match=r"set data\.alternates to Refusals"):
        connected(Memory(), wanted)
    with pytest.raises(InputError, match=r"^model\.forget_loss needs sequences of the kind 'alternative'"):
        connected(Memory(), ("forget", "alternative"))


def test_trained_after_it_was_measured():
    data = connected(Memory(), ("forget", "mismatched", "retain"), stage="validate")
    data.setup("fit")
    assert len(data.training_sequences["mismatched"]) == 5
    assert data.reads == 1


# Grouping: 27 forget rows of 27 lengths, in global batches of 4.


def many(**options):
    return Memory(forget=lengthened("f", 27), retain=lengthened("r", 31), **options)


@pytest.mark.parametrize("epoch", [0, 1])
def test_grouping_leaves_pairs_as_they_are(epoch):
    one, other = (
        [pair for batch in batches(many(batch_size=4, group_by_length=on), epoch) for pair in pairs_in(batch)]
        for on in (True, False)
    )
    assert other == forget_retain_pairs(0, epoch, 27, 31)
    assert one != other
    assert sorted(one) == sorted(other)


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (0, 1), (2, 0), (2, 1)])
def test_the_batches_have_the_order_of_seed_and_epoch(seed, epoch):
    pairs = forget_retain_pairs(seed, epoch, 5, 7)  # all of one length
    found = [pairs_in(batch) for batch in batches(Memory(batch_size=1, seed=seed), epoch)]
    assert found == [[pairs[place]] for place in permutation(seed, "batches", epoch, 5)]


# Setup.


def test_the_tokenizer_is_offered_all_training_texts_whatever_is_trained_on():
    for train_on in ("pairs", "all", "forget", "retain"):
        data = connected(Memory(forget=1, retain=2, train_on=train_on))
        assert data.module.texts == ["f 0?", "f0.", "r 0?", "r0.", "r 1?", "r1."]


def test_module_and_data_module_are_introduced_to_each_other():
    data = connected(Memory())
    assert data.module.data is data
    data.trainer.datamodule = data
    assert ForgetRetain.of(data.trainer) is data
    with pytest.raises(TypeError, match="the trainer has no ForgetRetain"):
        ForgetRetain.of(Trainer(logger=False))
    with pytest.raises(RuntimeError, match=r"no LightningModule is connected: call connect\(module\)"):
        Memory().setup("validate")


def test_a_module_of_another_kind_is_refused():
    data = Memory()
    data.trainer = connected(Memory()).trainer
    data.trainer.lightning_module = LightningModule()
    with pytest.raises(InputError, match=r"^LightningModule does not derive"):
        data.setup("fit")


def test_a_module_that_trains_on_something_else_is_refused():
    module = Module({"train": ("train",)})
    module.trains_on = ("all", "retain")
    data = Memory()
    data.connect(module)
    with pytest.raises(InputError, match=r"^Module trains on all or retain, and data\.train_on is pairs$"):
        data.setup("fit")
    data.setup("validate")


def test_an_overlap_is_told_with_its_count(recwarn):
    connected(Memory())
    assert not recwarn
    shared = rows("s", 2)
    with pytest.warns(UserWarning, match="^2 of 5 forget rows are also in the retain set"):
        connected(Memory(forget=rows("f", 3) + shared, retain=[*rows("r", 4), *shared]))


def test_a_row_too_long_is_refused():
    with pytest.raises(
        InputError, match=r"^the row that begins 'f 0\?' has 28 tokens, more than data.max_length 27: "
    ):
        connected(Memory(max_length=27))


def test_rows_cut_are_counted_in_training_and_in_measuring(recwarn):
    # "Question: f 0?\nAnswer: f0." takes 28 tokens; a row whose answer is longer by n takes n more.
    forget = [replace(row, answer=row.answer + "!" * more) for more, row in enumerate(rows("f", 4))]
    options = {"too_long": "truncate", "retain": 3, "evaluate": ["forget"]}
    data = connected(Memory(forget, max_length=29, **options))
    told = [str(recwarn.pop(UserWarning).message).split(" with")[0] for _ in range(2)]
    assert told == [
        "2 of 7 training rows are longer than data.max_length 29",
        "2 of 4 answers to be measured are longer than data.max_length 29",
    ]
    assert data.longest == 29
    assert connected(Memory(max_length=28, **options)).longest == 28
    assert not recwarn


@pytest.mark.parametrize(("options", "kinds", "longest"), [
    ({"forget": [Row((("user", "f 0?"),), "f0!!!.")], "evaluate": ["retain"]}, PAIR, 31),
    ({"evaluation": [EvaluationSet("forget", rows("f", 1, wrong_answers=("f00.",)))]}, PAIR, 29),
    ({"forget": rows("f", 2, alternate_answers=("f00000.",))}, ("forget", "alternate"), 32),
])  # fmt: skip
def test_longest_counts_training_rows_wrong_answers_and_companions(options, kinds, longest):
    assert connected(Memory(**options), kinds).longest == longest


def test_companions_count_among_the_cut():
    data = Memory(rows("f", 2, alternate_answers=("f00000.",)), max_length=30, too_long="truncate")
    with pytest.warns(UserWarning, match="^2 of 2 alternate answers are longer than data.max_length 30 "):
        connected(data, ("forget", "alternate"))


# Evaluation.


def test_a_batch_holds_every_answer_of_its_rows():
    data = connected(Memory(forget=rows("f", 3, **WRONG), evaluation_tokens=8 * 37))
    first, last = data.val_dataloader()[0]
    assert (first.rows.tolist(), first.closing, last.rows.tolist()) == ([0, 1], (1, 1), [2])
    assert first.answers.rows == {"answers": (0, 0, 0, 0, 1, 1, 1, 1)}
    assert texts_of(data, first.answers) == [
        asked("f", row, answer) for row in (0, 1) for answer in (f"f{row}.", "It is so.", "a.", "bb.")
    ]
    prompts = [f"<s>Question: f {row}?\nAnswer: " for row in (0, 1)]
    assert [data.tokenizer.decode(prompt) for prompt in first.prompts] == prompts


def measured(data, **options):
    return [
        [batch.rows.tolist() for batch in loader] for loader in connected(data, **options).val_dataloader()
    ]


def test_every_set_on_every_rank():
    """Two rows of 28 tokens; the last batch of the first set again."""
    assert measured(Memory(evaluation_tokens=56), rank=1, world_size=2) == [[[2, 3], [4]], [[2, 3], [6]]]


def test_named_sets_in_the_order_given_and_their_first_rows():
    data = Memory(evaluate=["retain", "forget"], evaluation_rows=2, batch_size=1)
    assert measured(data) == [[[0, 1]], [[0, 1]]]
    assert [(each.name, len(each.rows)) for each in data.evaluation_sets] == [("retain", 2), ("forget", 2)]
    # The limit leaves training alone, and may be more than there are.
    assert len(data.train_dataloader()) == 5
    assert [len(each.rows) for each in connected(Memory(evaluation_rows=6)).evaluation_sets] == [5, 6]


@pytest.mark.parametrize(("names", "message"), [
    (["forget", "holdout"], "^data.evaluate names 'holdout'; this data has forget, retain$"),
    ([], r"^data.evaluate must name at least one set \(got \[\]\): null measures all that there are$"),
])  # fmt: skip
def test_sets_that_are_not_there_are_refused(names, message):
    with pytest.raises(InputError, match=message):
        connected(Memory(evaluate=names))


def test_rows_of_a_set_have_the_same_number_of_wrong_answers():
    data = connected(Memory(forget=rows("f", 2, **WRONG)))
    forget, retain = (next(iter(loader)) for loader in data.val_dataloader())
    assert (len(forget.answers.lengths), len(retain.answers.lengths)) == (8, 7)
    uneven = rows("f", 2, **WRONG) + rows("g", 1, wrong_answers=("a.",)) + rows("h", 1)
    message = r"^rows of the evaluation set 'forget' have \[0, 1, 2\] wrong answers: give every row the same"
    with pytest.raises(InputError, match=message):
        connected(Memory(forget=uneven))
