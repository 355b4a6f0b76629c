"""pix2pix as a LightningModule with two optimizers (Isola 2017, arXiv 1611.07004, sections 3 and 6.2)."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from genstab.data.overlapping_crops import MARGIN, equivariance_loss
from genstab.data.shares import dataset_positions, share
from genstab.errors import InputError, check_choice
from genstab.metrics.precision import ImageMean
from genstab.metrics.quality import image_quality
from genstab.metrics.sliced_wasserstein import MOST_PATCHED, SlicedWasserstein
from genstab.metrics.spectrum import SpectrumError
from genstab.training.losses import GAN_LOSSES, adversarial_loss, detail_loss

Batch = dict[str, Any]
Optimizer = torch.optim.Optimizer | LightningOptimizer
QUALITY = ("l1", "psnr", "ssim", "tv", "tv_target")


class Pix2Pix(LightningModule):
    """Train a generator and a discriminator on pairs with an adversarial loss + λ · L1.

    One forward pass of the generator per step serves both updates. `global_step` and all logged steps count batches.
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

    Raises:
        InputError: an unknown loss, a negative weight or learning rate, or invalid betas.

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
    ) -> None:
        super().__init__()
        check_choice("gan_loss", gan_loss, GAN_LOSSES)
        weights = {"l1_weight": l1_weight, "equivariance_weight": equivariance_weight, "detail_weight": detail_weight}
        for name, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise InputError(f"{name}={weight} is not a finite number of at least 0")
        if not 0 < lr < math.inf:
            raise InputError(f"lr={lr} is not a positive finite number")
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise InputError(f"betas={list(betas)} are not two numbers from 0 to below 1")
        self.automatic_optimization = False
        self.generator, self.discriminator = generator, discriminator
        self.gan_loss, self.l1_weight, self.lr = gan_loss, l1_weight, lr
        self.equivariance_weight, self.detail_weight = equivariance_weight, detail_weight
        self.betas = (betas[0], betas[1])  # a tuple, also where a config gives a list
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
        adam_d, adam_g = (
            torch.optim.Adam(network.parameters(), lr=self.lr, betas=self.betas, fused=True) for network in networks
        )
        return adam_d, adam_g

    def on_fit_start(self) -> None:
        """Give each process its own random numbers for dropout, crops and flips: Lightning seeds all alike."""
        if self.trainer.global_rank:
            torch.manual_seed(torch.initial_seed() + self.trainer.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Update the discriminator, then the generator, on one batch of `source` and `target`.

        It returns the losses of this process, and logs their mean over all processes.
        """
        optimizer_d, optimizer_g = self.optimizers()  # type: ignore[attr-defined]  # two of them, so a list
        # Lightning counts every optimizer step in global_step; count only the generator's, so that it counts batches.
        # It has no public way to do so: `optimizer.optimizer.step()` would also skip the scaler of mixed precision.
        optimizer_d._on_before_step = optimizer_d._on_after_step = lambda: None
        batch, weight = self._share(batch, batch_idx)
        losses = self.update(batch, optimizer_d, optimizer_g, lambda loss: self.manual_backward(weight * loss))
        for scheduler in self.lr_schedulers():  # type: ignore[union-attr]  # two of them, so a list
            scheduler.step()
        weighted = {f"train/{key}": weight * loss for key, loss in losses.items()}
        self.log_dict(weighted, batch_size=len(batch["source"]), sync_dist=True)
        return losses

    def _share(self, batch: Batch, batch_idx: int) -> tuple[Batch, float]:
        """Leave out repeated images; return the weight with which several processes train like a single one."""
        if "shift" in batch:  # whoever made the overlapping crops left them out
            return batch, batch.get("weights", (1.0,))[0]
        trainer, length = self.trainer, len(batch["source"])
        counted, weight = share(trainer.train_dataloader, batch_idx, length, trainer.world_size, trainer.global_rank)
        if not counted.all():
            batch = {**batch, **{key: batch[key][counted.to(batch[key].device)] for key in ("source", "target")}}
        return batch, weight

    def update(
        self,
        batch: Batch,
        optimizer_d: Optimizer,
        optimizer_g: Optimizer,
        backward: Callable[[Tensor], None] = Tensor.backward,
    ) -> dict[str, Tensor]:
        """Do a training step without a trainer; return the losses `loss_d`, `loss_g` and its parts.

        Raises:
            InputError: an `equivariance_weight`, but a batch without overlapping crops.
        """
        source, target = batch["source"], batch["target"].contiguous(memory_format=self.memory_format)
        output = self(source)

        with _frozen(self.generator):
            on_output = adversarial_loss(self.discriminator(source, output.detach()), False, self.gan_loss)
            on_target = adversarial_loss(self.discriminator(source, target), True, self.gan_loss)
            loss_d = (on_output + on_target) / 2
            optimizer_d.zero_grad()
            backward(loss_d)
            optimizer_d.step()

        with _frozen(self.discriminator):
            loss_g_gan = adversarial_loss(self.discriminator(source, output), True, self.gan_loss)
            loss_g_l1 = (output - target).abs().mean()
            loss_g = loss_g_gan + self.l1_weight * loss_g_l1
            parts = {"loss_g_gan": loss_g_gan, "loss_g_l1": loss_g_l1}
            if self.equivariance_weight:
                if "shift" not in batch:
                    raise InputError(
                        "equivariance_weight needs overlapping crops: set data.overlap_offset, 8 for example"
                    )
                _, pair_weight = batch.get("weights", (1.0, 1.0))
                of_pairs = equivariance_loss(output, batch["shift"], MARGIN, batch.get("pairs"))
                parts["loss_g_shift"] = pair_weight * of_pairs
                loss_g = loss_g + self.equivariance_weight * parts["loss_g_shift"]
            if self.detail_weight:
                parts["loss_g_detail"] = detail_loss(output, target)
                loss_g = loss_g + self.detail_weight * parts["loss_g_detail"]
            optimizer_g.zero_grad()
            backward(loss_g)
            optimizer_g.step()
        losses = {"loss_d": loss_d, "loss_g": loss_g, **parts}
        return {key: loss.detach() for key, loss in losses.items()}

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
