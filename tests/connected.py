"""Data modules as they are after Lightning's setup, without a LightningModule; and one of rows in memory."""

from dataclasses import replace
from types import SimpleNamespace

from dipo_pl.data_modules.forget_retain import ForgetRetain
from dipo_pl.evaluation_set import EvaluationSet, RowSets
from dipo_pl.models.tokenizer import train_tokenizer
from dipo_pl.rows import Row

PAIR = ("forget", "retain")


def rows(name, count, **answers):
    return [Row((("user", f"{name} {number}?"),), f"{name}{number}.", **answers) for number in range(count)]


def lengthened(name, count, **answers):
    """Rows of different lengths, not in order of them."""
    return [
        replace(row, answer=row.answer + "!" * (7 * number % count))
        for number, row in enumerate(rows(name, count, **answers))
    ]


class Memory(ForgetRetain):
    """Rows given to it; evaluation sets `forget` and `retain` unless others are given."""

    def __init__(self, forget=5, retain=7, evaluation=None, **options):
        super().__init__(**options)
        self.given = [
            rows(name, some) if isinstance(some, int) else some
            for name, some in zip("fr", (forget, retain), strict=True)
        ]
        self.evaluation = evaluation
        self.reads = 0

    def read(self):
        self.reads += 1
        evaluation = [EvaluationSet(name, each) for name, each in zip(PAIR, self.given, strict=True)]
        return RowSets(*self.given, self.evaluation or evaluation)


class Module:
    """All that a data module asks of a LightningModule; remembers the texts that its tokenizer was offered."""

    trains_on = ("pairs", "all", "forget", "retain")

    def __init__(self, sections, tokenizer=None, vocabulary=259):
        self.sections = sections
        self.made = tokenizer
        self.vocabulary = vocabulary

    def tokenizer(self, texts):
        self.texts = list(texts)
        if self.made is None:
            self.made = train_tokenizer(self.texts, self.vocabulary)
        return self.made

    def connect(self, data):
        self.data = data


def connected(data, kinds=PAIR, rank=0, world_size=1, stage="fit", tokenizer=None, vocabulary=259):
    """Set up a data module whose batches of pairs hold these kinds of sequences.

    Without a `tokenizer` one of `vocabulary` tokens is trained; 259 are the bytes alone.
    """
    sections = {"train": ("train",)}
    if data.train_on == "pairs":
        companions = tuple(kind for kind in kinds if kind != "retain")
        sections = {"forget": companions} | ({"retain": ("retain",)} if "retain" in kinds else {})
    data.connect(Module(sections, tokenizer, vocabulary))
    data.trainer = SimpleNamespace(
        lightning_module=data.module, global_rank=rank, world_size=world_size, accumulate_grad_batches=1
    )
    data.setup(stage)
    return data


def texts_of(data, batch):
    """The sequences of a batch, without special tokens."""
    return [
        data.tokenizer.decode(ids[mask], skip_special_tokens=True)
        for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
    ]
