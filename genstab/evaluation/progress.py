"""How far a measurement is, and how long the rest takes."""

import sys
import time
from collections.abc import Callable
from datetime import timedelta

from genstab.evaluation.options import PARTS, MeasureOptions
from genstab.metrics.corruptions import corruptions_for
from genstab.metrics.protocols import PROTOCOLS, by_passes

QUIET = 10.0  # seconds between two lines in a log


class Progress:
    """Say how far a measurement is, and how long the rest takes if it goes on as before, metrics included.

    Args:
        images: number of images to measure.
        per_image, others: passes through the model of each image, and in all of the parts that follow.
        speed: passes per second, for the first line.
        say: is called with each line.
    """

    def __init__(self, images: int, per_image: int, others: int, speed: float, say: Callable[[str], object]) -> None:
        self.images, self.per_image, self.say = images, per_image, say
        self.passes = images * per_image + others
        self.began = time.monotonic()
        self.said: float | None = None
        least = timedelta(seconds=round(self.passes / speed))
        rate = f"{speed:,.0f}" if speed >= 100 else f"{speed:.2g}"
        say(f"Measuring {images} images: {self.passes:,} passes at {rate} per second, at least {least}")

    def measured(self, images: int) -> None:
        """Say it after the first batch, and where no bar is drawn every ten seconds."""
        now = time.monotonic()
        if self.said is None or (not sys.stderr.isatty() and now > self.said + QUIET):
            self.said = now
            done = images * self.per_image
            rest = timedelta(seconds=round((now - self.began) / done * (self.passes - done)))
            self.say(f"{images} of {self.images} images measured, about {rest} left")


def passes_of(options: MeasureOptions, images: int, classifier: bool, channels: int) -> tuple[int, int]:
    """Return about how often each image passes through the model, and how many do so in the parts that follow.

    >>> passes_of(MeasureOptions(features=None, corruptions=None, map=None), images=10, classifier=False, channels=3)
    (23, 0)
    """
    part = options.consistency or PARTS["consistency"]
    per_image = 2 * (1 + 2 * part["pairs"])
    if not classifier:
        moving = [PROTOCOLS[name] for name in by_passes(options.protocols)]
        shifts = (len(each.measured(options.shifts, options.fractional_shifts)) for each in moving)
        per_image = 1 + options.noise_floor + sum(shifts) + sum(each.windows is not None for each in moving)
    others = 0
    for each in (options.features, None if classifier else options.map):
        if each:
            others += min(images, each["images"]) * ((2 * each["reach"] + 1) ** 2 - 1)
    if each := options.corruptions:
        names = each["names"] or corruptions_for(channels)
        others += min(images, each["images"]) * len(names) * len(each["severities"])
    return per_image, others
