"""Numbers keep their meaning: value ranges, class labels, nearest sources, GeoTIFFs, colour profiles, orientations."""

import io
import shutil
import sys

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms
from torch import nn

from genstab.cli import main as cli
from genstab.data.datamodules import PairedData
from genstab.data.folder import ClassData, FolderData, FolderImages
from genstab.data.geotiff import scaled_geotiff
from genstab.data.header_notes import HeaderNotes, unlike_srgb
from genstab.data.image_io import image_info, pixel_range, read_image, write_image
from genstab.data.reading import Reading, almost_constant, parse_ranges, resized
from genstab.data.shards.datamodule import ShardData
from genstab.data.shards.write import write_shards
from genstab.errors import InputError
from genstab.inference.predict import predict
from genstab.inference.trained_on import read_alike, trained_on
from tests.conftest import tiny_pix2pix
from tests.helpers.killed import TINY, run

RNG = np.random.default_rng(0)


def paired(root, source, target, count=2, suffix="tif"):
    """Write pairs for training and validation; `source` and `target` are arrays, or functions of the number."""
    for split in ("train", "val"):
        for side, pixels in (("A", source), ("B", target)):
            (root / f"{split}{side}").mkdir(parents=True, exist_ok=True)
            for number in range(count):
                image = pixels(number) if callable(pixels) else pixels
                path = root / f"{split}{side}/{number}.{suffix}"
                tifffile.imwrite(path, image) if suffix == "tif" else Image.fromarray(image).save(path)


def data(root, **options):
    options = {"load_size": None, "crop_size": 16, "num_workers": 0, "flip": False, **options}
    found = PairedData(str(root), **options)
    found.setup("fit")
    return found


# --- value ranges


@pytest.mark.parametrize("dtype", ["int16", "uint16", "uint32", "float16", "float32", "float64"])
def test_values_of_any_type_are_scaled_clamped_and_written_back(tmp_path, dtype):
    values = np.array([[0, 2500, 5000, 10000, 12000]], dtype=dtype)
    tifffile.imwrite(tmp_path / "a.tif", values)
    image = read_image(tmp_path / "a.tif", Reading((0.0, 10000.0)))
    assert image.flatten().tolist() == [-1, -0.5, 0, 1, 1]
    write_image(tmp_path / "b.tif", image, dtype=dtype, value_range=(0.0, 10000.0))
    written = tifffile.imread(tmp_path / "b.tif")
    assert (str(written.dtype), written.tolist()) == (dtype, [[0, 2500, 5000, 10000, 10000]])


def test_eight_bits_keep_their_range_and_what_is_no_number_is_the_least(tmp_path):
    Image.fromarray(np.array([[0, 51, 255]], dtype=np.uint8)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", Reading((0.0, 10000.0))).equal(read_image(tmp_path / "a.png"))
    tifffile.imwrite(tmp_path / "a.tif", np.array([[np.nan, np.inf, -np.inf, 0.5, 0.25]], dtype=np.float32))
    assert read_image(tmp_path / "a.tif", Reading((0.0, 0.5))).flatten().tolist() == [-1, 1, -1, 1, 0]
    assert pixel_range(tmp_path / "a.tif") == (0.25, 0.5)
    assert pixel_range(tmp_path / "a.png") is None
    for given, message in (([1, 0], "not \\[least, greatest\\]"), ("0,1", "not \\[least"), ({"A": None}, "other keys")):
        with pytest.raises(InputError, match=f"value_range=.*{message}"):
            parse_ranges(given)
    for kind in (FolderData, ClassData, ShardData):
        with pytest.raises(InputError, match=r"^data.value_range=auto .*data=paired: set \[least,greatest\]"):
            kind("x", value_range="auto")


def test_the_range_is_found_in_the_training_split_kept_and_used_by_predict_and_measure(tmp_path):
    """Heights from -100 to 3900 to 8-bit pictures; the extremes are in two training files, validation has others."""

    def heights(number):
        pixels = np.full((16, 20), 1900, dtype=np.int16)
        pixels[0, :3] = [(-100, 0, 1), (3900, 5, 5)][number]
        return pixels

    paired(tmp_path, heights, np.zeros((16, 20), dtype=np.uint8))
    tifffile.imwrite(tmp_path / "valA/0.tif", np.full((16, 20), 9000, dtype=np.int16))
    found = data(tmp_path, value_range="auto", source_channels=1, target_channels=1)
    ranges = {"source": (-100.0, 3900.0), "target": None}
    assert found.described == {"value_range": ranges}
    first = found.train_set[0]["source"]
    assert first.flatten()[[0, 3]].tolist() == [-1, 0]  # 1900 is the middle
    assert found.val_set[0]["source"].amin() == 1  # beyond the range

    model = tiny_pix2pix()
    model.trainer = type("Trainer", (), {"datamodule": found})()
    checkpoint = {}
    type(model).on_save_checkpoint(model, checkpoint)
    model.generator.trained_on = trained_on(checkpoint)
    assert model.generator.trained_on == {"value_range": ranges}
    measured = {"root": "x", "value_range": None}
    read_alike(model.generator, measured)
    assert measured == {"root": "x", "value_range": (-100.0, 3900.0)}

    identity = nn.Identity()
    identity.trained_on = model.generator.trained_on  # 8-bit targets: 8-bit results
    predict(identity, tmp_path / "trainA", tmp_path / "out")
    assert tifffile.imread(tmp_path / "out/1.tif").flatten()[[0, 3]].tolist() == [255, 128]
    predict(nn.Identity(), tmp_path / "trainA", tmp_path / "heights", source_range=[-100, 3900])
    assert (tifffile.imread(tmp_path / "heights/1.tif") == heights(1)).all()
    identity.trained_on = {"value_range": {"source": (-100.0, 3900.0), "target": (0.0, 30.0)}}
    predict(identity, tmp_path / "trainA", tmp_path / "metres")  # 30 whole numbers would be steps
    assert np.allclose(tifffile.imread(tmp_path / "metres/1.tif"), (heights(1) + 100.0) * 30 / 4000)
    with pytest.raises(InputError, match=r"results target_range=.*overwrite=true"):
        predict(identity, tmp_path / "trainA", tmp_path / "heights")


def test_a_resumed_training_keeps_the_range_that_was_found(tmp_path):
    target = np.zeros((24, 28, 3), np.uint8)
    paired(tmp_path / "in", lambda number: np.full((24, 28), 100 * number - 50, np.int16), target)
    options = [f"data.root={tmp_path / 'in'}", "data.value_range=auto", "data.load_size=null", "data.crop_size=24"]
    options += ["data=paired", "data.source_channels=1", "model.generator.in_channels=1"]
    base = [each for each in TINY if not each.startswith("data.")] + ["model.discriminator.source_channels=1", *options]
    for steps in (1, 2):
        run(tmp_path / "run", f"trainer.max_steps={steps}", base=base)
        checkpoint = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
        assert trained_on(checkpoint)["value_range"] == {"source": (-50.0, 50.0), "target": None}
        assert checkpoint["resume"]["steps"] == steps
        paired(tmp_path / "in", lambda number: np.full((24, 28), 900 * number - 50, np.int16), target)  # anew


def test_measure_takes_the_split_and_reading_of_the_training_but_for_what_is_typed(tmp_path, monkeypatch):
    paired(tmp_path, np.zeros((30, 30, 3), np.uint8), np.zeros((30, 30, 3), np.uint8), 12, "png")
    for side in "AB":
        shutil.rmtree(tmp_path / f"val{side}")
    trained = data(tmp_path, val_share=0.25, val_seed=7, source_interpolation="nearest")
    model = nn.Identity()
    model.trained_on = trained_on({"data": trained.described})
    seen = []

    def measure(model, images, *_):
        seen.append(images)
        raise InputError("seen")

    monkeypatch.setattr("genstab.cli.jobs.model_of", lambda *_: model)
    monkeypatch.setattr("genstab.cli.jobs.measure", measure)
    options = ["data=paired", f"data.root={tmp_path}", "hydra.run.dir=m", "logger=csv"]
    for more in ([], ["data.val_seed=8", "data.source_interpolation=bilinear"]):
        monkeypatch.setattr(sys, "argv", ["genstab", "measure", *options, *more])
        with pytest.raises(SystemExit, match="seen"):
            cli.main()
    assert [each.pairs == trained.val_set.pairs for each in seen] == [True, False]
    assert [each.wanted.reading_a.interpolation for each in seen] == ["nearest", "bilinear"]


def test_shards_of_other_types_and_folders_to_measure_on(tmp_path):
    pytest.importorskip("webdataset")
    paired(tmp_path / "in", np.full((16, 20), -5, dtype=np.int16), np.full((16, 20), 7, dtype=np.int16))
    assert write_shards(tmp_path / "in", tmp_path / "out").pairs == {"train": 2, "val": 2}
    folder = FolderData(str(tmp_path / "in/valA"), value_range=[-10, 0])
    folder.setup("validate")
    assert folder.val_set[0]["source"].unique().tolist() == [0]


def test_the_most_pixels_are_an_option(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    for name in ("a.png", "a.tif"):
        Image.new("L", (20, 10)).save(tmp_path / name)
        with pytest.raises(InputError, match=r"200.*|\(10, 20\).*limit of 100 pixels.*max_megapixels sets another"):
            read_image(tmp_path / name)
        assert read_image(tmp_path / name, Reading(max_megapixels=200e-6)).shape == (1, 10, 20)
        with pytest.raises(InputError, match=r"limit of 198 pixels|limit of 199 pixels"):
            read_image(tmp_path / name, Reading(max_megapixels=199e-6))
    assert Image.MAX_IMAGE_PIXELS == 50


# --- labels


def test_class_indices_and_palettes_become_one_channel_for_each_class(tmp_path):
    labels = np.array([[0, 1, 2, 255]], dtype=np.uint8)
    Image.fromarray(labels).save(tmp_path / "grey.png")
    Image.fromarray(np.stack([labels] * 3, -1)).save(tmp_path / "rgb.png")
    tifffile.imwrite(tmp_path / "deep.tif", labels.astype(np.int16))
    palette = Image.fromarray(labels)
    palette = palette.convert("P")
    palette.putpalette(RNG.integers(0, 256, 768).tolist())
    palette.save(tmp_path / "palette.png")
    stored = np.asarray(Image.open(tmp_path / "palette.png"))
    expected = torch.tensor([[1.0, -1, -1, -1], [-1, 1, -1, -1], [-1, -1, 1, -1]])[:, None]
    for name in ("grey.png", "rgb.png", "deep.tif", "palette.png"):
        if name == "palette.png":
            assert (stored == labels).all()
        assert read_image(tmp_path / name, Reading(labels=3)).equal(expected), name
        assert image_info(tmp_path / name, Reading(labels=3)).shape == (3, 1, 4)
    with pytest.raises(InputError, match=r"grey\.png holds the label 2, but data.source_labels=2 allows 0 to 1"):
        read_image(tmp_path / "grey.png", Reading(labels=2))
    Image.fromarray(RNG.integers(0, 256, (2, 2, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    with pytest.raises(InputError, match=r"photo\.png holds colours or fractions"):
        read_image(tmp_path / "photo.png", Reading(labels=3))


@pytest.mark.parametrize("load_size", [24, 16, 40])
def test_nearest_keeps_hard_colours_in_training_validation_and_predict(tmp_path, load_size):
    """Four colours stay four, whether the dataset shrinks the images or the device enlarges them."""
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], dtype=np.uint8)
    paired(
        tmp_path, lambda number: colours[RNG.integers(0, 4, (30, 30))], np.zeros((30, 30, 3), np.uint8), suffix="png"
    )

    def count(images):
        return len(images.movedim(-3, -1).reshape(-1, images.shape[-3]).unique(dim=0))

    for interpolation, few in (("nearest", True), ("bilinear", False)):
        found = data(tmp_path, load_size=load_size, source_interpolation=interpolation)
        item = found.train_set[0]
        source, target = found.augment(item["source"][None], item["target"][None])
        assert source.shape == target.shape == (1, 3, 16, 16)
        assert [count(source) <= 4, count(found.val_set[0]["source"]) <= 4] == [few, few]
    seen = []
    model = nn.Identity()
    model.register_forward_hook(lambda module, images, output: seen.append(count(images[0])))
    model.trained_on = {"source_interpolation": "nearest"}
    predict(model, tmp_path / "valA", tmp_path / "out", size=(17, 13))
    assert max(seen) <= 4


def test_labels_in_training_and_predict(tmp_path):
    paired(
        tmp_path,
        lambda number: RNG.integers(0, 5, (30, 30), dtype=np.uint8),
        np.zeros((30, 30, 3), np.uint8),
        suffix="png",
    )
    found = data(tmp_path, load_size=24, source_labels=5)
    assert found.described == {"source_labels": 5, "source_interpolation": "nearest"}
    for source in (found.train_set[0]["source"], found.val_set[0]["source"]):
        assert len(source) == 5
        assert (source.sum(0) == 1 - 4).all()  # one class for each pixel
    measured = {"direction": "AtoB", "source_channels": 3, "source_interpolation": "bilinear"}
    model = nn.Conv2d(5, 3, 1)
    model.trained_on = found.described
    read_alike(model, measured)
    assert measured == {
        "direction": "AtoB", "source_channels": 5, "source_labels": 5, "source_interpolation": "nearest"
    }  # fmt: skip
    assert len(predict(model, tmp_path / "valA", tmp_path / "out").written) == 2


def test_sources_that_are_almost_constant_are_said(tmp_path):
    indices = torch.randint(0, 13, (1, 1, 40, 40)) / 127.5 - 1
    assert almost_constant(indices).startswith("the sources are almost constant: their values are from -1 to -0.906")
    assert "set source_labels=13" in almost_constant(indices)
    assert almost_constant(torch.tensor([0.0, 0.25])) is None
    assert resized(indices, (40, 40)) is indices
    paired(tmp_path, np.full((30, 30), 5, np.uint8), np.zeros((30, 30), np.uint8), suffix="png")
    found = data(tmp_path, source_channels=1, target_channels=1)
    found.trainer = type("Trainer", (), {"training": True})()
    batch = found.train_set[0]["source"].expand(10, -1, -1, -1)
    both = {"source": batch, "target": -batch}
    found.on_before_batch_transfer(dict(both), 0)  # too few yet
    with pytest.warns(UserWarning, match="in the first 20 images, the ") as said:
        found.on_before_batch_transfer(dict(both), 0)
    assert [str(each.message).split("are almost")[0][-13:-1] for each in said] == [" the sources", " the targets"]
    found.on_before_batch_transfer(dict(both), 0)  # once: warnings are errors
    write_image(tmp_path / "in/1.png", torch.linspace(-1, 1, 900).view(1, 30, 30))
    with pytest.warns(UserWarning, match=r"the outputs are almost constant: .* from 0.5 to 0.51 in \[-1, 1\]$"):
        predict(nn.Sequential(nn.Hardtanh(0.5, 0.51)), tmp_path / "in", tmp_path / "out")


def test_types_and_ranges_that_do_not_reach_each_other_are_said(tmp_path):
    def mixed(number):
        return np.arange(900, dtype=np.uint16).reshape(30, 30).astype(np.uint8 if number else np.uint16)

    grey = {"source_channels": 1, "target_channels": 1}
    paired(tmp_path / "mixed", mixed, mixed(1))
    with pytest.warns(UserWarning, match=r"images of several types: uint16 \(0.tif\), uint8 \(1.tif\); 8 bits are"):
        data(tmp_path / "mixed", **grey)
    paired(tmp_path / "bytes", mixed(1), mixed(1))
    for given in ([0, 100], "auto"):
        with pytest.warns(UserWarning, match=r"has no effect: all images have 8 bits"):
            data(tmp_path / "bytes", value_range=given, **grey)
    with pytest.warns(UserWarning, match=r"has no effect: all images have 8 bits"):
        FolderImages(tmp_path / "bytes/trainA", reading=Reading((0.0, 100.0))).check_headers(9)
    data(tmp_path / "bytes", **grey)  # nothing to say: warnings are errors


# --- GeoTIFF and auxiliary pages

GEO = [
    (33550, "d", 3, (10.0, 20.0, 0.0)),
    (33922, "d", 6, (2.0, 4.0, 0.0, 5e5, 4e6, 0.0)),
    (34735, "H", 4, (1, 1, 0, 1)),
    (42112, "s", 0, '<G>\n <Item name="STATISTICS_MEAN" sample="0">7</Item>\n <Item name="UNIT">m</Item>\n</G>'),
    (42113, "s", 0, "-9999"),
]


def test_the_tags_of_a_geotiff_stay_and_fit_the_size_of_the_result(tmp_path):
    (tmp_path / "in").mkdir()
    values = RNG.integers(0, 10000, (16, 20)).astype(np.int16)
    values[0, 0] = -9999
    tifffile.imwrite(tmp_path / "in/a.tif", values, extratags=[(*tag, True) for tag in GEO])
    assert pixel_range(tmp_path / "in/a.tif") == (values[values >= 0].min(), values.max())  # without what is no data
    for model, ratio in ((nn.Identity(), 1), (nn.Upsample(scale_factor=2), 2)):
        out = tmp_path / f"out{ratio}"
        predict(model, tmp_path / "in", out, source_range=[0, 10000])
        with tifffile.TiffFile(out / "a.tif") as tiff:
            tags = {code: tiff.pages.first.tags.valueof(code) for code, *_ in GEO}
            assert tiff.pages.first.dtype == np.int16
            assert tiff.geotiff_metadata["ModelPixelScale"] == [10 / ratio, 20 / ratio, 0]
            written = tiff.asarray()
        assert tags[33922] == (2 * ratio, 4 * ratio, 0, 5e5, 4e6, 0)
        kept = '<G>\n <Item name="UNIT">m</Item>\n</G>'  # without what was true of other pixels
        assert (tags[34735], tags[42112], tags[42113]) == ((1, 1, 0, 1), kept, "-9999")
        assert np.argwhere(written == -9999).tolist() == [[i, j] for i in range(ratio) for j in range(ratio)]
    tifffile.imwrite(tmp_path / "in/a.tif", np.where(values < 0, np.nan, values).astype(np.float32))
    predict(nn.Identity(), tmp_path / "in", tmp_path / "float", source_range=[0, 10000])
    assert np.argwhere(np.isnan(tifffile.imread(tmp_path / "float/a.tif"))).tolist() == [[0, 0]]
    model = nn.Identity()
    model.trained_on = {"value_range": {"source": (0.0, 10000.0), "target": None}}  # of 8 bits
    with pytest.warns(UserWarning, match=r"^a.tif: pixels without data hold what the model made of them, as the type"):
        predict(model, tmp_path / "in", tmp_path / "bytes")
    matrix = (34264, 12, 16, tuple(map(float, (10, 0, 0, 5, 0, -20, 0, 6, 0, 0, 0, 0, 0, 0, 0, 1))))
    ((_, _, _, fitted),) = scaled_geotiff([matrix], (4, 2))
    assert fitted == (5, 0, 0, 5, 0, -5, 0, 6, 0, 0, 0, 0, 0, 0, 0, 1)


@pytest.mark.parametrize("channels", [2, 3, 4, 5])
@pytest.mark.parametrize("alpha", [0, 2])
@pytest.mark.parametrize("colour", ["rgb", "minisblack"])
def test_a_band_that_is_not_alpha_does_not_become_one(tmp_path, channels, alpha, colour):
    more = channels - (3 if colour == "rgb" else 1)
    if more < 0:
        return
    (tmp_path / "in").mkdir()
    pixels = RNG.integers(0, 65536, (8, 9, channels), dtype=np.uint16)
    extra = [alpha] * more or None
    tifffile.imwrite(tmp_path / "in/a.tif", pixels, photometric=colour, planarconfig="contig", extrasamples=extra)
    predict(nn.Identity(), tmp_path / "in", tmp_path / "out")
    with tifffile.TiffFile(tmp_path / "out/a.tif") as tiff:
        page = tiff.pages.first
        assert (page.photometric.name.lower(), [*page.extrasamples]) == (colour, extra or [])
        assert np.array_equal(tiff.asarray(), pixels)
    if channels in (2, 4) and not alpha:
        with pytest.raises(InputError, match=r"a.tif has \d channels, the last of which is not alpha"):
            predict(nn.Identity(), tmp_path / "in", tmp_path / "converted", source_channels=1)


@pytest.mark.parametrize("shape", [(32, 48), (32, 48, 3)])
def test_masks_overviews_and_thumbnails_are_no_second_picture(tmp_path, shape):
    pixels = RNG.integers(0, 256, shape, dtype=np.uint8)
    kind = {"photometric": "rgb" if len(shape) == 3 else "minisblack", "metadata": None}
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(pixels, subifds=1, **kind)
        tiff.write(pixels[::2, ::2], subfiletype=1, **kind)
        tiff.write(pixels[::4, ::4], subfiletype=1, **kind)  # GDAL's overviews are in the main chain
        for size in ((32, 48), (16, 24)):  # a mask of the same size, and that of the overview
            tiff.write(np.full(size, 255, np.uint8), subfiletype=1, photometric="minisblack", metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as tiff:
        for page, value in ((2, 4), (3, 5)):  # tifffile writes masks of one bit only, others do not
            tiff.pages[page].tags[254].overwrite(value)
    expected = torch.from_numpy(pixels.reshape(32, 48, -1).transpose(2, 0, 1) / 127.5 - 1)
    assert torch.allclose(read_image(tmp_path / "a.tif").double(), expected, atol=1e-6)


# --- colour profiles and orientations


def profile_like_adobe():
    """Return the sRGB profile with red and blue exchanged, which changes colours as a wide gamut does."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = data.index(b"rXYZ", 128), data.index(b"bXYZ", 128)
    data[red : red + 4], data[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(data)


@pytest.mark.filterwarnings("ignore:an ICC profile")
def test_a_profile_is_said_once_and_kept_by_predict(tmp_path):
    other, srgb = profile_like_adobe(), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert unlike_srgb(srgb) is None
    assert unlike_srgb(other)
    assert unlike_srgb(b"none") is None
    (tmp_path / "in").mkdir()
    pixels = RNG.integers(0, 256, (12, 12, 3), dtype=np.uint8)
    for name in ("a.png", "b.jpg", "c.webp", "d.tif"):
        Image.fromarray(pixels).save(tmp_path / "in" / name, icc_profile=other)
    write_image(tmp_path / "in/deep.png", torch.rand(3, 12, 12) * 2 - 1, "uint16", profile=other)
    with pytest.warns(
        UserWarning, match=r"an ICC profile, .*, changes the colours of a.png, b.jpg.*not converted"
    ) as said:
        predict(nn.Identity(), tmp_path / "in", tmp_path / "out")
    assert len(said) == 1
    for path in (tmp_path / "in").iterdir():
        assert image_info(tmp_path / "out" / path.name).profile == other, path
        with Image.open(tmp_path / "out" / path.name) as image:
            assert image.info["icc_profile"] == other
    (tmp_path / "in/c.webp").unlink()  # never grey
    predict(nn.Conv2d(3, 1, 1), tmp_path / "in", tmp_path / "grey")  # for which it does not do
    assert image_info(tmp_path / "grey/a.png").profile is None
    notes = HeaderNotes()
    notes.see(tmp_path / "a.png", image_info(tmp_path / "in/a.png"), image_info(tmp_path / "in/b.jpg"))
    assert len(notes.lines()) == 1


def test_an_orientation_on_one_side_is_said(tmp_path):
    def save(path, orientation):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        Image.new("RGB", (40, 30)).save(buffer, "JPEG", exif=exif)
        path.write_bytes(buffer.getvalue())

    for split in ("train", "val"):
        save(tmp_path / f"{split}A/1.jpg", 6)
        save(tmp_path / f"{split}B/1.jpg", 1)
    with pytest.raises(InputError, match=r"40×30 but .* is 30×40 \(EXIF: A is turned by 90°, B is upright\)"):
        data(tmp_path)
    for split in ("train", "val"):
        save(tmp_path / f"{split}A/1.jpg", 3)
    with pytest.warns(UserWarning, match=r"EXIF turns one image of a pair and not the other: 1\.jpg; both"):
        data(tmp_path)
    (note,) = write_shards(tmp_path, tmp_path / "shards").notes
    assert note.startswith("EXIF turns one image of a pair and not the other: 1.jpg")
