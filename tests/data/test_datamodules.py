from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from pytorch_lightning import Trainer
from torch.utils.data import default_collate

from genstab import InputError
from genstab.data.augment import PairAugment
from genstab.data.channels import converted
from genstab.data.datamodules import FacadesData, PairedData, SyntheticData
from genstab.data.overlapping_crops import equivariance_loss
from tests.conftest import tiny_pix2pix
from tests.training.test_pix2pix import QUIET


def picture(path, size=(40, 32), colour=(10, 20, 30), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two training pairs and one for validation, A blue and B red, 40 wide and 32 high."""
    for split, names in {"train": ("1", "2"), "val": ("3",)}.items():
        for name in names:
            picture(tmp_path / f"{split}A" / f"{name}_A.png", colour=(0, 0, 255))
            picture(tmp_path / f"{split}B" / f"{name}_B.jpg", colour=(255, 0, 0))
    return tmp_path


def paired(folder, **kwargs):
    return PairedData(str(folder), **{"crop_size": 24, "load_size": 28, "num_workers": 0, **kwargs})


@pytest.mark.parametrize(("direction", "source_channel"), [("AtoB", 2), ("BtoA", 0)])
def test_pairs_reach_the_model_in_their_direction(folder, direction, source_channel):
    data = paired(folder, direction=direction)
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    assert batch["name"] == ["3"]
    assert batch["source"].shape == batch["target"].shape == (1, 3, 24, 24)  # resized
    assert (batch["source"][0].amax((1, 2)) > 0.9).nonzero().flatten().tolist() == [source_channel]
    assert (batch["target"][0].amax((1, 2)) > 0.9).nonzero().flatten().tolist() == [2 - source_channel]


def test_training_batches_are_augmented_on_the_device_and_validation_is_not(folder):
    data, seen = paired(folder, batch_size=2), []
    model = tiny_pix2pix()
    model.generator = torch.nn.Conv2d(3, 3, 1)
    model.discriminator = type(model.discriminator)(3, 3, channels=2)
    model.generator.register_forward_pre_hook(lambda module, args: seen.append((module.training, args[0].shape[-2:])))
    Trainer(max_epochs=1, num_sanity_val_steps=0, **QUIET).fit(model, datamodule=data)
    assert seen == [(True, (24, 24)), (False, (24, 24))]
    assert data.train_set[0]["source"].shape == (3, 28, 28)  # larger files shrink on reading
    smaller = paired(folder, load_size=[50, 60])
    smaller.setup("fit")
    assert smaller.train_set[0]["source"].shape == (3, 32, 40)  # smaller ones are enlarged on the device


def test_native_size_is_kept_without_a_load_size(folder):
    data = paired(folder, load_size=None, crop_size=[32, 40])
    data.setup("fit")
    assert next(iter(data.val_dataloader()))["source"].shape == (1, 3, 32, 40)


def test_both_images_of_a_pair_get_the_same_geometry():
    torch.manual_seed(0)
    # a picture that tells its columns and rows apart; the target is the same in other units
    ramp = torch.stack(torch.meshgrid(torch.linspace(-1, 1, 20), torch.linspace(-1, 1, 20), indexing="ij"))
    source = ramp[None].expand(16, -1, -1, -1).contiguous()
    augment = PairAugment((16, 16), (22, 24))
    a, b = augment(source, source * 0.5)
    assert a.shape == (16, 2, 16, 16)
    torch.testing.assert_close(a * 0.5, b)
    steps = a[:, 1, 0, -1] - a[:, 1, 0, 0]
    assert set(steps.sign().tolist()) == {-1, 1}  # some are mirrored
    assert len({round(v, 4) for v in a[:, 0, 0, 0].tolist()}) > 2  # cropped at several heights
    kept, _ = PairAugment((16, 16), (22, 24), flip=False)(source, source)
    assert (kept[:, 1, 0, -1] > kept[:, 1, 0, 0]).all()
    assert a.abs().max() <= 1 + 1e-5


def test_synthetic_splits_differ_and_repeat():
    data, again = SyntheticData(4, 2, size=32, crop_size=32), SyntheticData(4, 2, size=32, crop_size=32)
    assert (len(data.train_set), len(data.val_set)) == (4, 2)
    assert torch.equal(data.val_set[1]["source"], again.val_set[1]["source"])
    assert not torch.equal(data.val_set[0]["source"], data.train_set[0]["source"])


def test_facades_already_there_need_no_network(folder):
    data = FacadesData(str(folder), url="http://127.0.0.1:9/none", crop_size=24, load_size=28, num_workers=0)
    data.prepare_data()
    data.setup("fit")
    assert len(data.train_set) == 2
    assert next(iter(data.val_dataloader()))["source"][0, 0].min() > 0.9  # BtoA: labels, red here, to photos


def test_facades_without_a_network_say_what_to_do(tmp_path):
    with pytest.raises(InputError, match="new does not exist"):
        FacadesData(str(tmp_path / "new"))
    (tmp_path / "new").mkdir()
    data = FacadesData(str(tmp_path / "new"), url="http://127.0.0.1:9/facades.tar.gz")
    with pytest.raises(InputError, match=r"data=paired data.root=") as error:
        data.prepare_data()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"root": "nowhere"}, "nowhere"),
        ({"direction": "AB"}, "direction='AB' is not one of AtoB, BtoA"),
        ({"crop_size": 30}, r"load_size=\(28, 28\) is smaller than crop_size=\(30, 30\)"),
        ({"crop_size": 33, "load_size": None}, r"1_A.png.*32.*33"),
        ({"crop_size": [8, 8, 8]}, r"crop_size=\[8, 8, 8\] is neither"),
        ({"source_channels": 1}, r"1_A.png.* 3 channels.*data.source_channels"),
        ({"target_channels": 4}, r"1_B.jpg.* 3 channels.*data.target_channels"),
        ({"val_share": 1.5}, "val_share=1.5 is not a number from 0 to 1"),
        ({"check": "half"}, "check='half' is not one of fast, full, off"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_workers": -1}, "num_workers=-1"),
    ],
)
def test_bad_options_are_named(folder, options, message):
    with pytest.raises(InputError, match=message):
        paired(options.pop("root", folder), **options).setup("fit")


def test_images_of_several_sizes_are_cropped_one_by_one_and_validated_one_by_one(folder):
    for side in "AB":
        picture(folder / f"train{side}" / "9.png", size=(64, 50), colour=(0, 255, 0))
        picture(folder / f"val{side}" / "4.png", size=(64, 50))
    data = paired(folder, load_size=None, batch_size=3)
    data.setup("fit")
    assert [tuple(batch["target"].shape) for batch in data.val_dataloader()] == [(1, 3, 32, 40), (1, 3, 50, 64)]
    (batch,) = data.train_dataloader()
    data.trainer = SimpleNamespace(training=True)
    batch = data.on_after_batch_transfer(data.on_before_batch_transfer(batch, 0), 0)
    assert batch["source"].shape == batch["target"].shape == (3, 3, 24, 24)
    green = batch["name"].index("9")
    assert torch.equal(batch["source"][green], batch["target"][green])  # every pair is still a pair
    data = paired(folder)
    data.setup("fit")
    assert {data.train_set[i]["source"].shape for i in range(3)} == {(3, 28, 28)}


def test_a_and_b_of_two_sizes_are_resized_to_one(folder):
    picture(folder / "trainB" / "2_B.jpg", size=(20, 16), colour=(255, 0, 0))
    for load_size in (28, 64):  # smaller than the files, and larger, where pairs of one size are resized on the device
        data = paired(folder, load_size=load_size)
        data.setup("fit")
        item = data.train_set[1]
        assert item["source"].shape == item["target"].shape == (3, load_size, load_size)
    with pytest.raises(InputError, match=r"2_A.png is 32×40 but .*2_B.jpg is 16×20: .*or set data.load_size to resize"):
        paired(folder, load_size=None).setup("fit")
    picture(folder / "trainB" / "2_B.jpg", size=(32, 40))
    with pytest.raises(InputError, match=r"2_A.png is 32×40 but .*2_B.jpg is 40×32: .* must have the same size$"):
        paired(folder).setup("fit")


def test_other_channels_are_converted_when_asked(folder):
    # grey is repeated; alpha is dropped, and a palette is RGB anyway; RGB becomes 0.299 R + 0.587 G + 0.114 B
    Image.new("LA", (40, 32), (51, 7)).save(folder / "trainA" / "1_A.png")
    Image.new("RGB", (40, 32), (0, 0, 255)).convert("P").save(folder / "trainA" / "2_A.png")
    with pytest.raises(
        InputError, match=r"2 channels, but side A needs 3: .*, or data.convert=true to convert it to 3"
    ):
        paired(folder).setup("fit")
    data = paired(folder, convert=True, target_channels=1)
    data.setup("fit")
    first, second = (data.train_set[i] for i in range(2))
    assert first["source"][:, 0, 0].tolist() == pytest.approx([-0.6] * 3)
    assert second["source"][:, 0, 0].tolist() == pytest.approx([-1, -1, 1])
    assert first["target"].shape == (1, 28, 28)
    assert first["target"][0, 0, 0].item() == pytest.approx(2 * 0.299 * 254 / 255 - 1, abs=1e-6)  # JPEG's red is 254
    pixels = torch.rand(4, 1, 1)
    assert torch.equal(converted(pixels, 2)[1], pixels[3])
    assert converted(pixels[:1], 4).flatten().tolist() == [*pixels[:1].flatten().tolist() * 3, 1]
    with pytest.raises(InputError, match="7 channels, which cannot be converted to 3"):
        converted(torch.zeros(7, 1, 1), 3)


@pytest.mark.parametrize(("share", "count"), [(0.1, 1), (0.3, 3), (0.25, 2)])
def test_without_a_validation_split_a_share_is_held_out_and_said(tmp_path, capsys, share, count):
    for i in range(10):
        for side in "AB":
            picture(tmp_path / "train" / side / f"{i}.png")
    splits = []
    for options in ({}, {}, {"val_seed": 1}):
        data = paired(tmp_path, val_share=share, **options)
        data.setup("fit")
        data.setup("fit")  # Lightning sets up what the command has set up
        measured = paired(tmp_path, val_share=share, **options)
        measured.setup("validate")
        train, val, again = (
            {pair.name for pair in each.pairs} for each in (data.train_set, data.val_set, measured.val_set)
        )
        assert len(val) == count
        assert train | val == set("0123456789")
        assert not train & val
        assert val == again
        splits.append(val)
    assert splits[0] == splits[1]
    assert len(set(map(frozenset, splits))) == 2 or count == 1
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 6
    held = f"{count} of the 10 training pairs are held out for it (val_share={share}, val_seed=0)"
    assert said[0] == f"{tmp_path} has no folder for validation: {held}"
    data = paired(tmp_path, val_share=share)
    data.trainer = SimpleNamespace(limit_val_batches=0)
    data.setup("fit")
    assert (len(data.train_set), len(data.val_set)) == (10, 0)
    for options, reason in (
        ({"val_share": 0}, "no pairs for split=val"),
        ({"val_share": 1}, "leaves none for training"),
    ):
        with pytest.raises(InputError, match=reason):
            paired(tmp_path, **options).setup("fit")


def test_synthetic_size_must_hold_the_crop():
    with pytest.raises(InputError, match="size=32 is smaller than crop_size"):
        SyntheticData(size=32, crop_size=64)
    with pytest.raises(InputError, match="load_size=70: façades are drawn in any size, which size sets"):
        SyntheticData(load_size=70)


def trainer_of(data, world_size=1):
    fit_loop = SimpleNamespace(batch_idx=-1)  # before the first batch
    trainer = SimpleNamespace(training=True, world_size=world_size, global_rank=0, fit_loop=fit_loop)
    data.trainer = trainer
    trainer.train_dataloader = data.train_dataloader()
    return trainer


@pytest.mark.parametrize(("size", "crop_size"), [(40, 32), (34, 32), (32, 32)])
def test_overlapping_crops_have_the_crops_size_also_in_images_without_room(size, crop_size):
    data = SyntheticData(6, 2, size=size, crop_size=crop_size, batch_size=4, overlap_offset=5, num_workers=0)
    data.trainer = trainer_of(data)
    item = default_collate([data.train_set[i] for i in range(4)])
    batch = data.on_after_batch_transfer(item, 0)
    assert batch["source"].shape == batch["target"].shape == (4, 3, 32, 32)
    assert equivariance_loss(batch["source"], batch["shift"]).item() == 0
    assert equivariance_loss(batch["target"], batch["shift"]).item() == 0
    dy, dx = batch["shift"]
    assert equivariance_loss(batch["source"], (dy + (1 if dy < 5 else -1), dx)).item() > 0
    data.trainer = SimpleNamespace(training=False)
    assert "shift" not in data.on_after_batch_transfer(default_collate([data.val_set[0]]), 0)


def test_batches_of_one_have_no_overlapping_crops_and_an_offset_is_positive():
    data = SyntheticData(4, 2, size=40, crop_size=32, batch_size=1, overlap_offset=8, num_workers=0)
    with pytest.warns(UserWarning, match=r"overlap_offset=8 does nothing with one process and data\.batch_size=1"):
        trainer_of(data)
    batch = data.on_after_batch_transfer(default_collate([data.train_set[0]]), 0)
    assert batch["source"].shape == (1, 3, 32, 32)
    assert equivariance_loss(batch["source"], batch["shift"]).item() == 0
    trainer_of(data, world_size=2)  # the first of two processes crops its image twice
    batch = data.on_after_batch_transfer(default_collate([data.train_set[0]]), 0)
    assert (len(batch["source"]), batch["pairs"], batch["weights"]) == (2, 1, (2.0, 1.0))
    with pytest.raises(InputError, match="overlap_offset=-1"):
        SyntheticData(overlap_offset=-1)
