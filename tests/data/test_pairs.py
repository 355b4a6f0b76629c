from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genstab.data.pairs import Pair, PairedImages, Wanted, check_pairs, find_pairs
from genstab.errors import InputError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def paint(path: Path, size: tuple[int, int], *values: int) -> Path:
    """Write a flat (H, W) picture of one value per channel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.broadcast_to(np.array(values, dtype=np.uint8), (*size, len(values)))
    Image.fromarray(np.ascontiguousarray(pixels).squeeze(-1) if len(values) == 1 else pixels.copy()).save(path)
    return path


@pytest.mark.filterwarnings("ignore:.*no images by name")
def test_side_by_side(tmp_path: Path) -> None:
    names = [
        "train/10.jpg",
        "train/2.JPG",
        "train/a1.png",
        "train/notes.txt",
        "train/.DS_Store",
        "train/sub.png/x",
        "train/ulm/2.png",
        "train/._2.JPG",
        "train/__MACOSX/2.png",
        "train/.ipynb_checkpoints/2-checkpoint.jpg",
    ]
    touch(tmp_path, *names)
    train = tmp_path / "train"
    assert find_pairs(tmp_path, "train") == [
        Pair("2", train / "2.JPG", None),
        Pair("10", train / "10.jpg", None),
        Pair("a1", train / "a1.png", None),
        Pair("ulm/2", train / "ulm" / "2.png", None),
    ]


def test_two_folders(tmp_path: Path) -> None:
    touch(tmp_path, "trainA/10_A.jpg", "trainA/2.png", "trainA/x_B_A.tif", "trainA/c-A.bmp")
    touch(tmp_path, "trainB/10_B.png", "trainB/2_B.webp", "trainB/x_B.tiff", "trainB/c-A.bmp")
    touch(tmp_path, "trainB/Thumbs.db")
    a, b = tmp_path / "trainA", tmp_path / "trainB"
    with pytest.raises(
        InputError, match=r"without a partner: 1 in trainA \(x_B_A\.tif\) and 1 in trainB \(x_B\.tiff\)"
    ):
        find_pairs(tmp_path, "train")  # one ending is taken off, not two
    (b / "x_B.tiff").rename(b / "x_B_B.tiff")
    assert find_pairs(str(tmp_path), "train") == [
        Pair("2", a / "2.png", b / "2_B.webp"),
        Pair("10", a / "10_A.jpg", b / "10_B.png"),
        Pair("c-A", a / "c-A.bmp", b / "c-A.bmp"),
        Pair("x_B", a / "x_B_A.tif", b / "x_B_B.tiff"),
    ]


def test_pairs_match_by_whole_names_below_their_folders_first(tmp_path: Path) -> None:
    a = ["0", "ulm/0", "ulm/1_A", "x", "x_A", "y_A", "z_B"]
    b = ["0", "ulm/0", "ulm/1_B", "x", "x_B", "y_A", "z_B"]
    touch(tmp_path, *(f"trainA/{name}.png" for name in a), *(f"trainB/{name}.jpg" for name in b))
    assert [(pair.name, pair.a.stem, pair.b.stem) for pair in find_pairs(tmp_path, "train")] == [
        ("0", "0", "0"), ("ulm/0", "0", "0"), ("ulm/1", "1_A", "1_B"), ("x", "x", "x"), ("x_A", "x_A", "x_B"),
        ("y_A", "y_A", "y_A"), ("z_B", "z_B", "z_B"),
    ]  # fmt: skip
    (tmp_path / "trainB/ulm").rename(tmp_path / "trainB/bonn")
    with pytest.raises(
        InputError, match=r"2 in trainA \(ulm/0.png, ulm/1_A.png\) and 2 in trainB \(bonn/0.jpg, bonn/1"
    ):
        find_pairs(tmp_path, "train")


@pytest.mark.parametrize("split", ["train", "val", "valid", "validation", "test"])
@pytest.mark.parametrize("layout", ["{}A {}B", "{}_A {}_B", "{}/A {}/B", "A/{} B/{}", "{} "])
def test_layouts(tmp_path: Path, layout: str, split: str) -> None:
    folders = layout.replace("{}", split).split(" ")
    touch(tmp_path, *(f"{folder}/ulm/{name}.png" for folder in folders if folder for name in "12"))
    pairs = find_pairs(tmp_path, "train" if split == "train" else "val")
    files = [tuple(path and path.relative_to(tmp_path).as_posix() for path in (pair.a, pair.b)) for pair in pairs]
    assert files == [tuple(f"{folder}/ulm/{name}.png" if folder else None for folder in folders) for name in "12"]


@pytest.mark.parametrize(
    ("files", "first"),
    [
        (["val/1.png", "test/2.png"], "val/1.png"),
        (["test/2.png"], "test/2.png"),
        (["valA/1.png", "valB/1.png", "testA/2.png", "testB/2.png"], "valA/1.png"),
        (["testA/2.png", "testB/2.png"], "testA/2.png"),
        (["val/1.png", "testA/1.png", "testB/1.png"], "val/1.png"),
        (["val/A/1.png", "val/C/1.png"], "val/A/1.png"),  # side by side, by chance in a folder that is called A
    ],
)
def test_val_before_test(tmp_path: Path, files: list[str], first: str) -> None:
    touch(tmp_path, *files)
    assert [pair.a for pair in find_pairs(tmp_path, "val")][:1] == [tmp_path / first]


def test_natural_order(tmp_path: Path) -> None:
    names = ["a10b2", "a10b10", "a2", "a", "10", "9", "010", "_1"]
    touch(tmp_path, *(f"train/{name}.png" for name in names))
    assert [pair.name for pair in find_pairs(tmp_path, "train")] == [
        "9", "010", "10", "_1", "a", "a2", "a10b2", "a10b10",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            [],
            r"no pairs for split=train: looked for train \(side by side\), trainA \+ trainB, train_A \+ train_B, "
            r"train/A \+ train/B or A/train \+ B/train; found nothing",
        ),
        (
            ["1/x", "2/x", "3.png", "4.png", "5.png", "6.png", "7.png"],
            r"found 1/, 2/, 3\.png, 4\.png, 5\.png and 2 more",
        ),
        (["train/__MACOSX/1.png"], r"train has no images \(PNG, .*\): found __MACOSX/$"),
        (["train/A/1.png"], r"train/A exists but .*train/B is missing"),
        (
            ["train/A/1.png", "train/B/1.png", "train/1.png"],
            r"it has train \(side by side\) and train/A \+ train/B; keep",
        ),
        (["B/train/1.png"], r"B/train exists but .*A/train is missing"),
        (["train/x.txt"], r"train has no images .*: found x\.txt"),
        (["trainA/1.png", "trainB/x.txt"], r"trainB has no images"),
        (["trainA/1.png"], r"trainA exists but .*trainB is missing"),
        (["trainB/1.png"], r"trainB exists but .*trainA is missing"),
        (
            ["train/1.png", "trainA/1.png", "trainB/1.png"],
            r"ambiguous for split=train: it has train \(side by side\) and trainA \+ trainB; keep one",
        ),
        (
            ["trainA/1.jpg", "trainA/1.png", "trainB/1.png"],
            r"trainA has two images named '1': 1\.jpg and 1\.png",
        ),
        (
            ["trainA/1.jpg", "trainB/1.jpg", "trainB/1_B.jpg"],
            r"without a partner: 1 in trainB \(1_B\.jpg\)",
        ),
        (["train/1.jpg", "train/1.png"], r"train has two images named '1': 1\.jpg and 1\.png"),
        (["trainA/1.png", "trainB/1.png", "trainB/.2.png"], r"without a partner: 1 in trainB \(\.2\.png\)"),
        (
            ["trainA/1.png", *(f"trainA/{i}_A.png" for i in range(3, 10)), "trainB/1.png", "trainB/2.png"],
            r"partner: 7 in trainA \(3_A\.png, 4_A\.png, 5_A\.png, 6_A\.png, 7_A\.png and 2 more\) and "
            r"1 in trainB \(2\.png\)",
        ),
    ],
)
def test_what_is_wrong_with_the_folders(tmp_path: Path, files: list[str], message: str) -> None:
    touch(tmp_path, *files)
    with pytest.raises(InputError, match=message) as caught:
        find_pairs(tmp_path, "train")
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_arguments(tmp_path: Path) -> None:
    touch(tmp_path, "file")
    with pytest.raises(InputError, match="split='test' is not one of train, val"):
        find_pairs(tmp_path, "test")
    with pytest.raises(InputError, match=r"data\.root=.*absent does not exist"):
        find_pairs(tmp_path / "absent", "train")
    with pytest.raises(InputError, match=r"data\.root=.*file is not a folder"):
        find_pairs(tmp_path / "file", "train")
    with pytest.raises(
        InputError, match=r"looked for val \(side by side\), valA .*; or valid, validation, test in place of val; found"
    ):
        find_pairs(tmp_path, "val")
    touch(tmp_path, "val/1.png", "validation/1.png")
    with pytest.raises(InputError, match=r"ambiguous for split=val: it has val .* and validation \(side by side\)"):
        find_pairs(tmp_path, "val")


def test_check_pairs(tmp_path: Path) -> None:
    a, b = paint(tmp_path / "1_A.png", (4, 6), 0), paint(tmp_path / "1_B.png", (4, 6), 0, 0, 0)
    both = paint(tmp_path / "2.png", (5, 8), 0, 0, 0)
    assert check_pairs([Pair("1", a, b)], Wanted(1, 3, (4, 6))) == [((4, 6), (4, 6))]
    assert check_pairs([Pair("2", both, None)], Wanted(3, 3)) == [((5, 4), (5, 4))]


def test_what_check_pairs_refuses(tmp_path: Path) -> None:
    a, b = paint(tmp_path / "1_A.png", (4, 6), 0), paint(tmp_path / "1_B.png", (4, 6), 0, 0, 0)
    pair = Pair("1", a, b)
    with pytest.raises(InputError, match=r"1_A\.png has 1 channel, but side A needs 3: set data\.source_channels=1"):
        check_pairs([pair], Wanted(3, 3))
    with pytest.raises(InputError, match=r"1_B\.png has 3 channels, but side B needs 1: set data\.target_channels=3"):
        check_pairs([pair], Wanted(1, 1))
    both = Pair("2", paint(tmp_path / "2.png", (5, 8), 0, 0, 0), None)
    with pytest.raises(InputError, match=r"2\.png has 3 channels, but side A needs 1"):
        check_pairs([both], Wanted(1, 3))
    with pytest.raises(InputError, match=r"2\.png has 3 channels, but side B needs 1"):
        check_pairs([both], Wanted(3, 1))
    odd = Pair("3", paint(tmp_path / "3.png", (5, 7), 0), None)
    with pytest.raises(InputError, match=r"3\.png is 7 pixels wide: .* even width"):
        check_pairs([odd], Wanted(1, 1))
    with pytest.raises(InputError, match=r"3\.png is 7 pixels wide: .* even width"):
        PairedImages([odd])[0]
    with pytest.raises(InputError, match=r"1_A\.png is 4×6 but .*4_B\.png is 6×4"):
        check_pairs([Pair("4", a, paint(tmp_path / "4_B.png", (6, 4), 0))], Wanted(1, 1))
    for least in [(5, 6), (4, 7)]:
        with pytest.raises(
            InputError, match=rf"1_A\.png is 4×6, smaller than the crop of {least[0]}×{least[1]}: .*data\.load_size"
        ):
            check_pairs([pair], Wanted(1, 3, least))
    with pytest.raises(InputError, match=r"2\.png is 5×4, smaller than the crop of 5×5"):
        check_pairs([both], Wanted(3, 3, (5, 5)))  # a half counts, not the file
    (tmp_path / "link.png").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"link\.png: No such file"):
        check_pairs([Pair("5", tmp_path / "link.png", None)], Wanted(1, 1))


@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
def test_dataset(tmp_path: Path, direction: str) -> None:
    pixels = np.zeros((3, 4), dtype=np.uint8)
    pixels[:, 2:] = 255
    Image.fromarray(pixels).save(tmp_path / "1.png")
    a, b = paint(tmp_path / "2_A.png", (3, 2), 0), paint(tmp_path / "2_B.png", (3, 2), 255, 51, 0)
    data = PairedImages([Pair("1", tmp_path / "1.png", None), Pair("2", a, b)], direction)
    first, second = ("source", "target") if direction == "AtoB" else ("target", "source")
    assert len(data) == 2
    assert data[0]["name"] == "1"
    assert torch.equal(data[0][first], torch.full((1, 3, 2), -1.0))
    assert torch.equal(data[0][second], torch.full((1, 3, 2), 1.0))
    assert torch.equal(data[1][first], torch.full((1, 3, 2), -1.0))
    assert torch.allclose(data[1][second][:, 2, 1], torch.tensor([1.0, -0.6, -1.0]), rtol=0, atol=1e-7)
    for key in ("source", "target"):
        assert data[0][key].dtype == torch.float32
        assert data[0][key].is_contiguous()
        assert data[0][key].untyped_storage().nbytes() == 3 * 2 * 4  # the half alone
    with pytest.raises(IndexError):
        data[2]


def test_resize(tmp_path: Path) -> None:
    # Halving 0, 0, 255, 255: the triangle spans 4 pixels with the weights 1, 3, 3, 1 (over 8), cut at the
    # border to 3, 3, 1 (over 7): the columns are (0·3 + 0·3 + 1·1)/7 and (0·1 + 1·3 + 1·3)/7.
    pixels = np.zeros((4, 8), dtype=np.uint8)
    pixels[:, 2:] = 255
    Image.fromarray(pixels).save(tmp_path / "1.png")
    pairs = [Pair("1", tmp_path / "1.png", None)]
    item = PairedImages(pairs, size=(2, 2))[0]
    expected = torch.tensor([1 / 7, 6 / 7]) * 2 - 1
    assert torch.allclose(item["source"], expected.expand(1, 2, 2), rtol=0, atol=1e-6)
    assert item["target"].shape == (1, 2, 2)
    assert item["target"].max() <= 1
    assert PairedImages(pairs, size=(6, 3))[0]["source"].shape == (1, 6, 3)
    assert torch.equal(PairedImages(pairs, size=(4, 4))[0]["source"], PairedImages(pairs)[0]["source"])


def test_resize_stays_in_range(tmp_path: Path) -> None:
    # At this size the weights of float32 sum to a little more than 1.
    ones = torch.ones(1, 3, 7, 14)
    assert torch.nn.functional.interpolate(ones, (3, 6), mode="bilinear", antialias=True).max() > 1
    item = PairedImages([Pair("1", paint(tmp_path / "1.png", (7, 28), 255, 255, 255), None)], size=(3, 6))[0]
    assert item["source"].shape == (3, 3, 6)
    assert item["source"].max() == 1


def test_batches_from_workers(tmp_path: Path) -> None:
    pairs = [Pair(str(i), paint(tmp_path / f"{i}.png", (2, 4), i), None) for i in range(3)]
    batches = list(torch.utils.data.DataLoader(PairedImages(pairs), batch_size=2))
    assert [batch["name"] for batch in batches] == [["0", "1"], ["2"]]
    assert batches[0]["source"].shape == (2, 1, 2, 2)
