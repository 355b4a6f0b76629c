"""Folders of images, with and without classes, and what of a paired data set measuring reads."""

import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from genstab.cli import main as cli
from genstab.cli.main import CONF
from genstab.data.datamodules import FacadesData, PairedData
from genstab.data.folder import ClassData, ClassImages, FolderData, FolderImages
from genstab.data.image_io import read_image
from genstab.data.paths import find_images
from genstab.errors import InputError
from genstab.inference.predict import predict
from tests.cli.test_config import TINY
from tests.data.test_pairs import paint, touch


def test_images_are_found_in_natural_order(tmp_path):
    touch(tmp_path, "10.png", "9.jpeg", "b/2.TIF", "b/1.webp", "c.png/x.bmp")
    touch(tmp_path, "notes.txt", ".git/x.png", "b/.ipynb_checkpoints/x.png", "._9.png", "__MACOSX/9.png", "Thumbs.db")
    touch(tmp_path, "@eaDir/9.png/SYNOPHOTO_THUMB_M.jpg")
    touch(tmp_path, "b/.2.png", "d.HEIC")  # a picture, and one that cannot be read, which must not go without a word
    (tmp_path / "b/dangling.png").symlink_to("nowhere")
    (tmp_path / "b/x.npy").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"left out 2 files that are no images by name: notes\.txt, b/x\.npy$"):
        found = find_images(tmp_path)
    names = [path.relative_to(tmp_path).as_posix() for path in found]
    assert names == [
        "9.jpeg", "10.png", "b/1.webp", "b/2.TIF", "b/.2.png", "b/dangling.png", "c.png/x.bmp", "d.HEIC",
    ]  # fmt: skip
    (tmp_path / "notes.txt").unlink()
    assert [path.name for path in find_images(str(tmp_path), recursive=False)] == ["9.jpeg", "10.png", "d.HEIC"]


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    touch(tmp_path, "elsewhere/1.png", "root/2.png")
    for name in ("day", "night"):
        (tmp_path / "root" / name).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/loop").symlink_to(tmp_path / "root")
    names = [path.relative_to(tmp_path / "root").as_posix() for path in find_images(tmp_path / "root")]
    assert names == ["2.png", "day/1.png", "night/1.png"]


@pytest.mark.parametrize(
    ("files", "root", "message"),
    [
        ([], "nowhere", "data.root=.*nowhere does not exist"),
        (["a.png"], "a.png", "data.root=.*a.png is not a folder"),
        ([], ".", "data.root=.* has no images .*: found nothing"),
        (["a.txt", "b/c.pdf"], ".", r"data.root=.* has no images \(PNG, .*\): found a.txt, b/$"),
    ],
)
def test_a_folder_without_images(tmp_path, files, root, message):
    (tmp_path / "data").mkdir()
    touch(tmp_path / "data", *files)
    with pytest.raises(InputError, match=message):
        FolderImages(tmp_path / "data" / root)


def test_items(tmp_path):
    paint(tmp_path / "a/1.png", (4, 6), 255, 0, 51)
    paint(tmp_path / "2.png", (8, 6), 0, 0, 0)
    images = FolderImages(tmp_path)
    assert len(images) == 2
    assert [images[i]["name"] for i in range(2)] == ["2.png", "a/1.png"]
    assert set(images[0]) == {"source", "name"}
    assert images[1]["source"].equal(torch.tensor([1.0, -1.0, -0.6])[:, None, None].expand(3, 4, 6))
    halved = FolderImages(tmp_path, size=(2, 3))
    assert halved[0]["source"].shape == halved[1]["source"].shape == (3, 2, 3)
    assert halved[1]["source"][2].flatten().tolist() == pytest.approx([-0.6] * 6)


def folder_data(tmp_path, **options):
    data = FolderData(str(tmp_path), **options)
    data.setup("validate")
    return data


def test_batches_of_a_folder(tmp_path):
    for i, grey in enumerate((0, 51, 255)):
        paint(tmp_path / f"{i}.png", (4, 6), grey)
    batches = list(folder_data(tmp_path, val_batch_size=2).val_dataloader())
    assert [batch["source"].shape for batch in batches] == [(2, 1, 4, 6), (1, 1, 4, 6)]
    assert [name for batch in batches for name in batch["name"]] == ["0.png", "1.png", "2.png"]
    assert batches[0]["source"][:, 0, 0, 0].tolist() == pytest.approx([-1, -0.6])
    (batch,) = folder_data(tmp_path, size=8).val_dataloader()
    assert batch["source"].shape == (3, 1, 8, 8)
    assert folder_data(tmp_path / ".", recursive=False).val_set[2]["name"] == "2.png"


def test_images_that_make_no_batch_are_named(tmp_path):
    paint(tmp_path / "1.png", (4, 6), 1)
    paint(tmp_path / "2.png", (4, 8), 1)
    with pytest.raises(InputError, match=r"2.png is 4×8 but .*1.png is 4×6: set data.size=\[height,width\]"):
        folder_data(tmp_path).val_dataloader()
    assert len(folder_data(tmp_path, size=[4, 4]).val_dataloader()) == 1
    paint(tmp_path / "3.png", (4, 6), 1, 2, 3)
    with pytest.raises(InputError, match=r"3.png has 3 channels but .*1.png has 1: .* or set data.convert=true"):
        folder_data(tmp_path, size=4).val_dataloader()
    (batch,) = folder_data(tmp_path, size=4, convert=True).val_dataloader()
    assert batch["source"].shape == (3, 3, 4, 4)
    tifffile.imwrite(tmp_path / "4.tif", np.zeros((4, 6, 5), np.uint8), photometric="minisblack", planarconfig="contig")
    with pytest.raises(InputError, match=r"4.tif has 5 channels but .*1.png has 3: all images must have the same$"):
        folder_data(tmp_path, convert=True, size=4).val_dataloader()
    with pytest.raises(InputError, match=r"4.tif has 5 channels, which cannot be converted to 3"):
        folder_data(tmp_path, convert=True).val_set[3]


def test_predict_converts_channels_when_asked(tmp_path):
    paint(tmp_path / "in/1.png", (4, 6), 51)
    paint(tmp_path / "in/2.png", (4, 6), 0, 51, 255, 7)
    model = torch.nn.Conv2d(3, 3, 1, bias=False)
    model.weight.data = torch.eye(3)[:, :, None, None]
    assert len(predict(model, tmp_path / "in", tmp_path / "out", batch_size=2, source_channels=3).written) == 2
    written = [read_image(tmp_path / f"out/{name}.png")[:, 0, 0] for name in "12"]
    assert torch.allclose(torch.stack(written), torch.tensor([[-0.6, -0.6, -0.6], [-1, -0.6, 1]]))
    with pytest.raises(InputError, match="results source_channels=3, not None"):
        predict(model, tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_batch_size": 0}, "val_batch_size=0 is not an integer of at least 1"),
        ({"num_workers": -1}, "num_workers=-1 is not an integer of at least 0"),
        ({"size": [1, 2, 3]}, "size=.* is neither a positive integer nor a pair"),
    ],
)
def test_bad_options(tmp_path, options, message):
    for kind in (FolderData, ClassData):
        with pytest.raises(InputError, match=message):
            kind(str(tmp_path), **options)


def test_classes(tmp_path):
    for i, name in enumerate(("cat/b.png", "cat/a.png", "ant/deep/c.png", "ant/d.png")):
        paint(tmp_path / name, (4, 4), i)
    (tmp_path / ".hidden").mkdir()
    images = ClassImages(tmp_path)
    assert images.classes == ["ant", "cat"]
    assert [(item["name"], item["label"]) for item in images] == [
        ("ant/d.png", 0), ("ant/deep/c.png", 0), ("cat/a.png", 1), ("cat/b.png", 1),
    ]  # fmt: skip
    data = ClassData(str(tmp_path), val_batch_size=3)
    data.setup("validate")
    first, last = data.val_dataloader()
    assert (first["label"].tolist(), last["label"].tolist()) == ([0, 0, 1], [1])
    assert first["source"].shape == (3, 1, 4, 4)
    with pytest.raises(InputError, match="genstab does not train"):
        data.setup("fit")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a.png"], "has 0 sub-folders, but needs one for each of at least two classes: found a.png"),
        (["cat/a.png"], "has 1 sub-folders, .*found cat/"),
        (["cat/a.png", "dog/b.png", "c.png"], "has images outside of its class folders: c.png$"),
        (["cat/a.png", "dog/b.txt"], "has classes without images: dog$"),
        (["cat/a.txt"], "has no images"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*no images by name")
def test_folders_that_are_no_classes(tmp_path, files, message):
    touch(tmp_path, *files)
    with pytest.raises(InputError, match=f"data.root=.*{message}"):
        ClassImages(tmp_path)


@pytest.mark.parametrize("option", ["folder", "classes"])
def test_the_options_of_the_command_line(tmp_path, option, monkeypatch):
    for name in ("a/1.png", "b/2.png"):
        paint(tmp_path / "images" / name, (32, 32), 1, 2, 3)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["output_dir=.", f"data={option}", f"data.root={tmp_path}/images"])
    data = instantiate(config.data)
    data.setup("validate")
    assert len(data.val_set) == 2
    overrides = [f"data={option}", f"data.root={tmp_path}/images", "logger=csv", "hydra.run.dir=run"]
    monkeypatch.setattr(sys, "argv", ["genstab", *overrides, *(key for key in TINY if "data." not in key)])
    with pytest.raises(SystemExit, match=rf"genstab: data={option} (has no targets|is for measuring)"):
        cli.train()
    assert not Path("run/csv").exists()


def test_measuring_a_paired_data_set_needs_no_training_images(tmp_path):
    paint(tmp_path / "testA/1.png", (8, 8), 1, 2, 3)
    paint(tmp_path / "testB/1.png", (8, 8), 4, 5, 6)
    for data in (PairedData(str(tmp_path), crop_size=8, load_size=8), FacadesData(str(tmp_path), crop_size=8)):
        if isinstance(data, FacadesData):
            paint(tmp_path / "trainA/broken.png", (8, 8), 1)  # alone and of one channel
        data.setup("validate")
        assert data.val_set[0]["source"].equal(read_image(tmp_path / f"test{data.direction[0]}/1.png"))
        with pytest.raises(InputError, match="train"):
            data.setup("fit")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("class_index.json", '{"0": ["n01", "crane"], "1": ["n02", "cat"], "2": ["n03", "crane bird"]}'),
        ("names.json", '["n01", "cat", "crane bird"]'),
        ("numbers.json", '{"crane bird": 2, "n01": 0, "cat": 1}'),
        ("words.txt", "n01 crane\nn02 cat\nn03 crane bird\n"),
        ("lines.txt", "n01\ncat\ncrane bird"),
        ("indices.txt", "2 crane bird\n1 cat\n0 n01\n"),
        ("after.csv", "crane bird,3\nn01,1\n\ncat,2\n"),
        ("named_by_numbers.txt", "n01\n1\ncrane bird"),
        ("doubled.txt", "n01\ncrane\ncrane bird\ncrane"),
    ],
)
def test_classes_by_a_file(tmp_path, name, content):
    for folder in ("crane bird", "n01"):  # in natural order these would be the classes 0 and 1
        paint(tmp_path / "data" / folder / "1.png", (4, 4), 1)
    (tmp_path / name).write_text(content)
    data = ClassData(str(tmp_path / "data"), classes=str(tmp_path / name))
    data.setup("validate")
    assert {item["name"].split("/")[0]: item["label"] for item in data.val_set} == {"crane bird": 2, "n01": 0}
    assert len(data.val_set.classes) == (4 if name == "doubled.txt" else 3)
    (tmp_path / "data/n01").rename(tmp_path / "data/dog")
    with pytest.raises(InputError, match=rf"data.classes=.*{name} has no dog: it names n01"):
        data.setup("validate")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('["a", "b", "a"]', "names two classes a: 0 and 2"),
        ('["", "a", "b"]', "has an empty name for class 0"),
        ("a\n\nb", "has an empty name for class 1"),
    ],
)
def test_doubled_and_empty_names_of_classes(tmp_path, content, message):
    for folder in "ab":
        paint(tmp_path / "data" / folder / "1.png", (4, 4), 1)
    (tmp_path / "x").write_text(content)
    with pytest.raises(InputError, match=f"data.classes=.*x {message}"):
        ClassImages(tmp_path / "data", class_file=tmp_path / "x")


@pytest.mark.parametrize("content", ["", "{}", '{"0": "a", "2": "b"}', '{"a": "b"}', "[[]]", "[", "3"])
def test_a_file_that_names_no_classes(tmp_path, content):
    for folder in "ab":
        paint(tmp_path / "data" / folder / "1.png", (4, 4), 1)
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError, match=r"data.classes=.*x.json (names no classes|cannot be read|has no a, b)"):
        ClassImages(tmp_path / "data", class_file=tmp_path / "x.json")
    with pytest.raises(InputError, match=r"data.classes=.*nowhere.txt cannot be read: No such file"):
        ClassImages(tmp_path / "data", class_file=tmp_path / "nowhere.txt")
