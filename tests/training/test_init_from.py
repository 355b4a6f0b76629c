"""A new training begins from weights alone: what fits is loaded, and what does not is listed."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from genstab import AntiAlias, InputError, PatchGAN, Pix2Pix, ResNetGenerator, UNet
from genstab.cli.check_config import check_training
from genstab.training.init_from import begin_from
from tests.helpers.killed import run
from tests.inference.test_cyclegan_checkpoints import Unet, published_resnet, randomised

SOURCE = torch.rand(2, 3, 32, 32) * 2 - 1


def published_discriminator(norm, channels):
    """The discriminator of the CycleGAN/pix2pix repository, with three strided layers of width 4."""
    bias, make = norm == "instance", {"batch": nn.BatchNorm2d, "instance": nn.InstanceNorm2d}[norm]
    layers = [nn.Conv2d(channels, 4, 4, 2, 1), nn.LeakyReLU(0.2)]
    for inner, outer, stride in ((4, 8, 2), (8, 16, 2), (16, 32, 1)):
        layers += [nn.Conv2d(inner, outer, 4, stride, 1, bias=bias), make(outer), nn.LeakyReLU(0.2)]
    network = nn.Module()
    network.model = nn.Sequential(*layers, nn.Conv2d(32, 1, 4, 1, 1))
    return network


def model_of(norm="batch", levels=3, seed=1, antialias="tri3", **options):
    torch.manual_seed(seed)
    generator = UNet(3, 3, channels=2, levels=levels, norm=norm, antialias=antialias, **options)
    return Pix2Pix(generator, PatchGAN(3, 3, channels=4, norm=norm))


def differing(network, other):
    theirs = other.state_dict()
    return [key for key, value in network.state_dict().items() if not torch.equal(value, theirs[key])]


@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
def test_both_files_of_the_cyclegan_repository(tmp_path, norm):
    generator = randomised(Unet(3, norm, False, 3, 3))
    discriminator = randomised(published_discriminator("batch" if norm == "none" else norm, 6))
    torch.save(generator.state_dict(), tmp_path / "latest_net_G.pth")
    torch.save(discriminator.state_dict(), tmp_path / "latest_net_D.pth")

    blurred = model_of(norm)
    begin_from(blurred, tmp_path / "latest_net_G.pth", notes=(notes := []))
    assert notes[1] == f"discriminator: starts from random weights; init_from_d={tmp_path}/latest_net_D.pth loads it"
    plain = model_of(norm, antialias=None).eval()
    begun = begin_from(plain, tmp_path / "latest_net_G.pth", tmp_path / "latest_net_D.pth")
    assert differing(blurred.generator, plain.generator) == []  # a blur has no weights
    for name in begun:
        assert begun[name]["loaded"] == begun[name]["tensors"] or (norm, name) == ("none", "discriminator")
        assert not begun[name]["mismatched"]
    with torch.no_grad():
        torch.testing.assert_close(plain.generator(SOURCE), generator(SOURCE), rtol=0, atol=1e-5)
        if norm != "none":
            expected = discriminator.model(torch.cat((SOURCE, SOURCE), dim=1))
            torch.testing.assert_close(plain.discriminator(SOURCE, SOURCE), expected, rtol=0, atol=1e-4)


def test_a_resnet_of_that_repository_for_another_number_of_blocks(tmp_path):
    theirs = randomised(published_resnet(2, "instance", True, 3, 3))
    torch.save(theirs.state_dict(), tmp_path / "G.pth")
    model = Pix2Pix(ResNetGenerator(3, 3, channels=3, blocks=3, norm="instance", antialias="tri3"), PatchGAN())
    begun = begin_from(model, tmp_path / "G.pth")["generator"]
    assert (begun["loaded"], begun["missing"]) == (11, ["blocks.2.conv1.weight", "blocks.2.conv2.weight"])
    assert torch.equal(model.generator.blocks[1].conv2.weight, theirs.model[11].conv_block[6].weight)


@pytest.mark.parametrize("kind", ["checkpoint", "nested", "prefixed", "safetensors"])
def test_files_of_any_kind_give_the_networks_that_they_have(tmp_path, kind):
    old, new, path = model_of(seed=0), model_of(seed=1, antialias=AntiAlias("bin5", "post")), tmp_path / "old.ckpt"
    first = differing(new.discriminator, old.discriminator)
    generator = old.generator.state_dict()
    if kind == "checkpoint":
        torch.save({"state_dict": old.state_dict(), "generator": old.generator.config}, path)
    elif kind == "nested":
        torch.save({"epoch": 3, "netG": generator, "netD": old.discriminator.state_dict()}, path)
    elif kind == "prefixed":
        torch.save({"state_dict": {f"module.{key}": value.double() for key, value in generator.items()}}, path)
    else:
        save_file({key: value.contiguous() for key, value in generator.items()}, path)
    begun = begin_from(new, path)
    assert differing(new.generator, old.generator) == []
    has_both = kind in ("checkpoint", "nested")
    assert differing(new.discriminator, old.discriminator) == ([] if has_both else first)
    assert ("discriminator" in begun) == has_both
    assert begun["generator"] | {"sha256": ""} == {
        "file": str(path), "sha256": "", "loaded": len(generator), "tensors": len(generator),
        "missing": [], "unexpected": [], "mismatched": [], "partly": [],
    }  # fmt: skip


def test_what_does_not_fit_is_listed(tmp_path):
    old, new = model_of(levels=3, antialias=None).eval(), model_of(levels=4, head=2, seed=5)
    torch.save(old.generator.state_dict() | {"odd": torch.zeros(1)}, tmp_path / "old.pth")
    begun = begin_from(new, tmp_path / "old.pth", notes=(notes := []))
    # a U-Net of three levels is the outermost three of four: its innermost layers have other widths or no norm
    assert begun["generator"]["missing"] == [
        "encoder.2.norm.weight", "encoder.2.norm.bias", "encoder.2.norm.running_mean", "encoder.2.norm.running_var",
        "encoder.3.conv.weight", "encoder.3.conv.bias", "decoder.0.conv.weight", "decoder.0.norm.weight",
        "decoder.0.norm.bias", "decoder.0.norm.running_mean", "decoder.0.norm.running_var",
        "head.noise.filters", "head.draw.weight", "head.draw.bias",
    ]  # fmt: skip
    assert begun["generator"]["mismatched"] == ["decoder.1.conv.weight (8×4×4×4, not 16×4×4×4)"]
    assert "missing encoder.2.norm.weight, encoder.2.norm.bias, encoder.2.norm.running_mean and 11 more; " in notes[0]
    assert torch.equal(new.generator.decoder[2].conv.weight, old.generator.decoder[1].conv.weight)
    # the head begins with the picture that was drawn without it
    head = model_of(levels=3, antialias=None, head=2).eval()
    begin_from(head, tmp_path / "old.pth")
    head.generator.head.draw.weight.data[:, 3:] = 0
    with torch.no_grad():
        torch.testing.assert_close(head.generator(SOURCE), old.generator(SOURCE), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"a": torch.zeros(1)},
            r"nothing in it has the name and the shape of a tensor of this UNet; its first keys are a$",
        ),
        ("counts", "nothing in it has the name and the shape"),
        (None, "init_from=.* does not exist"),
        ("nan", r"encoder\.0\.conv\.bias is not finite"),
        ("two", "2 different sets of weights that fit this UNet: a, b; init_from_prefix=a chooses one"),
    ],
)
def test_what_gives_nothing_is_refused(tmp_path, content, message):
    model, path = model_of(), tmp_path / "old.pth"
    weights = {key: value.clone() for key, value in model.generator.state_dict().items()}
    if content == "nan":
        content = weights | {"encoder.0.conv.bias": torch.tensor([0.0, torch.nan])}
    elif content == "counts":
        content = {key: value if key.endswith("tracked") else value[..., None] for key, value in weights.items()}
    elif content == "two":
        content = {"a": weights, "b": model_of(seed=7).generator.state_dict()}
    if content is not None:
        torch.save(content, path)
    with pytest.raises(InputError, match=message):
        begin_from(model, path)
    if message.startswith("2 different"):
        begin_from(model, path, prefix="b")
        assert all(torch.equal(value, content["b"][key]) for key, value in model.generator.state_dict().items())
        with pytest.raises(InputError, match=r"init_from_prefix=c names no weights in .* that fit; it has a, b"):
            begin_from(model, path, prefix="c")


def test_a_run_begins_and_resumes_by_two_words(tmp_path, capsys):
    short = ["trainer.max_steps=1", "callbacks.stability=null", "++trainer.limit_val_batches=0"]
    run(tmp_path / "old", *short)
    begin = [f"init_from={tmp_path / 'old'}", "antialias=bin5", "model.lr=1e-5"]
    run(tmp_path / "new", *short, *begin)  # ckpt_path=last is among the options: there is none yet
    tensors = len(torch.load(tmp_path / "old/checkpoints/last.ckpt", weights_only=True)["state_dict"])
    said = capsys.readouterr().out
    assert "Starting in" in said
    assert (
        len(re.findall(r"(?m)^(?:generator|discriminator): loaded (\d+) of \1 tensors from .*last\.ckpt$", said)) == 2
    )
    summary = json.loads((tmp_path / "new/summary.json").read_text())
    begun = summary["init_from"]
    assert begun["generator"]["loaded"] + begun["discriminator"]["loaded"] == tensors
    assert summary["steps"] == 1  # the optimizers and the counts are new ones

    short[0] = "trainer.max_steps=2"
    run(tmp_path / "new", *short, *begin)
    assert "loaded" not in capsys.readouterr().out  # it resumes, and its summary still says what it began from
    summary = json.loads((tmp_path / "new/summary.json").read_text())
    assert (summary["init_from"], summary["steps"]) == (begun, 2)
    run(tmp_path / "new", "trainer.max_steps=3", *short[1:], *begin[1:])  # without the word it does so, too
    with pytest.raises(InputError, match=r"last\.ckpt is of a training run with init_from=.*old, not .*elsewhere"):
        run(tmp_path / "new", *short, "init_from=elsewhere", "antialias=bin5")
    with pytest.raises(InputError, match="ckpt_path=a resumes a training and init_from=b begins another one"):
        check_training({"seed": 1, "ckpt_path": "a", "init_from": "b"})
    with pytest.raises(InputError, match="init_from_d=c needs init_from=FILE"):
        check_training({"seed": 1, "init_from_d": "c"})
    check_training({"seed": 1, "ckpt_path": "last", "init_from": "b"})
