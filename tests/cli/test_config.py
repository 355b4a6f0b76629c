"""Every option of every group composes, and every experiment trains."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image

from genstab import AntiAlias, Pix2Pix, ResNetGenerator, load_generator
from genstab.cli import main as cli
from genstab.cli.main import CONF
from genstab.cli.train import run_train as run
from tests.helpers.wandb_file import finish

TINY = [
    "model.generator.channels=2",
    "model.generator.levels=3",
    "model.discriminator.channels=2",
    "callbacks.pictures.reach=1",
    "callbacks.pictures.frames=2",
    "callbacks.stability.shifts=[[0,1]]",
    "callbacks.stability.margin=2",
    "trainer.max_epochs=1",
    "data.num_workers=0",
]
TINY_SYNTHETIC = [*TINY, "data.train_images=4", "data.val_images=2", "data.size=32", "data.crop_size=32"]
GROUPS = {
    "antialias": [
        "none",
        "rect2",
        "tri3",
        "bin4",
        "bin5",
        "bin6",
        "bin7",
        "kaiser",
        "ideal",
        "polyphase",
        "polyphase_tri3",
        "stable",
    ],
    "data": ["synthetic", "paired", "facades", "folder", "classes", "shards"],
    "model": ["pix2pix"],
    "model/generator": ["unet", "unet_256", "resnet"],
    "model/discriminator": ["patchgan", "pixel"],
    "trainer": ["default", "cpu", "gpu", "ddp", "ddp_cpu"],
    "logger": ["wandb", "tensorboard", "csv"],
    "callbacks": ["default"],
    "experiment": ["facades", "facades_small"],
    "hydra/launcher": ["slurm", "slurm_cpu"],
}


def composed(tmp_path, *overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [f"output_dir={tmp_path}", *overrides])


@pytest.fixture
def facades(tmp_path):
    """Three pairs side by side, as the archive has them."""
    for split, count in {"train": 2, "val": 1}.items():
        (tmp_path / "data" / split).mkdir(parents=True)
        for i in range(count):
            Image.effect_noise((128, 64), 90).convert("RGB").save(tmp_path / "data" / split / f"{i}.jpg")
    return tmp_path / "data"


def test_the_groups_and_their_options_are_all_there():
    found = {group: {path.stem for path in (CONF / group).glob("*.yaml")} for group in GROUPS}
    assert found == {group: set(options) for group, options in GROUPS.items()}


def test_defaults(tmp_path):
    config = composed(tmp_path)
    assert (config.antialias.filter, config.antialias.placement) == ("tri3", "pre")
    assert config.data._target_ == "genstab.data.SyntheticData"
    assert config.logger._target_ == "genstab.loggers.wandb_logger"


@pytest.mark.parametrize("filter", GROUPS["antialias"][:9])
@pytest.mark.parametrize("placement", ["pre", "post"])
def test_every_filter_reaches_the_generator(tmp_path, filter, placement):
    config = composed(tmp_path, f"antialias={filter}", f"antialias.placement={placement}", *TINY_SYNTHETIC)
    model = instantiate(config.model)
    assert isinstance(model, Pix2Pix)
    assert instantiate(config.antialias) == AntiAlias(filter, placement)
    blurs = [module.filter for module in model.generator.modules() if hasattr(module, "filter")]
    assert blurs == ([] if filter == "none" else [filter] * 6)  # three levels down and up


@pytest.mark.parametrize("filter", ["none", "tri3"])
@pytest.mark.parametrize("placement", ["pre", "post"])
def test_polyphase_reaches_the_generator_with_and_without_a_filter(tmp_path, filter, placement):
    options = ["antialias=polyphase", f"antialias.filter={filter}", f"antialias.placement={placement}"]
    config = composed(tmp_path, *options, *TINY_SYNTHETIC)
    model = instantiate(config.model)
    assert instantiate(config.antialias) == AntiAlias(filter, placement, "circular", True)
    assert model.generator.config["antialias"]["polyphase"] is True
    blurs = [module.filter for module in model.generator.modules() if hasattr(module, "filter")]
    assert blurs == ([] if filter == "none" else [filter] * 6)
    model.eval()
    images = torch.randn(1, 3, 16, 24)
    torch.testing.assert_close(model(images.roll((3, 5), (2, 3))), model(images).roll((3, 5), (2, 3)))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ([], "tri3-pre-seed1"),
        (["antialias=none", "antialias.placement=post", "seed=2"], "none-post-seed2"),
        (["antialias=polyphase"], "polyphase-none-pre-seed1"),
        (["antialias=polyphase_tri3"], "polyphase-tri3-pre-seed1"),
        (["antialias=polyphase", "antialias.filter=tri3"], "polyphase-tri3-pre-seed1"),
        (["antialias=stable"], "stable-tri3-pre-seed1"),
        (["model/generator=resnet", "model/discriminator=pixel"], "resnet-pixel-tri3-pre-seed1"),
    ],
)
def test_run_names_tell_the_options_apart(tmp_path, options, name):
    assert composed(tmp_path, *options).run_name == name


@pytest.mark.parametrize("option", GROUPS["trainer"])
@pytest.mark.parametrize("logger", GROUPS["logger"])
def test_every_trainer_and_logger_composes(tmp_path, option, logger):
    config = composed(tmp_path, f"trainer={option}", f"logger={logger}")
    assert config.trainer._target_ == "pytorch_lightning.Trainer"
    instantiate(config.logger)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", GROUPS["experiment"])
def test_every_experiment_trains(tmp_path, facades, experiment):
    run(
        composed(
            tmp_path,
            f"experiment={experiment}",
            f"data.root={facades}",
            "logger=csv",
            "trainer.accelerator=cpu",
            "trainer.check_val_every_n_epoch=1",
            *TINY,
        )
    )
    assert (tmp_path / "summary.json").is_file()


@pytest.mark.slow
def test_networks_are_chosen_by_name(tmp_path, monkeypatch):
    """Keys of the network fit the chosen one wherever they stand, and blur and channels reach it."""
    tiny = [option for option in TINY_SYNTHETIC if "levels" not in option]
    chosen = ["model.generator.blocks=1", "model.generator=resnet", "model.discriminator=pixel", "antialias=bin5"]
    monkeypatch.setattr(sys, "argv", ["genstab", "train", *chosen, *tiny, "logger=csv", f"hydra.run.dir={tmp_path}"])
    cli.main()
    generator = load_generator(tmp_path / "checkpoints/last.ckpt")
    assert isinstance(generator, ResNetGenerator)
    assert (generator.config["channels"], generator.config["antialias"]["filter"]) == (2, "bin5")
    assert json.loads((tmp_path / "summary.json").read_text())["config"]["run_name"] == "resnet-pixel-bin5-pre-seed1"


@pytest.mark.slow
def test_stable_trains_on_batches_of_one_too_and_says_that_they_have_no_overlapping_crops(tmp_path, facades):
    options = ["experiment=facades", "antialias=stable", f"data.root={facades}", "logger=csv"]
    with pytest.warns(UserWarning, match="overlap_offset=8 does nothing with one process"):
        run(composed(tmp_path, *options, "trainer.accelerator=cpu", "trainer.check_val_every_n_epoch=1", *TINY))
    assert json.loads((tmp_path / "summary.json").read_text())["train/loss_g_shift"] == 0


@pytest.mark.slow
def test_a_sweep_of_an_experiment_goes_on_where_it_ended(tmp_path, facades, monkeypatch):
    def sweep(options):
        arguments = ["train", "-m", "experiment=facades_small", f"data.root={facades}", *TINY, "logger=csv", "seed=3"]
        arguments += ["ckpt_path=last", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
        monkeypatch.setattr(sys, "argv", ["genstab", *arguments, f"antialias={options}"])
        cli.main()
        return {path.parent.name: path.stat().st_mtime_ns for path in (tmp_path / "sweep").glob("*/summary.json")}

    first = sweep("none")
    assert list(first) == ["none-pre-seed3"]
    both = sweep("none,stable")
    assert sorted(both) == ["none-pre-seed3", "stable-tri3-pre-seed3"]
    summary = json.loads((tmp_path / "sweep/stable-tri3-pre-seed3/summary.json").read_text())
    weights = {"l1": 100, "shift": 60, "detail": 60}
    parts = [weight * summary[f"train/loss_g_{part}"] for part, weight in weights.items()]
    assert summary["train/loss_g"] == pytest.approx(summary["train/loss_g_gan"] + sum(parts), rel=1e-5)
    assert min(parts) > 0
    assert both["none-pre-seed3"] == first["none-pre-seed3"]  # it was not trained again


def test_experiments_say_how_to_run_them():
    for path in (CONF / "experiment").glob("*.yaml"):
        lines = path.read_text().splitlines()
        assert lines[0] == "# @package _global_"
        assert lines[1].startswith(f"# python train.py experiment={path.stem}")


def test_the_recipes_are_the_papers(tmp_path):
    paper = composed(tmp_path, "experiment=facades")
    assert (paper.data.load_size, paper.data.crop_size, paper.data.batch_size) == (286, 256, 1)
    assert (paper.model.generator.channels, paper.model.generator.levels) == (64, 8)
    assert (paper.model.lr, paper.model.l1_weight, paper.trainer.max_epochs) == (2e-4, 100, 200)
    other = composed(tmp_path, "experiment=facades", "model/generator=resnet").model
    assert (other.generator.channels, other.generator.blocks, other.discriminator.channels) == (64, 9, 64)
    small = composed(tmp_path, "experiment=facades_small")
    assert (small.data.crop_size, small.data.batch_size, small.model.generator.channels) == (128, 4, 32)


@pytest.mark.slow
@pytest.mark.parametrize("data", ["synthetic", "paired"])
def test_data_options_train(tmp_path, facades, data):
    options = (
        TINY_SYNTHETIC
        if data == "synthetic"
        else [f"data.root={facades}", "data.load_size=36", "data.crop_size=32", *TINY]
    )
    value = run(composed(tmp_path, f"data={data}", "logger=csv", "trainer=cpu", *options))
    assert 0 < value <= 100


def test_the_sweep_file_names_options_that_exist():
    sweep = yaml.safe_load((CONF / "wandb_sweep.yaml").read_text())
    assert set(sweep["parameters"]["antialias"]["values"]) <= set(GROUPS["antialias"])
    assert sweep["metric"] == {"name": "val/shift_psnr", "goal": "maximize"}
    assert Path(CONF.parent / sweep["program"]).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("source", ["default", "environment", "command line"])
def test_wandbs_own_variables_come_after_the_command_line_and_before_the_defaults(tmp_path, monkeypatch, source):
    keys = {"PROJECT": "project", "NAME": "name", "ENTITY": "entity", "RUN_GROUP": "group", "TAGS": "tags"}
    for variable in keys:
        monkeypatch.setenv(f"WANDB_{variable}", "" if source == "default" else f"env-{variable}".lower())
    options = [f"logger.{key}={'[mine]' if key == 'tags' else 'mine'}" for key in keys.values()]
    options = options if source == "command line" else [f"++logger.{key}=null" for key in ("entity", "group", "tags")]
    run = instantiate(composed(tmp_path, "logger=wandb", *options).logger).experiment
    found = [run.project, run.name, run.settings.entity, run.group, *run.tags]
    finish()
    if source == "command line":
        assert found == ["mine"] * 5
    elif source == "environment":
        assert found == [f"env-{variable}".lower() for variable in keys]
    else:
        assert found[:1] == ["genstab"]
        assert not any(found[2:])


@pytest.mark.parametrize(("words", "name"), [([], "env"), (["run_name=mine"], "mine"), (["logger.name=it"], "it")])
def test_the_command_line_names_a_run_before_the_environment(tmp_path, monkeypatch, words, name):
    found = []
    monkeypatch.setenv("WANDB_NAME", "env")
    monkeypatch.setattr("genstab.cli.submitit.run_train", lambda config, processes: found.append(config.logger.name))
    monkeypatch.setattr(sys, "argv", ["genstab", "train", f"hydra.run.dir={tmp_path / 'run'}", *words])
    cli.main()
    assert found == [name]
