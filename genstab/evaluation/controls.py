"""Controls: what a change of the outputs after the fact does to every number, to tell which numbers it fools.

Noise and sharpening add detail, but nothing real. A metric that ranks a control above what it was made from is blind to
that, and cannot support a claim of sharpness or realism.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from genstab.errors import InputError
from genstab.layers.anchored_noise import anchored_noise, noise_filters
from genstab.layers.blur import blur2d
from genstab.layers.filters import taps
from genstab.metrics.protocols import Generate
from genstab.metrics.quality import total_variation

CONTROLS = ("noise", "sharpen", "blur")
FILTER = "bin7"  # of the blur, and of the mask that is unsharp
STEPS = 30  # of the search for a strength, each of which halves the interval
Change = Callable[[Tensor, Tensor, float], Tensor]


def with_noise(source: Tensor, output: Tensor, strength: float) -> Tensor:
    """Add noise that is anchored in the source, so that it moves with it (`genstab.layers.anchored_noise`).

    Shape: source (N, C, H, W), output (N, C', H, W) in [−1, 1] → (N, C', H, W) in [−1, 1].
    """
    if output.shape[-2:] != source.shape[-2:]:
        raise InputError("control=noise: outputs must be as large as their sources")
    noise = anchored_noise(source, noise_filters(source.shape[1], output.shape[1]).to(source))
    return (output + strength * noise).clamp(-1, 1)


def sharpened(source: Tensor, output: Tensor, strength: float) -> Tensor:
    """Add `strength` times what a blur takes away: an unsharp mask.

    Shape: output (N, C, H, W) in [−1, 1] → the same.
    """
    return (output + strength * (output - blurred(source, output))).clamp(-1, 1)


def blurred(source: Tensor, output: Tensor, strength: float = 0.0) -> Tensor:
    """Blur images (N, C, H, W) by `FILTER`, whatever the strength."""
    return blur2d(output, taps(FILTER))


CHANGES: dict[str, Change] = {"noise": with_noise, "sharpen": sharpened, "blur": blurred}


def strength_for(change: Change, source: Tensor, output: Tensor, target: Tensor) -> float:
    """Return the strength that gives outputs the total variation of their targets; 0 for those that have more.

    Shape: (N, …, H, W) each, in [−1, 1].

    Raises:
        InputError: no strength up to 64 does.

    >>> import torch
    >>> images = torch.rand(2, 1, 16, 16)
    >>> strength = strength_for(sharpened, images, 0.2 * images, 0.25 * images)
    >>> 0 < strength < 1
    True
    """
    wanted = total_variation(target).mean()

    def enough(strength: float) -> bool:
        return bool(total_variation(change(source, output, strength)).mean() >= wanted)

    low, high = 0.0, 64.0
    if enough(low):
        return low
    if not enough(high):
        raise InputError("control: the outputs are too flat to reach the targets' total variation")
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def controlled(
    control: str, generate: Generate, source: Tensor, output: Tensor, target: Tensor | None, notes: list[str]
) -> tuple[Generate, Tensor]:
    """Return a generator with a control, tuned to these images, and its output for them; note the strength.

    Args:
        control: one of `CONTROLS`.
        generate: the generator.
        source, output, target: its first batch, (N, …, H, W) each.
        notes: gets a line.
    """
    change, strength = CHANGES[control], 1.0
    if control != "blur":
        if target is None or target.shape != output.shape:
            raise InputError(f"control={control} is tuned to targets of the size of the outputs, and there are none")
        strength = strength_for(change, source, output, target.to(output))
        aim = f"total variation of the targets of the first {len(source)} images"
        notes.append(f"control={control}: strength {strength:.3g}, for the {aim}")
    else:
        notes.append(f"control=blur: the targets, blurred by {FILTER}, without a model")
    return lambda images: change(images, generate(images), strength), change(source, output, strength)


class OfTargets(Dataset):
    """A dataset with its targets in the place of the sources."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # a Sized dataset

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.dataset[index]
        if "target" not in item:
            raise InputError("control=blur needs targets")
        return {**item, "source": item["target"]}
