"""Pairs of random pixels in folders."""

import numpy as np
from PIL import Image

NAMES = ["1", "2.5 m", "10", "façade é", "a%41", "x" * 120, "-", "7"]


def pairs_in(folder, train=NAMES, val=("1", "2"), size=(26, 26), double=True, seed=0):
    """Write random pairs in two folders, or side by side."""
    random = np.random.default_rng(seed)
    for split, names in {"train": train, "val": val}.items():
        for name in names:
            pixels = random.integers(0, 256, (size[0], 2 * size[1], 3), dtype=np.uint8)
            halves = {"A": pixels[:, : size[1]], "B": pixels[:, size[1] :]} if double else {"": pixels}
            for side, half in halves.items():
                (folder / f"{split}{side}").mkdir(parents=True, exist_ok=True)
                suffix = "PNG" if name == "7" else "png"
                Image.fromarray(half).save(folder / f"{split}{side}" / f"{name}.{suffix}")
    return folder
