"""Make up the folder of a measured run, from seeded random numbers."""

import json
from pathlib import Path

import numpy as np

from genstab.report.slider_frames import save_frames

LAYERS = ("encoder.0", "encoder.1", "decoder.0")
IMAGES = ("first", "second", "third", "fourth")
SHIFTS = ((0, 1), (0, 2), (1, 0), (2, 2), (1, 2))
CORRUPTIONS = ("gaussian_noise", "brightness")


def slide_frames(size: int, seed: int, flicker: int = 60, count: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Return the frames of a sliding source, and of an output that flickers by so many grey levels."""
    random = np.random.default_rng(seed)
    still = random.integers(0, 256, (size, size, 3), np.uint8)
    source = np.stack([np.roll(still, i, axis=1) for i in range(count)])
    noise = random.integers(-flicker, flicker + 1, source.shape)
    return source, np.clip(source + noise, 0, 255).astype(np.uint8)


def measurements(seed: int = 0, reach: int = 2) -> dict:
    """Return everything that `measurements.json` can hold."""
    random = np.random.default_rng(seed)
    side = 2 * reach + 1
    shift_map = random.uniform(20, 40, (side, side)).tolist()
    shift_map[reach][reach] = None
    layers = {}
    for layer in LAYERS:
        grid = random.uniform(0, 1, (side, side))
        grid[reach, reach] = 0
        layers[layer] = grid.tolist()

    def protocol(shifts):
        decibels = random.uniform(20, 40, (len(shifts), len(IMAGES)))
        return {
            "shifts": [list(shift) for shift in shifts],
            "images": list(IMAGES),
            "decibels": decibels.tolist(),
            "pooled": (decibels.mean(1) - 1).tolist(),
        }

    return {
        "shift_psnr": {
            "circular": protocol(SHIFTS),
            "crop": protocol(SHIFTS[:3]),
            "fractional": protocol([(0, 0.5), (0.5, 0.25)]),
        },
        "shift_map": {"protocol": "circular", "reach": reach, "images": 2, "decibels": shift_map},
        "features": {"reach": reach, "images": 2, "layers": layers},
        "corruptions": {
            "severities": [1, 2, 3, 4, 5],
            "decibels": {kind: random.uniform(10, 40, 5).tolist() for kind in CORRUPTIONS},
            "relative": dict.fromkeys(CORRUPTIONS, 0.9),
        },
        "quality": {
            "images": list(IMAGES),
            **{key: random.uniform(0.1, 0.9, 4).tolist() for key in ("l1", "ssim", "tv", "tv_target")},
            "psnr": random.uniform(10, 20, 4).tolist(),
        },
    }


def summary(seed: int = 0, name: str | None = None, **metrics) -> dict:
    """Return a summary of plausible numbers; `metrics` are added with `val/` before them."""
    random = np.random.default_rng(seed)
    config = {"antialias": {"filter": f"filter{seed}", "placement": "pre"}, "seed": 1, "output_dir": f"/runs/{seed}"}
    return {
        "val/shift_psnr": random.uniform(20, 40),
        "val/shift_psnr_worst": random.uniform(10, 20),
        "val/shift_psnr_crop": random.uniform(20, 40),
        "val/l1": random.uniform(0.1, 0.4),
        "val/psnr": random.uniform(10, 20),
        "val/ssim": random.uniform(0.1, 0.9),
        "val/tv": random.uniform(0.05, 0.1),
        "val/tv_target": 0.1,
        "images_per_second": random.uniform(10, 90),
        "parameters": 1_500_000,
        **{f"val/{key}": value for key, value in metrics.items()},
        "verdict": ["Steady.", "As sharp as its targets."],
        "versions": {"torch": "2.13.0", "genstab": "0.1.0"},
        "config": config | ({} if name is None else {"run_name": name}),
    }


def make_run(
    folder: Path, seed: int = 0, name: str | None = None, size: int = 24, flicker: int = 60, **metrics
) -> Path:
    """Write a whole folder; delete or overwrite in it what a test wants otherwise."""
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary(seed, name, **metrics)))
    (folder / "measurements.json").write_text(json.dumps(measurements(seed)))
    source, _ = slide_frames(size, seed=0)  # every run moves the same picture
    _, output = slide_frames(size, seed, flicker)
    save_frames(source, folder / "slide_source.webp")
    save_frames(output, folder / "slide_output.webp")
    return folder
