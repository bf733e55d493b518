"""A fit that is interrupted anywhere and resumed sees the batches it would have seen anyway."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import SequentialSampler

from ssl_lightning.data.datamodule import MNISTDataModule
from ssl_lightning.data.loading import ResumableLoader

BATCHES = 10  # per epoch: 7,000 bundled training images in batches of 700

pytestmark = [
    # raised by torch.utils._pytree when Lightning's CombinedLoader uses it
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    # in-memory sets are faster without workers; Lightning suggests them all the same
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


class KilledError(Exception):
    pass


class Recorder(LightningModule):
    """Writes down each batch; dies where it is told to."""

    def __init__(self, die_before: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(28 * 28, 10)
        self.die_before = die_before
        self.seen: list[tuple[int, int, int, bytes]] = []

    def training_step(self, batch, batch_idx):
        if self.global_step == self.die_before:
            raise KilledError
        images, labels = batch
        content = images[:, :, ::5, ::5].numpy().tobytes() + labels.numpy().tobytes()
        self.seen.append((self.global_step, self.current_epoch, batch_idx, content))
        return torch.nn.functional.cross_entropy(self.layer(images.flatten(1)), labels)

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)


def fit(
    folder: Path, die_before: int | None = None, resume: Path | None = None, **options
) -> Recorder:
    every = options.pop("every_n_train_steps", 3)
    data = MNISTDataModule(
        batch_size=options.pop("batch_size", 700),
        augment=True,
        num_workers=options.pop("num_workers", 0),
    )
    model = Recorder(die_before)
    when = {"every_n_train_steps": every} if every else {"every_n_epochs": 1}
    keep = ModelCheckpoint(folder, "{step}", save_top_k=-1, **when)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[keep],
        **({"max_epochs": 3, "limit_val_batches": 1} | options),
    )
    try:
        trainer.fit(model, data, ckpt_path=resume, weights_only=False if resume else None)
    except KilledError:
        assert die_before is not None
    return model


CASES = {
    # name: (die before step, resume from step, options)
    "mid_first_epoch": (8, 6, {}),
    "mid_second_epoch": (17, 15, {}),
    "checkpoint_at_last_batch": (23, 20, {"every_n_train_steps": 10}),
    "checkpoint_at_epoch_end": (14, 10, {"every_n_train_steps": 0}),
    "counted_in_steps": (17, 15, {"max_epochs": -1, "max_steps": 27}),
    "counted_in_steps_epoch_end": (
        13,
        10,
        {"max_epochs": -1, "max_steps": 27, "every_n_train_steps": 5},
    ),
    "limited_epochs": (11, 9, {"limit_train_batches": 6}),
    "validates_mid_epoch": (8, 6, {"val_check_interval": 4}),
    "checkpoint_at_validation": (18, 16, {"val_check_interval": 6, "every_n_train_steps": 4}),
    "accumulates": (7, 6, {"accumulate_grad_batches": 2}),
    "no_validation": (17, 15, {"limit_val_batches": 0}),
    "with_workers": (14, 12, {"num_workers": 2, "max_epochs": 2}),
}


@pytest.mark.parametrize("name", CASES)
def test_resumed_fit_sees_the_same_batches(name: str, tmp_path: Path) -> None:
    die_before, resume_from, options = CASES[name]
    whole = fit(tmp_path / "whole", **options)
    killed = fit(tmp_path / "killed", die_before, **options)
    done = [entry for entry in whole.seen if entry[0] < die_before]
    assert killed.seen[: len(done)] == done
    resume = tmp_path / "killed" / f"step={resume_from}.ckpt"
    resumed = fit(tmp_path / "killed", resume=resume, **options)
    expected = [entry for entry in whole.seen if entry[0] >= resume_from]
    assert [entry[:3] for entry in resumed.seen] == [entry[:3] for entry in expected]
    assert resumed.seen == expected
    assert len({entry[3] for entry in whole.seen}) == len(whole.seen)  # no two batches are alike
    for old, new in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(old, new)


def test_resuming_mid_epoch_with_another_batch_size_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, die_before=8)
    with pytest.raises(
        ValueError, match=r"global batch size of 700, this run has 350\. Use the old"
    ):
        fit(tmp_path, resume=tmp_path / "step=6.ckpt", batch_size=350)


@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_overfitting_repeats_the_same_batches(tmp_path: Path) -> None:
    seen = fit(tmp_path, overfit_batches=2).seen
    assert [entry[2] for entry in seen] == [0, 1] * 3
    assert len({entry[3] for entry in seen}) == 2


class Predictor(Recorder):
    def test_step(self, batch, batch_idx):
        self.log("size", float(len(batch[1])), reduce_fx="sum", batch_size=len(batch[1]))

    def predict_step(self, batch, batch_idx):
        return batch[1]


def test_trainer_tests_and_predicts_on_the_whole_test_split() -> None:
    data = MNISTDataModule(eval_batch_size=3000)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.test(Predictor(), data, verbose=False)
    assert trainer.callback_metrics["size"] == 10_000
    predictions = trainer.predict(Predictor(), data)
    assert [len(batch) for batch in predictions] == [3000, 3000, 3000, 1000]
    assert torch.equal(torch.cat(predictions), data.dataset("test").labels)


def take(loader, number: int) -> list[list[int]]:
    batches = iter(loader)
    return [next(batches)[1].tolist() for _ in range(number)]


def test_resumed_loader_skips_without_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    module = MNISTDataModule(batch_size=700)
    loader = module.train_dataloader()
    whole = take(loader, 10)
    loader = module.train_dataloader()
    take(loader, 7)
    state = loader.state_dict()
    assert state == {"epoch": 0, "batches": 7, "global_batch_size": 700}
    resumed = module.train_dataloader()
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    calls = []
    dataset = type(module.dataset("train"))
    original = dataset.__getitems__
    monkeypatch.setattr(dataset, "__getitems__", lambda *a: calls.append(1) or original(*a))
    assert [batch[1].tolist() for batch in resumed] == whole[7:]
    assert len(calls) == 3
    assert len(resumed) == 10
    assert take(resumed, 10) == whole  # the position counts once


def test_state_of_another_epoch_or_of_a_complete_one_starts_anew() -> None:
    module = MNISTDataModule(batch_size=700)
    whole = take(module.train_dataloader(), 10)
    for state in ({"epoch": 1, "batches": 3}, {"epoch": 0, "batches": 10}):
        loader = module.train_dataloader()
        loader.load_state_dict(state | {"global_batch_size": 999})
        assert take(loader, 10) == whole


def test_epoch_may_be_set_between_iter_and_next() -> None:
    module = MNISTDataModule(batch_size=700)
    early, late = module.train_dataloader(), module.train_dataloader()
    early.sampler.set_epoch(1)
    batches = iter(late)
    late.sampler.set_epoch(1)
    assert next(batches)[1].tolist() == take(early, 1)[0]


def test_an_ordinary_sampler_works_too() -> None:
    data = list(range(10))
    loader = ResumableLoader(data, batch_size=2, sampler=SequentialSampler(data))
    loader.load_state_dict({"epoch": 0, "batches": 3, "global_batch_size": 2})
    assert [batch.tolist() for batch in loader] == [[6, 7], [8, 9]]
