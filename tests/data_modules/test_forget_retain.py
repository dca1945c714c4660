"""The base of all data modules: what it tokenises, pairs, batches and measures, and how it resumes."""

from dataclasses import replace

import pytest
import torch
from connected import PAIR, Module, connected
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.testing import assert_close

from dipo_pl.data_modules.alternates import Refusals
from dipo_pl.data_modules.forget_retain import ForgetRetain
from dipo_pl.data_modules.pairing import forget_retain_pairs, permutation
from dipo_pl.data_modules.row_sets import RowSets
from dipo_pl.errors import InputError
from dipo_pl.evaluation_set import EvaluationSet
from dipo_pl.models.tokenizer import train_tokenizer
from dipo_pl.prompts import Llama2Chat, QuestionAnswer
from dipo_pl.rows import Row

BOS, EOS = 0, 1  # of train_tokenizer; bytes follow PAD, in the order of their letters
BYTE = {letter: index + 3 for index, letter in enumerate(map(chr, range(ord("!"), ord("~") + 1)))}


def rows(name, count, **answers):
    return [Row((("user", f"{name} {number}?"),), f"{name}{number}.", **answers) for number in range(count)]


class Memory(ForgetRetain):
    """Rows given to it; evaluation sets `forget` and `retain` unless others are given."""

    def __init__(self, forget=5, retain=7, evaluation=None, **options):
        super().__init__(**options)
        self.given = [
            rows(name, some) if isinstance(some, int) else some
            for name, some in {"f": forget, "r": retain}.items()
        ]
        self.evaluation = evaluation
        self.reads = 0

    def read(self):
        self.reads += 1
        forget, retain = self.given
        evaluation = [EvaluationSet("forget", forget), EvaluationSet("retain", retain)]
        return RowSets(forget, retain, self.evaluation or evaluation)


def ready(data, rank=0, world_size=1, sections=PAIR, stage="fit"):
    return connected(data, sections, rank, world_size, stage)


def same(one, other):
    assert one.sections == other.sections
    for name in ("input_ids", "attention_mask", "positions", "targets"):
        assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=0)


def texts_of(data, batch):
    return [
        data.tokenizer.decode(ids[mask], skip_special_tokens=True)
        for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
    ]


class TestTrainingBatches:
    def test_pairs_are_those_of_the_seed(self):
        data = ready(Memory(batch_size=2, seed=3, group_by_length=False))
        batches = list(data.train_dataloader())
        pairs = forget_retain_pairs(3, 0, 5, 7)
        for batch, some in zip(batches, (pairs[:2], pairs[2:4], pairs[4:]), strict=True):
            assert batch.rows == {
                "forget": tuple(row for row, _ in some),
                "retain": tuple(row for _, row in some),
            }
            assert list(batch.sections) == ["forget", "retain"]
            expected = [f"Question: f {row}?\nAnswer: f{row}." for row, _ in some]
            expected += [f"Question: r {row}?\nAnswer: r{row}." for _, row in some]
            assert texts_of(data, batch) == expected

    def test_every_id(self):
        data = ready(Memory(forget=1, retain=1, prompt=QuestionAnswer("", "")))
        (batch,) = data.train_dataloader()
        space = data.tokenizer.convert_tokens_to_ids("Ġ")
        assert batch.input_ids.tolist() == [
            [BOS, BYTE["f"], space, BYTE["0"], BYTE["?"], BYTE["f"], BYTE["0"], BYTE["."], EOS],
            [BOS, BYTE["r"], space, BYTE["0"], BYTE["?"], BYTE["r"], BYTE["0"], BYTE["."], EOS],
        ]
        assert batch.positions.tolist() == [4, 5, 6, 7, 13, 14, 15, 16]
        assert batch.lengths == (4, 4)

    @pytest.mark.parametrize(("train_on", "names"), [("all", "fr"), ("forget", "f"), ("retain", "r")])
    def test_fine_tuning_passes_once_over_its_rows_an_epoch(self, train_on, names):
        data = ready(Memory(train_on=train_on, batch_size=4, prompt=Llama2Chat()))
        expected = {"f": 5, "r": 7}
        loader = data.train_dataloader()
        orders = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            batches = list(loader)
            assert all(set(batch.sections) == {"train"} for batch in batches)
            orders.append([text for batch in batches for text in texts_of(data, batch)])
        wanted = [
            f"[INST] {name} {row}? [/INST]{name}{row}." for name in names for row in range(expected[name])
        ]
        assert sorted(orders[0]) == sorted(orders[1]) == sorted(wanted)
        assert orders[0] != orders[1]
        assert len(loader) == -(-len(wanted) // 4)

    def test_fine_tuning_has_another_order_with_another_seed(self):
        loaders = [
            ready(Memory(train_on="all", batch_size=12, seed=seed, group_by_length=False)).train_dataloader()
            for seed in (0, 1)
        ]
        (first,), (second,) = loaders
        assert sorted(first.rows["train"]) == sorted(second.rows["train"])
        assert first.rows != second.rows

    @pytest.mark.parametrize("world_size", [2, 3])
    def test_ranks_share_out_the_pairs(self, world_size):
        shares = [
            list(ready(Memory(batch_size=1, group_by_length=False), rank, world_size).train_dataloader())
            for rank in range(world_size)
        ]
        pairs = forget_retain_pairs(0, 0, 5, 7)
        pairs += pairs[: -5 % world_size]
        seen = [batch.rows for step in zip(*shares, strict=True) for batch in step]
        assert seen == [{"forget": (row,), "retain": (partner,)} for row, partner in pairs]

    def test_more_ranks_than_rows(self):
        shares = [list(ready(Memory(forget=1), rank, 4).train_dataloader()) for rank in range(4)]
        assert [[batch.rows["forget"] for batch in share] for share in shares] == [[(0,)]] * 4

    @pytest.mark.parametrize("train_on", ["pairs", "all"])
    def test_worker_processes_change_nothing(self, train_on):
        one, two = (
            ready(Memory(train_on=train_on, batch_size=2, evaluation_tokens=90, workers=workers))
            for workers in (0, 2)
        )
        loaders = one.train_dataloader(), two.train_dataloader()
        assert [loader.num_workers for loader in loaders] == [0, 2]
        for epoch in (0, 1):
            for loader in loaders:
                loader.sampler.set_epoch(epoch)
            for ours, theirs in zip(*loaders, strict=True):
                same(ours, theirs)
        for ours, theirs in zip(one.val_dataloader()[1], two.val_dataloader()[1], strict=True):
            same(ours.answers, theirs.answers)
            assert (ours.rows.tolist(), ours.prompts) == (theirs.rows.tolist(), theirs.prompts)


def lengthened(name, count, **answers):
    """Rows of different lengths, not in order of them."""
    return [
        replace(row, answer=row.answer + "!" * (7 * number % count))
        for number, row in enumerate(rows(name, count, **answers))
    ]


class TestSections:
    ALTERNATES = ("No.", "Or so.", "Maybe.")

    def batches(self, data, epoch=0, sections=("forget", "alternate", "retain")):
        loader = ready(data, sections=sections).train_dataloader()
        loader.sampler.set_epoch(epoch)
        return list(loader)

    @pytest.mark.parametrize("sections", [("forget",), ("forget", "retain")])
    def test_a_batch_holds_what_the_module_wants(self, sections):
        data = Memory(batch_size=2, forget=rows("f", 5, alternate_answers=self.ALTERNATES))
        (first, *_) = self.batches(data, sections=sections)
        assert {kind: len(rows) for kind, rows in first.rows.items()} == dict.fromkeys(sections, 2)
        assert {name: len(each) for name, each in data.training_sequences.items()} == {
            name: {"forget": 5, "retain": 7}[name] for name in sections
        }

    @pytest.mark.parametrize("group_by_length", [False, True])
    @pytest.mark.parametrize("epoch", [0, 1, 2, 3, 10])
    def test_epoch_e_takes_alternate_e_mod_k(self, epoch, group_by_length):
        forget = [replace(row, alternate_answers=self.ALTERNATES) for row in lengthened("f", 5)]
        data = Memory(forget=forget, batch_size=2, seed=3, group_by_length=group_by_length)
        pairs = dict(forget_retain_pairs(3, epoch, 5, 7))
        seen = []
        for batch in self.batches(data, epoch):
            count = len(batch.sections["forget"])
            assert list(batch.sections) == ["forget", "retain"]
            own, other, kept = (batch.rows[kind] for kind in ("forget", "alternate", "retain"))
            assert kept == tuple(pairs[row] for row in own)
            assert other == tuple(row * 3 + epoch % 3 for row in own)
            texts = texts_of(data, batch)
            assert texts[:count] == [f"Question: f {row}?\nAnswer: {forget[row].answer}" for row in own]
            alternate = self.ALTERNATES[epoch % 3]
            assert texts[count : 2 * count] == [f"Question: f {row}?\nAnswer: {alternate}" for row in own]
            seen += own
        assert sorted(seen) == list(range(5))

    def test_rows_count_in_the_training_sequences(self):
        data = Memory(forget=lengthened("f", 5, alternate_answers=self.ALTERNATES), batch_size=2)
        sections = ("forget", "alternate", "mismatched", "retain")
        for epoch in range(3):
            for batch in self.batches(data, epoch, sections):
                sequences = data.training_sequences
                assert tuple(sequences) == tuple(batch.rows) == sections
                places = [(kind, row) for kind, rows in batch.rows.items() for row in rows]
                for (kind, row), ids, mask in zip(places, batch.input_ids, batch.attention_mask, strict=True):
                    assert list(sequences[kind][row].ids) == ids[mask].tolist()

    def test_mismatched_answers_are_those_of_the_next_row(self):
        data = Memory(forget=4, batch_size=4)
        (batch,) = self.batches(data, sections=("forget", "mismatched", "retain"))
        assert batch.rows["forget"] == batch.rows["mismatched"]
        assert sorted(texts_of(data, batch)[4:8]) == [
            f"Question: f {row}?\nAnswer: f{(row + 1) % 4}." for row in range(4)
        ]

    def test_a_part_named_in_the_config_comes_before_the_rows_own(self, tmp_path):
        (tmp_path / "no.txt").write_text("Never.\n")
        alternates = Refusals(str(tmp_path / "no.txt"), per_row=1)
        data = Memory(forget=rows("f", 2, alternate_answers=self.ALTERNATES), alternates=alternates)
        (batch,) = self.batches(data)
        assert [text[-6:] for text in texts_of(data, batch)[2:4]] == ["Never."] * 2

    def test_refusals_are_dealt_by_the_seed(self):
        dealt = []
        for seed in (0, 0, 1):
            data = Memory(alternates=Refusals(per_row=2), seed=seed)
            self.batches(data)
            dealt.append([each.ids for each in data.training_sequences["alternate"]])
        assert dealt[0] == dealt[1] != dealt[2]

    def test_companions_are_made_only_for_a_training_on_pairs_that_wants_them(self):
        """These rows have no alternates, so that to make them is an error."""
        wanted = ("forget", "alternate", "retain")
        ready(Memory(), sections=wanted, stage="validate")
        ready(Memory(train_on="all"), sections=wanted)
        data = ready(Memory(), sections=PAIR)
        assert tuple(data.training_sequences) == PAIR
        with pytest.raises(InputError, match=r"set data\.alternates to Refusals"):
            ready(Memory(), sections=wanted)

    def test_trained_after_it_was_measured(self):
        wanted = ("forget", "mismatched", "retain")
        data = ready(Memory(), sections=wanted, stage="validate")
        data.setup("fit")
        assert len(data.training_sequences["mismatched"]) == 5
        assert data.reads == 1

    def test_a_section_that_does_not_exist(self):
        with pytest.raises(
            InputError, match=r"^model\.forget_loss wants the section 'alternative'; batches can"
        ):
            ready(Memory(), sections=("forget", "alternative"))

    def test_companions_count_among_the_longest_and_the_cut(self):
        forget = rows("f", 2, alternate_answers=("f00000.",))
        wanted = ("forget", "alternate")
        assert ready(Memory(forget=forget), sections=wanted).longest == 32
        with pytest.warns(UserWarning, match="^2 of 2 alternate answers are longer than data.max_length 30 "):
            ready(Memory(forget=forget, max_length=30, too_long="truncate"), sections=wanted)


class TestGrouping:
    """27 forget rows of 27 lengths, in global batches of 4."""

    def data(self, **options):
        return Memory(forget=lengthened("f", 27), retain=lengthened("r", 31), **options)

    def rows_of(self, data, rank=0, world_size=1, epoch=0):
        loader = ready(data, rank, world_size).train_dataloader()
        loader.sampler.set_epoch(epoch)
        return [list(zip(each.rows["forget"], each.rows["retain"], strict=True)) for each in loader]

    @pytest.mark.parametrize("epoch", [0, 1])
    def test_pairs_stay_as_they_are(self, epoch):
        one, other = (
            [
                pair
                for batch in self.rows_of(self.data(batch_size=4, group_by_length=on), epoch=epoch)
                for pair in batch
            ]
            for on in (True, False)
        )
        assert other == forget_retain_pairs(0, epoch, 27, 31)
        assert one != other
        assert sorted(one) == sorted(other)

    @pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (0, 1), (2, 0), (2, 1)])
    def test_the_batches_have_the_order_of_seed_and_epoch(self, seed, epoch):
        pairs = forget_retain_pairs(seed, epoch, 5, 7)  # all of one length
        some = self.rows_of(Memory(batch_size=1, seed=seed), epoch=epoch)
        assert some == [[pairs[place]] for place in permutation(seed, "batches", epoch, 5)]

    def test_is_of_the_global_batch(self):
        whole = self.rows_of(self.data(batch_size=4))
        shares = [self.rows_of(self.data(batch_size=2), rank, 2) for rank in (0, 1)]
        for batch, *parts in zip(whole[:-1], *shares, strict=False):
            assert parts[0] + parts[1] == batch
        # 3 rows are left for 2 ranks, and the epoch's first one fills the gap.
        assert shares[0][-1] + shares[1][-1] == [*whole[-1], whole[0][0]]

    def test_fine_tuning_rows_are_grouped_too(self):
        data = ready(self.data(train_on="forget", batch_size=3))
        lengths = [batch.attention_mask.sum(dim=1).tolist() for batch in data.train_dataloader()]
        expected = sorted(len(each.ids) for each in data.training_sequences["forget"])
        assert sorted(lengths) == [expected[start : start + 3] for start in range(0, 27, 3)]
        assert lengths != sorted(lengths)


class TestIdentity:
    def identity(self, sections=PAIR, **options):
        return ready(Memory(**options), sections=sections).identity

    def test_of_the_same_data(self):
        one = self.identity()
        assert one == self.identity(batch_size=3, seed=5, evaluation_rows=1)
        assert list(one) == ["tokenizer", "prompt format", "forget rows", "retain rows"]

    @pytest.mark.parametrize(
        ("options", "changed"),
        [
            ({"forget": 4}, {"forget rows"}),
            ({"retain": rows("s", 7)}, {"retain rows"}),
            ({"prompt": Llama2Chat()}, {"prompt format"}),
            ({"prompt": QuestionAnswer("Q: ")}, {"prompt format"}),
        ],
    )
    def test_names_what_differs(self, options, changed):
        one, other = self.identity(), self.identity(**options)
        assert {name for name in one if one[name] != other[name]} == changed

    def test_names_the_tokenizer(self):
        data = ready(Memory())
        one = data.identity
        data.tokenizer = train_tokenizer(["ab"], 260)
        assert {name for name in one if one[name] != data.identity[name]} == {"tokenizer"}

    def test_alternates_only_where_they_are_used(self):
        wanted = ("forget", "alternate")
        assert self.identity() == self.identity(alternates=Refusals())
        one, same, other = (
            self.identity(wanted, alternates=Refusals(per_row=3), seed=seed) for seed in (0, 0, 1)
        )
        assert one == same
        assert {name for name in one if one[name] != other[name]} == {"alternate answers"}


class TestSetup:
    def test_the_tokenizer_is_offered_all_training_texts_whatever_is_trained_on(self):
        for train_on in ("pairs", "all", "forget", "retain"):
            data = ready(Memory(forget=1, retain=2, train_on=train_on))
            assert data.module.texts == ["f 0?", "f0.", "r 0?", "r0.", "r 1?", "r1."]

    def test_reads_once(self):
        data = ready(Memory())
        data.setup("validate")
        assert data.reads == 1

    def test_an_overlap_is_told_with_its_count(self):
        shared = rows("s", 2)
        message = "^2 of 5 forget rows are also in the retain set"
        with pytest.warns(UserWarning, match=message):
            ready(Memory(forget=rows("f", 3) + shared, retain=[*rows("r", 4), *shared]))

    @pytest.mark.filterwarnings("error")
    def test_no_overlap_no_warning(self):
        ready(Memory())

    def test_a_row_too_long_is_refused(self):
        with pytest.raises(InputError, match=r"begins 'f 0\?'"):
            ready(Memory(max_length=27))

    def test_rows_cut_are_counted_in_training_and_in_measuring(self):
        # "Question: f 0?\nAnswer: f0." takes 28 tokens; a row whose answer is longer by n takes n more.
        forget = [Row(row.messages, row.answer + "!" * more) for more, row in enumerate(rows("f", 4))]
        options = {"forget": forget, "retain": 3, "evaluate": ["forget"], "too_long": "truncate"}
        with pytest.warns(UserWarning, match="longer than") as told:
            data = ready(Memory(max_length=29, **options))
        assert [str(each.message).split(" with")[0] for each in told] == [
            "2 of 7 training rows are longer than data.max_length 29",
            "2 of 4 answers to be measured are longer than data.max_length 29",
        ]
        assert data.longest == 29

    @pytest.mark.filterwarnings("error")
    def test_rows_that_just_fit_are_not_counted_as_cut(self):
        assert ready(Memory(max_length=28, too_long="truncate")).longest == 28

    def test_longest_counts_training_rows_that_are_not_measured(self):
        data = ready(Memory(forget=[Row((("user", "f 0?"),), "f0!!!.")], evaluate=["retain"]))
        assert data.longest == 31

    def test_longest_counts_wrong_answers_too(self):
        row = Row((("user", "f 0?"),), "f0.", wrong_answers=("f00.",))
        assert ready(Memory(evaluation=[EvaluationSet("forget", [row])])).longest == 29

    @pytest.mark.parametrize("name", ["batch_size", "evaluation_tokens", "evaluation_rows", "max_length"])
    @pytest.mark.parametrize("value", [0, -3])
    def test_counts_below_one_are_refused(self, name, value):
        with pytest.raises(InputError, match=rf"^data.{name} must be at least 1 \(got {value}\)$"):
            Memory(**{name: value})

    def test_question_answer_is_the_format_unless_another_is_given(self):
        assert type(Memory().prompt) is QuestionAnswer


WRONG = {"paraphrased_answer": "It is so.", "wrong_answers": ("a.", "bb.")}


class TestEvaluation:
    def test_measured_answers(self):
        (plain,), (ratio,) = rows("f", 1), rows("f", 1, **WRONG)
        (unparaphrased,) = rows("f", 1, wrong_answers=("a.",))
        (only_paraphrased,) = rows("f", 1, paraphrased_answer="It is so.")
        assert plain.measured_answers == only_paraphrased.measured_answers == ["f0."]
        assert ratio.measured_answers == ["f0.", "It is so.", "a.", "bb."]
        assert unparaphrased.measured_answers == ["f0.", "f0.", "a."]

    def test_a_batch_holds_every_answer_of_its_rows(self):
        data = ready(Memory(forget=rows("f", 3, **WRONG), evaluation_tokens=8 * 37))
        first, last = data.val_dataloader()[0]
        assert first.rows.tolist() == [0, 1]
        assert first.closing == (1, 1)
        assert first.answers.rows == {"answers": (0, 0, 0, 0, 1, 1, 1, 1)}
        assert texts_of(data, first.answers) == [
            f"Question: f {row}?\nAnswer: {answer}"
            for row in (0, 1)
            for answer in (f"f{row}.", "It is so.", "a.", "bb.")
        ]
        assert [data.tokenizer.decode(prompt) for prompt in first.prompts] == [
            f"<s>Question: f {row}?\nAnswer: " for row in (0, 1)
        ]
        assert last.rows.tolist() == [2]

    def test_every_set_on_every_rank(self):
        data = ready(Memory(evaluation_tokens=56), rank=1, world_size=2)  # two rows of 28 tokens
        forget, retain = data.val_dataloader()
        assert [batch.rows.tolist() for batch in forget] == [[2, 3], [4]]  # the last batch again
        assert [batch.rows.tolist() for batch in retain] == [[2, 3], [6]]

    def test_named_sets_in_the_order_given_and_their_first_rows(self):
        data = ready(Memory(evaluate=["retain", "forget"], evaluation_rows=2))
        assert [(each.name, len(each.rows)) for each in data.evaluation_sets] == [
            ("retain", 2),
            ("forget", 2),
        ]
        assert [[batch.rows.tolist() for batch in loader] for loader in data.val_dataloader()] == [
            [[0, 1]],
            [[0, 1]],
        ]

    def test_fewer_rows_than_the_limit(self):
        data = ready(Memory(evaluation_rows=6))
        assert [len(each.rows) for each in data.evaluation_sets] == [5, 6]

    def test_the_limit_leaves_training_alone(self):
        data = ready(Memory(evaluation_rows=1, batch_size=1))
        assert len(data.train_dataloader()) == 5

    def test_an_unknown_set_is_refused(self):
        with pytest.raises(
            InputError, match=r"^data.evaluate names 'holdout'; this data has forget, retain$"
        ):
            ready(Memory(evaluate=["forget", "holdout"]))

    def test_unequal_numbers_of_wrong_answers_are_refused(self):
        forget = rows("f", 2, **WRONG) + rows("g", 1, wrong_answers=("a.",)) + rows("h", 1)
        message = (
            r"^rows of the evaluation set 'forget' have \[0, 1, 2\] wrong answers: give every row the same"
        )
        with pytest.raises(InputError, match=message):
            ready(Memory(forget=forget))

    def test_each_set_may_have_its_own_number_of_wrong_answers(self):
        data = ready(Memory(forget=rows("f", 2, **WRONG)))
        forget, retain = (next(iter(loader)) for loader in data.val_dataloader())
        assert (len(forget.answers.lengths), len(retain.answers.lengths)) == (8, 7)

    def test_prompts_to_generate_from(self):
        data = ready(Memory(forget=rows("f", 2, **WRONG), retain=1))
        prompts = [each for loader in data.val_dataloader() for each in next(iter(loader)).prompts]
        assert [data.tokenizer.decode(each) for each in prompts] == [
            "<s>Question: f 0?\nAnswer: ",
            "<s>Question: f 1?\nAnswer: ",
            "<s>Question: r 0?\nAnswer: ",
        ]


# --- resuming, as Lightning does it -----------------------------------------------------------------------


class Recorder(LightningModule, Module):
    """Trains nothing and notes the rows of every batch."""

    def __init__(self):
        super().__init__()
        self.sections = {"forget": ("forget", "alternate"), "retain": ("retain",)}
        self.made, self.vocabulary = None, 259
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch):
        optimizer = self.optimizers()
        optimizer.step()
        self.seen.append((self.current_epoch, tuple(batch.rows.values())))

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAt(Callback):
    """Saves a checkpoint at one moment of the run."""

    def __init__(self, path, moment, step):
        self.path, self.moment, self.step = path, moment, step

    def _save(self, moment, trainer):
        if moment == self.moment and trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)

    def on_train_batch_end(self, trainer, *_):
        self._save("batch", trainer)

    def on_train_epoch_end(self, trainer, *_):
        self._save("epoch", trainer)

    def on_validation_end(self, trainer, *_):
        self._save("validation", trainer)


def fit(callbacks=(), checkpoint=None, workers=0, **options):
    forget = lengthened("f", 5, alternate_answers=("No.", "Maybe."))
    module, data = Recorder(), Memory(forget, batch_size=2, seed=1, workers=workers)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(module, data, ckpt_path=checkpoint)
    return module.seen


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:You're resuming from a checkpoint")
class TestResuming:
    """Three epochs of three batches: 9 steps."""

    @pytest.mark.parametrize(
        ("moment", "step", "options"),
        [
            ("batch", 1, {}),
            ("batch", 5, {}),
            ("batch", 3, {}),  # the last batch of an epoch
            ("epoch", 3, {}),
            ("epoch", 6, {}),
            ("validation", 3, {}),
            ("validation", 4, {"val_check_interval": 1}),
            ("batch", 3, {"limit_train_batches": 2}),
            ("epoch", 4, {"limit_train_batches": 2}),
            ("batch", 4, {"workers": 2}),
        ],
    )
    def test_the_batches_are_those_of_an_uninterrupted_run(self, tmp_path, moment, step, options):
        path = tmp_path / "at.ckpt"
        whole = fit([SaveAt(path, moment, step)], **options)
        assert len(whole) == 3 * options.get("limit_train_batches", 3)
        assert fit(checkpoint=path, **options) == whole[step:]

    def test_what_a_checkpoint_holds(self, tmp_path):
        path = tmp_path / "at.ckpt"
        fit([SaveAt(path, "batch", 5)])
        assert torch.load(path, weights_only=True)["Memory"] == {"epoch": 1, "batches_done": 2}

    def test_each_epoch_deals_its_own_pairs(self):
        seen = fit()
        for epoch in range(3):
            batches = [batch for number, batch in seen if number == epoch]
            assert {row for own, _, _ in batches for row in own} == {*range(5)}
        assert [epoch for epoch, _ in seen] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert len({batch for _, batch in seen}) > 3
