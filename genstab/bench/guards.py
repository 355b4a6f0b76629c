"""The cost of the checks in a training: blocks of batches with and without them, alternating in one training."""

import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer

from genstab.bench.layers import unet_levels
from genstab.bench.timing import FEWEST, MOST, compare, synchronize
from genstab.data.datamodules import PairedData
from genstab.data.pairs import Wanted, check_pairs, find_pairs
from genstab.data.synthetic import draw_facade
from genstab.layers.filters import AntiAlias
from genstab.networks.patchgan import PatchGAN
from genstab.networks.unet import UNet
from genstab.runtime.last_checkpoint import LastCheckpoint
from genstab.training.callbacks.collapse import CollapseWatch
from genstab.training.callbacks.finite_guard import FiniteGuard
from genstab.training.pix2pix import Pix2Pix

NONE, STOP, SKIP = "none", "all, on_nan=stop", "all, on_nan=skip"
PAIRS = 24
LOOK = 10  # batches from one look at the losses to the next, the default of conf/trainer


class Turns(Callback):
    """Alternate between sets of callbacks in a training, for a block of batches each, and time the blocks.

    The block of batch i is i // steps; the first one warms up. A block's time is that from the start of its first batch
    to the start of the next block's: with all that its callbacks do, and with reading the images.
    """

    def __init__(
        self, others: dict[str, list[Callback]], steps: int, seconds: float, tick: Callable[[], object]
    ) -> None:
        self.others, self.steps, self.seconds, self.tick = others, steps, seconds, tick
        self.times: dict[str, list[float]] = {name: [] for name in others}
        self.began = self.first = 0.0

    def name(self, block: int) -> str:
        """Return the set for a block: a b c, b c a, c a b, …"""
        names = list(self.others)
        turn, place = divmod(block, len(names))
        return names[(turn + place) % len(names)]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock at the first batch of a block."""
        block, place = divmod(trainer.fit_loop.total_batch_idx, self.steps)
        if place or not block:
            return
        synchronize(pl_module.device)
        now = time.perf_counter()
        self.first = self.first or now
        if block > 1:
            self.times[self.name(block - 2)].append((now - self.began) / self.steps)
        self.began = now
        self.tick()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Switch the callbacks after the last batch of a block, and stop after the last block."""
        done, place = divmod(trainer.fit_loop.total_batch_idx + 1, self.steps)
        if place:
            return
        # a new list: Lightning still goes through the old one
        trainer.callbacks = [self, *self.others[self.name(done - 1)]]  # type: ignore[attr-defined]  # by a connector
        rounds, rest = divmod(done - 1, len(self.others))
        if not rest and rounds >= FEWEST and time.perf_counter() - self.first > self.seconds:
            self.seconds = float("inf")
            trainer.fit_loop.epoch_loop.max_steps = trainer.global_step + 1  # for the last block to be read


class Repeated(PairedData):
    """The same pairs repeated, so that an epoch does not end."""

    def setup(self, stage: str) -> None:
        """Find and check the pairs once."""
        super().setup(stage)
        self.train_set.pairs *= 10_000  # type: ignore[attr-defined]  # of PairedImages


def draw_pairs(root: Path, size: int) -> None:
    """Write pairs of procedural façades to a folder, for training and validation."""
    for split in ("train", "val"):
        for side in "AB":
            (root / f"{split}{side}").mkdir(parents=True)
        for i in range(PAIRS):
            for side, image in zip("BA", draw_facade(0, i, size), strict=True):
                Image.fromarray(image).save(root / f"{split}{side}" / f"{i}.png")


def race(
    batch: int,
    size: int,
    channels: int,
    steps: int,
    seconds: float,
    device: torch.device,
    tick: Callable[[], object] = lambda: None,
) -> tuple[list[dict[str, Any]], float]:
    """Time blocks of batches with all callbacks of conf/callbacks that check a training, and with none.

    Returns:
        A result for each, and the seconds that `data.check=fast` takes for 1000 pairs.
    """
    torch.manual_seed(0)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    generator = UNet(channels=channels, levels=unet_levels(size), antialias=AntiAlias())
    with TemporaryDirectory(prefix="genstab-bench-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on a loader without workers and the like
        root = Path(folder, "pairs")
        draw_pairs(root, size)
        last = LastCheckpoint(folder, every_n_epochs=1_000_000)
        every = {name: [FiniteGuard(name.rpartition("=")[2]), CollapseWatch(), last] for name in (STOP, SKIP)}
        turns = Turns({NONE: [], **every}, steps, seconds, tick)
        trainer = Trainer(
            accelerator="gpu" if device.type == "cuda" else device.type,
            devices=1,
            max_steps=steps * (1 + 3 * MOST) + 1,
            callbacks=[turns, *every[STOP]],
            log_every_n_steps=LOOK,
            limit_val_batches=0,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        data = Repeated(str(root), crop_size=size, load_size=size + size // 8, batch_size=batch, num_workers=0)
        trainer.fit(Pix2Pix(generator, PatchGAN(channels=channels)), datamodule=data)
        start = time.perf_counter()
        pairs = find_pairs(root, "train")
        check_pairs(pairs, Wanted(3, 3))
        checking = 1000 * (time.perf_counter() - start) / len(pairs)
    timings = compare(turns.times)
    results = [
        {
            "case": "training with guards",
            "kind": "guards",
            "shape": [batch, 3, size, size],
            "layout": "channels_last",
            "dtype": "float32",
            "contestant": name,
            "times": {"step": timing},
            "images_per_second": batch / timing["seconds"],
            "throughput": 1.0 if name == NONE else timings[NONE]["ratio"][name],
        }
        for name, timing in timings.items()
    ]
    return results, checking
