"""The command line: one line for bad input, help, and the wheel outside the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from genstab.cli import main as cli
from tests.cli.test_config import TINY_SYNTHETIC

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PLAIN = ["hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.run.dir=run", "logger=csv", *TINY_SYNTHETIC]


def genstab(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["genstab", *arguments])
    cli.main()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["antialias.filter=tri9"],
            r"genstab: antialias\.filter='tri9' is not one of none, rect2, tri3, bin4, bin5, bin6, bin7, kaiser, ideal",
        ),
        (
            ["antialias=tri4"],
            r"genstab: .*Could not find 'antialias/tri4': did you mean tri3\? Available .* bin4 bin5 bin6 bin7 ideal "
            "kaiser none polyphase polyphase_tri3 rect2 stable tri3",
        ),
        (["+antialias.foo=1"], r"genstab: .*antialias\.foo is not known; genstab.AntiAlias takes filter, placement, "),
        (["~loger"], r"genstab: .*'loger' does not exist: did you mean ~logger\?"),
        (["~trainer.max_epoch"], r"genstab: .*does not exist: did you mean ~trainer\.max_epochs\?"),
        (["~antialias"], "genstab: ~antialias leaves out what this command needs"),
        (["trainer.max_steps=0"], r"genstab: trainer\.max_steps=0 trains nothing"),
        (["trainer.limit_train_batches=0.0"], r"genstab: trainer\.limit_train_batches=0\.0 trains nothing"),
        (["trainer.max_epochs=["], "genstab: no viable alternative at input"),
        (["callbacks.stability.shifts=[]"], "genstab: .*shifts: the list is empty"),
        (["callbacks.stability.shifts=[[0,0]]"], "genstab: .*the zero shift"),
        (["data.crop_size=64"], r"genstab: .*size=32 is smaller than crop_size=\(64, 64\)"),
        (["trainer=ddp", "trainer.devices=64"], "genstab: trainer.devices=64: this machine has . CUDA devices"),
        (["trainer.devices=0"], r"genstab: .*devices=0\)` value is not a valid input"),
        (["trainer=ddp_cpu", "trainer.devices=5000"], "genstab: trainer.devices=5000: this machine has .* processors"),
        (["trainer=gpu", "trainer.devices=[63]"], r"genstab: .*\[63\]"),
        (["model.generator.in_channels=1"], r"genstab: UNet: in_channels=1, not a source of \(2, 3, 32, 32\)"),
        (["trainer.gradient_clip_val=-1"], "genstab: trainer.gradient_clip_val=-1 is not a finite number"),
        (["trainer.accumulate_grad_batches=0"], "genstab: trainer.accumulate_grad_batches=0 is not an integer of at"),
        (["trainer.overfit_batches=0.01"], "set trainer.limit_train_batches, or trainer.overfit_batches, to at least"),
        (["trainer.max_time=00:00:00:00"], "genstab: trainer.max_time='00:00:00:00' trains nothing"),
        (["trainer.devices=4"], "genstab: trainer.devices=4 needs several processes: add trainer=ddp"),
        (["model.generator=vit"], "genstab: .*Could not find 'model/generator/vit' .*: resnet unet unet_256"),
        (
            ["model.generator=resnet", "antialias=stable"],
            r"genstab: model\.generator\.head=10, which antialias=stable sets, is not known to genstab\.ResNet",
        ),
        (
            ["callbacks.stability.margin=20", "trainer.num_sanity_val_steps=0"],
            "genstab: .*margin=20 leave no pixel.*, of validation images of 32×32: set callbacks.stability.margin or",
        ),
    ],
)
def test_bad_input_is_one_line_and_starts_no_training(monkeypatch, overrides, message):
    with pytest.raises(SystemExit, match=message) as error:
        genstab(monkeypatch, "train", *PLAIN, *overrides)
    assert "\n" not in str(error.value)
    assert not Path("run/checkpoints").exists()


def test_a_variable_of_wandb_is_no_key(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "banana")
    with pytest.raises(SystemExit, match=r"^genstab: WANDB_MODE='banana' is not one of online, offline, disabled"):
        genstab(monkeypatch, "train", *PLAIN, "logger=wandb")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "empty"),
        (lambda root: root.rmdir(), "does not exist"),
        (lambda root: (root / "trainA").mkdir(), "trainB"),
    ],
)
def test_a_bad_data_root_is_one_line(monkeypatch, tmp_path, make, message):
    root = tmp_path / "pictures"
    root.mkdir()
    make(root)
    overrides = [option for option in PLAIN if "data." not in option]
    with pytest.raises(SystemExit, match=f"genstab: .*pictures.*({message}|nothing|found)") as error:
        genstab(monkeypatch, "train", *overrides, "data=paired", f"data.root={root}")
    assert "\n" not in str(error.value)


def test_a_missing_data_root_is_one_line(monkeypatch):
    overrides = [option for option in PLAIN if "data." not in option]
    with pytest.raises(SystemExit, match=r"genstab: .*data\.root is missing: add data\.root=DIR") as error:
        genstab(monkeypatch, "train", *overrides, "data=paired")
    assert "\n" not in str(error.value)


def test_a_bad_job_does_not_stop_the_others_of_a_sweep(monkeypatch):
    options = [option for option in PLAIN if "hydra.run.dir" not in option]
    with pytest.raises(SystemExit, match="size=32 is smaller than crop_size"):
        genstab(monkeypatch, "train", "-m", *options, "data.crop_size=64,32", "hydra.sweep.dir=sweep")
    assert Path("sweep/1/summary.json").is_file()


def test_unknown_command_and_usage(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="'trian' is not one of train"):
        genstab(monkeypatch, "trian")
    genstab(monkeypatch)
    assert "usage: genstab COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["-h"], ["train", "--help"]])
def test_a_reader_that_has_read_enough_is_no_error(monkeypatch, words):
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as output:
        os.close(reading)
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(SystemExit, match="141"):
            genstab(monkeypatch, *words)


def test_help_has_examples_and_every_group(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["genstab", "--help"])
    cli.train()
    printed = capsys.readouterr().out
    assert "genstab train data=paired data.root=DIR" in printed
    for group in (
        "antialias: bin4, bin5, bin6, bin7, ideal, kaiser, none, polyphase, polyphase_tri3, rect2, stable, tri3",
        "trainer: cpu, ddp, ddp_cpu, default, gpu",
    ):
        assert group in printed


def test_a_run_leaves_what_the_readme_lists(monkeypatch):
    genstab(monkeypatch, "train", *PLAIN)
    found = {str(path.relative_to("run")) for path in Path("run").rglob("*") if path.is_file()}
    assert {
        "summary.json", "samples.png", "shift_map.png", "shift.gif", "checkpoints/last.ckpt", "checkpoints/best.ckpt",
        "measurements.json", "slide_source.webp", "slide_output.webp",
        ".hydra/config.yaml", ".hydra/overrides.yaml", "csv/metrics.csv",
    } <= found  # fmt: skip
    assert len([name for name in found if name.endswith(".ckpt")]) == 2


def test_the_wheel_works_outside_the_checkout(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("genstab-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    packed = {
        path.relative_to(tmp_path / "site" / "genstab").as_posix() for path in (tmp_path / "site").rglob("*.yaml")
    }
    assert packed == {path.relative_to(ROOT).as_posix() for path in (ROOT / "conf").rglob("*.yaml")}
    assert all(
        (tmp_path / "site" / "genstab" / "report" / f"page.{end}").is_file() for end in ("html.jinja", "css", "js")
    )
    # first on the path, so that the checkout's own package is not what runs
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    program = "import sys; from genstab.cli import main as cli; print(cli.CONF); sys.argv[1:1] = ['train']; cli.main()"
    arguments = [*TINY_SYNTHETIC, "logger=csv", f"hydra.run.dir={tmp_path}/run"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "site" / "genstab" / "conf") in done.stdout
    assert (tmp_path / "run" / "summary.json").is_file()
