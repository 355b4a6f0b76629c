"""pix2pix as a LightningModule with two optimizers (Isola 2017, arXiv 1611.07004, sections 3 and 6.2)."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from genstab.data.overlapping_crops import MARGIN, equivariance_loss
from genstab.data.shares import dataset_positions, images_in_batch, share
from genstab.errors import InputError, check_choice, check_counts
from genstab.metrics.precision import ImageMean
from genstab.metrics.quality import image_quality
from genstab.metrics.sliced_wasserstein import MOST_PATCHED, SlicedWasserstein
from genstab.metrics.spectrum import SpectrumError
from genstab.runtime.loop_state import takes_step
from genstab.runtime.random_state import random_states, set_random_states
from genstab.training.gradients import ALGORITHMS, clip_gradients
from genstab.training.losses import GAN_LOSSES, adversarial_loss, detail_loss

Batch = dict[str, Any]
Optimizer = torch.optim.Optimizer | LightningOptimizer
QUALITY = ("l1", "psnr", "ssim", "tv", "tv_target")


class Pix2Pix(LightningModule):
    """Train a generator and a discriminator on pairs with an adversarial loss + λ · L1.

    One forward pass of the generator per step serves both updates. `global_step` and all logged steps count batches,
    or with `accumulate_grad_batches` the updates.
    Logs `train/loss_d`, `train/loss_g` and its parts `train/loss_g_gan`, `train/loss_g_l1` and, where they have a
    weight, `train/loss_g_shift` and `train/loss_g_detail`; in validation the per-image means `val/l1`, `val/psnr`,
    `val/ssim`, `val/tv`, `val/tv_target`, and for the outputs as a set `val/spectrum_error` (dB) and `val/swd` (for the
    first 256 images). Each image counts once on any number of processes.

    Args:
        generator: source (N, C, H, W) in [−1, 1] → output (N, C', H, W) in [−1, 1].
        discriminator: (source, image) → logits of any shape.
        gan_loss: `bce` or `lsgan`.
        l1_weight: λ, 100 in the paper.
        equivariance_weight: weight of `genstab.data.overlapping_crops.equivariance_loss`, the difference between the
            outputs for overlapping crops.
        detail_weight: weight of `genstab.training.losses.detail_loss`.
        lr: learning rate of both Adam optimizers, constant in the first half and decaying linearly to 0 in the second.
        betas: betas of both Adam optimizers.
        channels_last: use the channels-last memory format, faster on CPUs and on GPUs with half precision.
        compile: compile both networks with `torch.compile`.
        accumulate_grad_batches: batches per update, as if they were one; see `update`. The Trainer's own argument of
            this name does not work with two optimizers, nor do the next two.
        gradient_clip_val: clip the gradients of each network before its update; None or 0: don't.
        gradient_clip_algorithm: `norm` of all gradients of the network, or `value`; None is `norm`.

    Raises:
        InputError: an unknown loss or algorithm, a negative weight, learning rate or clip, a count below 1, or invalid
            betas.

    >>> from genstab import PatchGAN, UNet
    >>> Pix2Pix(UNet(channels=4, levels=3), PatchGAN(channels=4))(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 3, 32, 32])
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        gan_loss: str = "bce",
        l1_weight: float = 100.0,
        equivariance_weight: float = 0.0,
        detail_weight: float = 0.0,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        channels_last: bool = True,
        compile: bool = False,
        accumulate_grad_batches: int = 1,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        super().__init__()
        check_choice("gan_loss", gan_loss, GAN_LOSSES)
        check_counts(accumulate_grad_batches=accumulate_grad_batches)
        check_choice("gradient_clip_algorithm", gradient_clip_algorithm or "norm", ALGORITHMS)
        numbers = {
            "l1_weight": l1_weight, "equivariance_weight": equivariance_weight, "detail_weight": detail_weight,
            "gradient_clip_val": gradient_clip_val or 0,
        }  # fmt: skip
        for name, number in numbers.items():
            if not 0 <= number < math.inf:
                raise InputError(f"{name}={number} is not a finite number of at least 0")
        if not 0 < lr < math.inf:
            raise InputError(f"lr={lr} is not a positive finite number")
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise InputError(f"betas={list(betas)} are not two numbers from 0 to below 1")
        self.automatic_optimization = False
        self.generator, self.discriminator = generator, discriminator
        self.gan_loss, self.l1_weight, self.lr = gan_loss, l1_weight, lr
        self.equivariance_weight, self.detail_weight = equivariance_weight, detail_weight
        self.betas = (betas[0], betas[1])  # a tuple, also where a config gives a list
        self.accumulate_grad_batches = accumulate_grad_batches
        self.gradient_clip_val, self.gradient_clip_algorithm = gradient_clip_val, gradient_clip_algorithm or "norm"
        self.held: list[tuple[Batch, float, int]] = []  # of the update to come, see `_share`
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.validated = 0  # images that this process has seen in this validation
        self.quality = nn.ModuleDict({key: ImageMean() for key in QUALITY})
        self.quality.update({"spectrum_error": SpectrumError(), "swd": SlicedWasserstein()})
        for network in (generator, discriminator):
            network.to(memory_format=self.memory_format)  # type: ignore[call-overload]  # not in its stub
            if compile:
                network.compile()

    def forward(self, source: Tensor) -> Tensor:
        """Translate (N, C, H, W) in [−1, 1] to the output in [−1, 1]."""
        return self.generator(source.contiguous(memory_format=self.memory_format))

    def configure_optimizers(self) -> tuple[list[torch.optim.Adam], list[LambdaLR]]:
        """Return Adam for the discriminator and the generator, with a linear decay over the second half."""
        total = float(self.trainer.estimated_stepping_batches) or 1.0  # none at all with max_steps=0

        def decay(step: int) -> float:
            return max(0.0, min(1.0, 2 - 2 * step / total))

        optimizers = list(self.adams())
        return optimizers, [LambdaLR(optimizer, decay) for optimizer in optimizers]

    def adams(self) -> tuple[torch.optim.Adam, torch.optim.Adam]:
        """Return the optimizers of the discriminator and of the generator."""
        networks = self.discriminator, self.generator
        clip = bool(self.gradient_clip_val)
        adam_d, adam_g = (  # a fused one divides by the scale of mixed precision in its step, too late for a clip
            torch.optim.Adam(network.parameters(), lr=self.lr, betas=self.betas, fused=not clip) for network in networks
        )
        for adam in (adam_d, adam_g) if clip else ():
            adam.register_step_pre_hook(self._clip)
        return adam_d, adam_g

    def _clip(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        clip_gradients(parameters, self.gradient_clip_val or 0, self.gradient_clip_algorithm)

    def setup(self, stage: str) -> None:
        """Tell the trainer how many batches an update takes, after it has checked that it need not do this itself."""
        if stage == "fit":
            self.trainer.accumulate_grad_batches = self.accumulate_grad_batches

    def teardown(self, stage: str) -> None:
        """Leave the trainer as it was."""
        if stage == "fit":
            self.trainer.accumulate_grad_batches = 1

    def on_train_start(self) -> None:
        """Drop batches that an earlier training did not get to."""
        self.held = []

    def on_fit_start(self) -> None:
        """Give each process its own random numbers for dropout, crops and flips: Lightning seeds all alike."""
        if self.trainer.global_rank:
            torch.manual_seed(torch.initial_seed() + self.trainer.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Update the discriminator, then the generator, on one batch of `source` and `target`, or hold it back.

        It returns the losses of this process, and logs their mean over all processes.
        """
        optimizer_d, optimizer_g = self.optimizers()  # type: ignore[attr-defined]  # two of them, so a list
        # Lightning counts every optimizer step in global_step; count only the generator's, so that it counts batches.
        # It has no public way to do so: `optimizer.optimizer.step()` would also skip the scaler of mixed precision.
        optimizer_d._on_before_step = optimizer_d._on_after_step = lambda: None
        self.held.append(self._share(batch, batch_idx))
        if not takes_step(self.trainer, batch_idx):
            # private: Lightning would log the losses of the last update again, at the step of the next one
            self.trainer.fit_loop.epoch_loop._results.reset(fx="training_step")
            return {}
        (batches, own, images), self.held = zip(*self.held, strict=True), []
        weights = [weight * (count / sum(images)) for weight, count in zip(own, images, strict=True)]
        losses = self.update(batches, optimizer_d, optimizer_g, self.manual_backward, weights)
        for scheduler in self.lr_schedulers():  # type: ignore[union-attr]  # two of them, so a list
            scheduler.step()
        weighted = {f"train/{key}": sum(weights) * loss for key, loss in losses.items()}
        self.log_dict(weighted, batch_size=len(batch["source"]), sync_dist=True)
        return losses

    def _share(self, batch: Batch, batch_idx: int) -> tuple[Batch, float, int]:
        """Leave out repeated images; return the weight with which several processes train like a single one.

        Also the number of images that all processes have in this batch.
        """
        trainer, length = self.trainer, len(batch["source"])
        shared = trainer.train_dataloader, batch_idx, length, trainer.world_size
        images = images_in_batch(*shared)
        if "shift" in batch:  # whoever made the overlapping crops left them out
            return batch, batch.get("weights", (1.0,))[0], images
        counted, weight = share(*shared, trainer.global_rank)
        if not counted.all():
            batch = {**batch, **{key: batch[key][counted.to(batch[key].device)] for key in ("source", "target")}}
        return batch, weight, images

    def update(
        self,
        batch: Batch | Sequence[Batch],
        optimizer_d: Optimizer,
        optimizer_g: Optimizer,
        backward: Callable[[Tensor], None] = Tensor.backward,
        weights: Sequence[float] | None = None,
    ) -> dict[str, Tensor]:
        """Do a training step without a trainer; return the losses `loss_d`, `loss_g` and its parts.

        Several batches make the step that one batch of all their images makes, in the memory that the largest of them
        takes: their outputs are computed once for the discriminator and, except for those of the last batch, again for
        the generator, which needs the updated discriminator, with the same random numbers. What depends on the batch
        itself stays its own: the statistics of batch norm, and overlapping crops, which are one pair of positions and
        at least one image of every batch.

        Args:
            batch: `source` and `target`, or several of these.
            optimizer_d, optimizer_g: as from `adams`.
            backward: computes the gradients of a loss.
            weights: of the batches; None: their shares of the images.

        Raises:
            InputError: an `equivariance_weight`, but a batch without overlapping crops.
        """
        batches = [
            {**each, "target": each["target"].contiguous(memory_format=self.memory_format)}
            for each in ([batch] if isinstance(batch, Mapping) else batch)
        ]
        if weights is None:
            weights = [len(each["source"]) / sum(len(other["source"]) for other in batches) for each in batches]
        total = sum(weights)
        shares = [weight / total if total else 1 / len(batches) for weight in weights]
        losses: dict[str, Tensor] = {}

        def descend(found: dict[str, Tensor], key: str, index: int) -> None:
            backward(weights[index] * found[key])
            for name, loss in found.items():
                losses[name] = losses.get(name, 0) + shares[index] * loss.detach()

        drawn, last = [], len(batches) - 1
        optimizer_d.zero_grad()
        for index, each in enumerate(batches):
            drawn.append(random_states(self.device) if index < last else {})
            output = self(each["source"]) if index == last else self._without_graph(each["source"])
            with _frozen(self.generator):
                descend({"loss_d": self._loss_d(each, output)}, "loss_d", index)
        with _frozen(self.generator):
            optimizer_d.step()
        after = random_states(self.device) if last else {}
        optimizer_g.zero_grad()
        for index in range(last, -1, -1):
            if index < last:
                set_random_states(drawn[index], self.device)
                output = self(batches[index]["source"])
            with _frozen(self.discriminator):
                descend(self._losses_g(batches[index], output), "loss_g", index)
        if last:
            set_random_states(after, self.device)
        with _frozen(self.discriminator):
            optimizer_g.step()
        return losses

    def _without_graph(self, source: Tensor) -> Tensor:
        """Return the output, and leave what a forward pass changes as it was: there will be another one."""
        before = [buffer.clone() for buffer in self.generator.buffers()]
        with torch.no_grad():
            output = self(source)
            for buffer, kept in zip(self.generator.buffers(), before, strict=True):
                buffer.copy_(kept)
        return output

    def _loss_d(self, batch: Batch, output: Tensor) -> Tensor:
        source, target = batch["source"], batch["target"]
        on_output = adversarial_loss(self.discriminator(source, output.detach()), False, self.gan_loss)
        on_target = adversarial_loss(self.discriminator(source, target), True, self.gan_loss)
        return (on_output + on_target) / 2

    def _losses_g(self, batch: Batch, output: Tensor) -> dict[str, Tensor]:
        source, target = batch["source"], batch["target"]
        loss_g_gan = adversarial_loss(self.discriminator(source, output), True, self.gan_loss)
        loss_g_l1 = (output - target).abs().mean()
        loss_g = loss_g_gan + self.l1_weight * loss_g_l1
        parts = {"loss_g_gan": loss_g_gan, "loss_g_l1": loss_g_l1}
        if self.equivariance_weight:
            if "shift" not in batch:
                raise InputError("equivariance_weight needs overlapping crops: set data.overlap_offset, 8 for example")
            _, pair_weight = batch.get("weights", (1.0, 1.0))
            of_pairs = equivariance_loss(output, batch["shift"], MARGIN, batch.get("pairs"))
            parts["loss_g_shift"] = pair_weight * of_pairs
            loss_g = loss_g + self.equivariance_weight * parts["loss_g_shift"]
        if self.detail_weight:
            parts["loss_g_detail"] = detail_loss(output, target)
            loss_g = loss_g + self.detail_weight * parts["loss_g_detail"]
        return {"loss_g": loss_g, **parts}

    def on_validation_start(self) -> None:
        """Broadcast the BatchNorm statistics of rank 0, which are the ones in the checkpoint.

        DDP does not do it here, because of manual optimization.
        """
        self.validated = 0
        if self.trainer.world_size > 1:
            for buffer in self.generator.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the outputs (N, C, H, W)."""
        return self(batch["source"])

    def on_validation_batch_end(self, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Update the metrics with a batch: here, since `validation_step` runs in the precision of the trainer."""
        positions = dataset_positions(self.trainer, self.validated, len(batch["source"]))
        self.validated += len(positions)
        counted = positions >= 0
        if counted.any():
            counted = counted.to(outputs.device)
            shown, target = outputs[counted], batch["target"][counted]
            for key, values in image_quality(shown, target).items():
                self.quality[key].update(values)  # type: ignore[operator]  # a Metric
            self.quality["spectrum_error"].update(shown, target)  # type: ignore[operator]
            if patched := int((positions[positions >= 0] < MOST_PATCHED).sum()):  # positions are sorted
                self.quality["swd"].update(shown[:patched], target[:patched])  # type: ignore[operator]

    def on_validation_epoch_end(self) -> None:
        """Log the metrics, over all processes."""
        self.log_dict({f"val/{key}": metric for key, metric in self.quality.items()})  # type: ignore[misc]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the configuration of the generator, for `genstab.load_generator`."""
        checkpoint["generator"] = getattr(self.generator, "config", None)
        # how the files were read, for `genstab predict` and `genstab measure`
        checkpoint["data"] = getattr(getattr(self.trainer, "datamodule", None), "described", {})


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Disable the gradients of a network's parameters inside the context."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
