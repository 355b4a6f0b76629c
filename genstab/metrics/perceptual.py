"""FID and LPIPS of torchmetrics, with networks that are downloaded."""

from collections.abc import Sequence
from http.client import HTTPException
from pickle import UnpicklingError

import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

from genstab.errors import InputError
from genstab.runtime.random_state import random_states, set_random_states

METRICS = ("fid", "lpips")
NEEDED = "torch-fidelity, torchvision and their weights"
SMALLEST = 31  # pixels; AlexNet pools three times


class Perceptual:
    """Compute the Fréchet inception distance (FID) and the perceptual distance LPIPS; lower is better for both.

    FID (Heusel 2017, arXiv 1706.08500, equation 6) compares outputs and targets as sets, with the Inception network of
    the paper, in 8 bits and resized to 299×299. It decreases with the number of images, and is too noisy for a few
    dozen. LPIPS (Zhang 2018, arXiv 1801.03924, equation 1) compares each pair, with AlexNet, at their own size.

    Args:
        names: any of `METRICS`; the weights are downloaded when they are first used.
        device: device of the networks; the CPU instead of `mps`, since FID needs float64.

    Raises:
        InputError: a package is missing, or the weights cannot be downloaded or read.
    """

    def __init__(self, names: Sequence[str], device: torch.device | str = "cpu") -> None:
        self.names = names
        self.device = torch.device("cpu") if torch.device(device).type == "mps" else torch.device(device)
        self.fid: FrechetInceptionDistance | None = None
        self.lpips: LearnedPerceptualImagePatchSimilarity | None = None
        wanted = f"perceptual=[{','.join(self.names)}]"
        before = random_states(self.device)  # building a network draws random weights
        try:
            if "fid" in self.names:
                self.fid = FrechetInceptionDistance().to(self.device)
            if "lpips" in self.names:
                self.lpips = LearnedPerceptualImagePatchSimilarity("alex", reduction="none").to(self.device)
        except ImportError as error:
            raise InputError(f"{wanted} needs {NEEDED}: pip install 'genstab[perceptual]'") from error
        except (OSError, HTTPException, RuntimeError, EOFError, UnpicklingError) as error:  # no network; damaged
            raise InputError(f"{wanted}: the networks' weights cannot be downloaded or read: {error}") from error
        finally:
            set_random_states(before, self.device)

    def add(self, output: Tensor, target: Tensor | None, notes: list[str]) -> Tensor | None:
        """Add outputs and targets, each (N, C, H, W) in [−1, 1]; return the LPIPS of each pair, (N,), or None.

        Images that cannot be measured are NaN and left out of FID; the reason is appended to `notes`.
        """
        if not self.names:
            return None
        reason = incomparable(output, target)
        unknown = torch.full((len(output),), torch.nan)
        if reason or target is None:
            notes.append(f"{', '.join(self.names)}: not measured, {reason}")
            return unknown
        pair = [images.float().to(self.device).clamp(-1, 1).expand(-1, 3, -1, -1) for images in (output, target)]
        if self.fid is not None:
            for images, real in zip(pair, (False, True), strict=True):
                self.fid.update((images * 127.5 + 127.5).round().byte(), real=real)
        if self.lpips is None:
            return None
        if min(output.shape[-2:]) < SMALLEST:
            notes.append(f"lpips: not measured, images of {output.shape[-2]}×{output.shape[-1]} are below {SMALLEST}")
            return unknown
        distances = self.lpips(*pair).reshape(-1).cpu()
        self.lpips.reset()  # it would keep all distances
        return distances

    def summary(self, notes: list[str]) -> dict[str, float]:
        """Return `val/fid`, or append a note if there are fewer than two images."""
        if self.fid is None or not self.fid.fake_features_num_samples:
            return {}
        if self.fid.fake_features_num_samples < 2:
            notes.append("fid: not measured, one image is not a set")
            return {}
        return {"val/fid": self.fid.compute().item()}


def incomparable(output: Tensor, target: Tensor | None) -> str:
    """Return why a network for photographs cannot compare outputs and targets, or an empty string."""
    if target is None:
        return "there are no targets"
    if target.shape != output.shape:
        return "outputs and targets differ in size"
    return "" if output.shape[1] in (1, 3) else f"images of {output.shape[1]} channels, neither 1 nor 3"
