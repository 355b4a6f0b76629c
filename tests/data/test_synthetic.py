import numpy as np
import pytest
import torch

from genstab.data.synthetic import PALETTE, SyntheticFacades, draw_facade
from genstab.errors import InputError

COLOURS = np.array(list(PALETTE.values()))


def classes(label):
    """Class numbers, (size, size); fails on a colour that is not in the palette."""
    hit = (label[:, :, None].astype(int) == COLOURS).all(-1)
    assert hit.any(-1).all()
    return hit.argmax(-1)


def test_same_scene_for_same_seed_and_index_only():
    label, photo = draw_facade(1, 2, 64)
    again = draw_facade(1, 2, 64)
    np.testing.assert_array_equal(label, again[0])
    np.testing.assert_array_equal(photo, again[1])
    for other in (draw_facade(1, 3, 64), draw_facade(2, 2, 64), draw_facade(2, 1, 64)):
        assert (label != other[0]).any(-1).mean() > 0.05
        assert (photo != other[1]).any(-1).mean() > 0.5


@pytest.mark.parametrize("size", [16, 50, 100, 128, 256])
def test_shape_dtype_and_palette(size):
    label, photo = draw_facade(0, 5, size)
    assert label.shape == photo.shape == (size, size, 3)
    assert label.dtype == photo.dtype == np.uint8
    assert len(np.unique(classes(label))) >= 4


def test_every_class_occurs_early():
    counts = sum(np.bincount(classes(draw_facade(0, i, 64)[0]).ravel(), minlength=12) for i in range(40))
    assert counts.min() >= 20


@pytest.mark.parametrize("index", range(8))
def test_size_does_not_change_the_scene(index):
    small, middle, large = (draw_facade(3, index, size) for size in (64, 128, 256))
    for coarse, fine in ((small, middle), (middle, large)):
        agree = (fine[0][::2, ::2] == coarse[0]).all(-1) | (fine[0][1::2, 1::2] == coarse[0]).all(-1)
        assert agree.mean() >= 0.9
        size = len(coarse[1])
        reduced = fine[1].reshape(size, 2, size, 2, 3).mean((1, 3))
        assert np.abs(reduced - coarse[1]).mean() < 10


def test_photo_shows_what_the_label_says():
    means, sky = {name: [] for name in PALETTE}, []
    for index in range(24):
        label, photo = draw_facade(4, index, 64)
        found = classes(label)
        sky.append(photo[0].mean(0))
        for i, name in enumerate(PALETTE):
            if (found == i).sum() > 20:
                means[name].append(photo[found == i].mean(0))
    mean = {name: np.mean(colours, axis=0) for name, colours in means.items()}
    assert mean["facade"].mean() - mean["window"].mean() > 25
    assert mean["molding"].mean() - mean["door"].mean() > 40
    assert np.mean(sky) - mean["facade"].mean() > 20
    blueness = np.mean(sky, axis=0) @ [-1, 0, 1]
    assert blueness > 10 + mean["facade"] @ [-1, 0, 1]


def test_edges_of_label_and_photo_coincide():
    # The photo's gradients lie on the label's edges: shifted by two pixels they match it less.
    scores = np.zeros(5)
    for index in range(8):
        label, photo = draw_facade(5, index, 128)
        edge = (np.diff(classes(label), axis=1) != 0)[:, 4:-4]
        gradient = np.abs(np.diff(photo.astype(float).mean(-1), axis=1))
        scores += [gradient[:, 4 + d : 4 + d + edge.shape[1]][edge].mean() for d in (-4, -2, 0, 2, 4)]
    assert scores.argmax() == 2


def test_edges_are_antialiased_in_the_photo_only():
    label, photo = draw_facade(0, 2, 128)
    assert len(np.unique(label.reshape(-1, 3), axis=0)) <= len(PALETTE)
    assert len(np.unique(photo.reshape(-1, 3), axis=0)) > 1000


def test_random_state_is_untouched():
    np_before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    SyntheticFacades(1, 16)[0]
    np.testing.assert_array_equal(np.random.get_state()[1], np_before)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_before)


def test_dataset_items():
    data = SyntheticFacades(3, size=32, seed=7)
    items = list(data)
    assert len(items) == len(data) == 3
    assert [item["name"] for item in items] == ["00000", "00001", "00002"]
    label, photo = draw_facade(7, 1, 32)
    for key, image in (("source", label), ("target", photo)):
        value = items[1][key]
        assert value.shape == (3, 32, 32)
        assert value.dtype == torch.float32
        assert value.is_contiguous()
        assert value.min() >= -1
        assert value.max() <= 1
        restored = ((value + 1) * 127.5).round().permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(restored, image)
    assert items[1]["source"].max() == 1


@pytest.mark.parametrize("index", [-1, 2])
def test_index_out_of_range(index):
    with pytest.raises(IndexError, match=rf"index={index} is not in 0\.\.1"):
        SyntheticFacades(2, 16)[index]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"length": 0}, "length=0 is not an integer of at least 1"),
        ({"length": 1, "size": 15}, "size=15 is not an integer of at least 16"),
        ({"length": 1, "seed": -1}, "seed=-1 is not an integer of at least 0"),
    ],
)
def test_dataset_errors(kwargs, message):
    with pytest.raises(InputError, match=message):
        SyntheticFacades(**kwargs)
