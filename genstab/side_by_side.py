"""The films of several runs beside each other: what moves in the lower row is flicker."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from genstab.errors import InputError
from genstab.report import Picture, picture_table
from genstab.results import SLIDE_OUTPUT, SLIDE_SOURCE
from genstab.runs import Run
from genstab.slides import Slide, read_slide


def films_beside(runs: Sequence[Run]) -> list[Picture]:
    """Return one picture a frame: the source and each run's output sliding, and below them the same moved back.

    Shape: → 16 times (height, width, 3), uint8.

    Raises:
        InputError: a run has no slides, or slid another picture than the first one.
    """
    slides = [read_slide(run.folder / SLIDE_SOURCE, run.folder / SLIDE_OUTPUT) for run in runs]
    for run, slide in zip(runs, slides, strict=True):
        if not np.array_equal(slide.source, slides[0].source):
            raise InputError(f"{run.name} slid another picture than {runs[0].name}: measure both on the same images")
        if slide.scale != slides[0].scale:
            raise InputError(f"{run.name} has a scale of {slide.scale}, {runs[0].name} of {slides[0].scale}")
    films = {run.name: slide.frames for run, slide in zip(runs, slides, strict=True)}
    return [picture_table(_columns(slides[0], films, frame)) for frame in range(len(slides[0].frames))]


def _columns(slide: Slide, films: dict[str, np.ndarray], frame: int) -> dict[str, Tensor]:
    still = slide.source.repeat(slide.scale, 0).repeat(slide.scale, 1)
    columns = {"source": np.stack([np.roll(still, slide.scale * frame, axis=1), still])}
    for name, frames in films.items():
        columns[name] = np.stack([frames[frame], np.roll(frames[frame], -slide.scale * frame, axis=1)])
    return {name: torch.from_numpy(pair).permute(0, 3, 1, 2) / 127.5 - 1 for name, pair in columns.items()}
