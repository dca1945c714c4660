"""A training that was interrupted anywhere goes on with the batches of an uninterrupted one, as Lightning resumes it."""

import pytest
import torch
from connected import Memory, Module, lengthened
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


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
        self.optimizers().step()
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
    """Three epochs of three batches: 9 steps."""
    forget = lengthened("f", 5, alternate_answers=("No.", "Maybe."))
    module, data = Recorder(), Memory(forget, batch_size=2, seed=1, workers=workers)
    trainer = Trainer(
        accelerator="cpu", max_epochs=3, callbacks=list(callbacks), logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        num_sanity_val_steps=0, **options,
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=checkpoint)
    return module.seen


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:You're resuming from a checkpoint")
@pytest.mark.parametrize(("moment", "step", "options"), [
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
])  # fmt: skip
def test_the_batches_are_those_of_an_uninterrupted_run(tmp_path, moment, step, options):
    path = tmp_path / "at.ckpt"
    whole = fit([SaveAt(path, moment, step)], **options)
    assert len(whole) == 3 * options.get("limit_train_batches", 3)
    assert fit(checkpoint=path, **options) == whole[step:]
    if options or (moment, step) != ("batch", 5):
        return
    assert torch.load(path, weights_only=True)["Memory"] == {"epoch": 1, "batches_done": 2}
    # Each epoch deals its own pairs.
    assert [epoch for epoch, _ in whole] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for number in range(3):
        assert {row for epoch, (own, _, _) in whole for row in own if epoch == number} == {*range(5)}
    assert len({batch for _, batch in whole}) > 3
