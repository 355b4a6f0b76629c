"""Pictures of a training run: panels in every validation; samples, a shift map and an animation at its end."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from genstab.data.collate import source_of
from genstab.errors import check_counts
from genstab.inference.eval_mode import inference, submodule
from genstab.loggers.media import log_image, log_video
from genstab.metrics.shift_map import RolledOutputs, measure_map
from genstab.metrics.shift_ops import Shift, parse_shifts
from genstab.report.figures import picture_table, save_picture, shift_panel, write_exhibits
from genstab.runtime.files import FailedWrites
from genstab.runtime.loop_state import logged_step


class ShiftPictures(Callback):
    """Log panels in every validation, and write samples, a shift map and an animation at the end.

    Each validation logs `samples` (source, output, target) and `shift` (output of the shifted source, shifted output,
    and their difference), at the step of the validation's metrics. The end of the training writes `samples.png`,
    `shift_map.png` (PSNR over Δh, Δw) and `shift.gif` (the source slides; the output moved back should stand still)
    to `folder` and logs them. The first process draws all of them from the first images of the first validation batch.

    Args:
        folder: folder of the files.
        images: rows of a panel.
        shift: (dy, dx) of the panel.
        reach: the map has all shifts with |Δh|, |Δw| up to this many pixels.
        map_images: number of images that the map averages over.
        frames: number of frames of the animation, which moves by one pixel each.
        source_key, generator: as for `ShiftStability`; the `target` of a dict is shown if it has one.

    Raises:
        InputError: a count below 1, a zero shift.
    """

    def __init__(
        self,
        folder: str | Path,
        images: int = 4,
        shift: Sequence[int] = (0, 3),
        reach: int = 8,
        map_images: int = 2,
        frames: int = 32,
        source_key: str = "source",
        generator: str | None = None,
    ) -> None:
        check_counts(images=images, reach=reach, map_images=map_images, frames=frames)
        self.folder, self.images, self.reach = Path(folder), images, reach
        self.map_images, self.frames = map_images, frames
        self.shift = parse_shifts([shift])[0]
        self.source_key, self.generator = source_key, generator
        self.kept: dict[str, Tensor] = {}  # the first images: `source`, and `target` if there is one
        self.decibels: dict[Shift, float] = {}
        self.unwritten = FailedWrites("picture", "the training goes on without it")

    @rank_zero_only
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first images."""
        if batch_idx == 0 and dataloader_idx == 0:
            found = {"source": source_of(batch, self.source_key)}
            if isinstance(batch, Mapping) and isinstance(batch.get("target"), Tensor):
                found["target"] = batch["target"]
            self.kept = {key: images[: self.images].detach().clone() for key, images in found.items()}

    @rank_zero_only
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log both panels."""
        if trainer.sanity_checking or not self.kept:
            return
        with inference(submodule(pl_module, self.generator)) as generate:
            source, output = self.kept["source"], generate(self.kept["source"])
            panels = {
                "samples": {"source": source, "output": output, **self.kept},
                "shift": shift_panel(generate, source, output, self.shift),
            }
        step = logged_step(trainer)
        for logger in trainer.loggers:
            for key, columns in panels.items():
                log_image(logger, key, picture_table(columns), step)

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and log samples, map and animation."""
        if not self.kept:
            return
        with inference(submodule(pl_module, self.generator)) as generate:
            source, output = self.kept["source"], generate(self.kept["source"])
            rolled, images = RolledOutputs(source, output), source[: self.map_images]
            self.decibels = measure_map(generate, images, self.reach, rolled=rolled, check_finite=False)
            samples = {"source": source, "output": output, **self.kept}
            shown = samples, rolled, self.decibels, f"circular, {len(images)} images", self.frames
            pictures = write_exhibits(self.folder, generate, *shown, spare=self.unwritten.tolerate)
        for key, picture in pictures.items():
            with self.unwritten.tolerate(self.folder / f"{key}.png"):
                save_picture(picture, self.folder / f"{key}.png")
        step, animation = logged_step(trainer), self.folder / "shift.gif"
        for logger in trainer.loggers:
            log_image(logger, "shift_map", pictures["shift_map"], step)
            if str(animation) not in self.unwritten.files:
                log_video(logger, "shift_film", animation, step)
