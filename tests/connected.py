"""Data modules as they are after Lightning's setup, without a LightningModule."""

from types import SimpleNamespace

from dipo_pl.models.tokenizer import train_tokenizer

PAIR = ("forget", "retain")


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
