"""The commands beside `train`: a run is measured, compared and read back; bad input is one line."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from genstab import UNet
from genstab.cli import main as cli
from tests.cli.test_config import TINY_SYNTHETIC
from tests.helpers.wandb_file import finish, read_history, run_file

pytestmark = pytest.mark.slow
PLAIN = ["hydra/job_logging=none", "hydra/hydra_logging=none", "logger=csv"]
SMALL = [
    "map.reach=1", "features.reach=1", "features.images=1", "corruptions.names=[contrast]", "corruptions.images=1",
    "shifts=[[0,1],[2,1]]", "margin=2",
]  # fmt: skip
ALONE = ["map=null", "features=null", "corruptions=null", "shifts=[[0,1]]", "margin=2"]
IMAGES = ["data.val_images=2", "data.size=32", "data.crop_size=32"]
NETWORK = ["model._target_=genstab.UNet", "model.channels=2", "model.levels=3"]


def genstab(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["genstab", *arguments])
    cli.main()


def summary(folder):
    return json.loads(Path(folder, "summary.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a tiny run."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.chdir(folder.parent)
        genstab(context, "train", *PLAIN, *TINY_SYNTHETIC, f"hydra.run.dir={folder}")
    return folder


def test_a_measurement_gives_the_numbers_of_the_training(trained, monkeypatch):
    options = [*ALONE[1:], "map.reach=1"]
    genstab(monkeypatch, "measure", *PLAIN, *IMAGES, *options, f"model.checkpoint={trained}", "hydra.run.dir=measured")
    before, after = summary(trained), summary("measured")
    keys = [key for key in before if key.startswith("val/")]
    assert {"val/shift_psnr", "val/shift_psnr_crop", "val/l1", "val/psnr", "val/ssim", "val/tv"} <= set(keys)
    for key in keys:
        assert after[key] == pytest.approx(before[key], rel=1e-5), key
    assert after["config"]["antialias"]["filter"] == before["config"]["antialias"]["filter"] == "tri3"
    assert after["config"]["run_name"] == "tiny"
    for part in ("shift_psnr", "shift_map"):
        assert json.loads((trained / "measurements.json").read_text())[part]
        assert json.loads(Path("measured/measurements.json").read_text())[part]


def test_a_run_and_its_measurement_are_compared_on_one_page(trained, monkeypatch, capsys):
    shutil.copytree(trained, "it's a run, lr=1")
    outputs = "output=both.html", "table=new/table.md", "plot=plot.png", "film=film.gif"
    genstab(monkeypatch, "report", str(trained), "it's a run, lr=1", *outputs, "title=Two runs: a, b [c]")
    assert Path("new/table.md").read_text().splitlines()[2].startswith("| tri3-pre (tiny) | 2 |")  # a copy counts
    with Image.open("plot.png") as plot:
        assert plot.size == (1200, 520)
    with Image.open("film.gif") as film:
        assert film.n_frames == 16
    genstab(monkeypatch, "report", str(trained), "it's a run, lr=1", *outputs, "title=Two runs: a, b [c]")  # again
    for output in outputs:  # but never what somebody else made
        path = Path(output.partition("=")[2])
        kept = path.read_bytes()
        path.write_bytes(mine := b"mine: " + kept)  # which quotes it
        with pytest.raises(SystemExit, match=rf"{output} exists already: name another file"):
            genstab(monkeypatch, "report", str(trained), *outputs)
        assert path.read_bytes() == mine
        path.write_bytes(kept)
    with pytest.raises(SystemExit, match=r"table=both\.html is output, too: give each a file of its own"):
        genstab(monkeypatch, "report", str(trained), "output=both.html", "table=both.html")
    page = Path("both.html").read_text()
    assert "<title>Two runs: a, b [c]" in page
    assert "tiny" in page
    assert "Page: both.html" in capsys.readouterr().out
    assert sorted(path.name for path in Path().iterdir()) == [
        "both.html",
        "film.gif",
        "it's a run, lr=1",
        "new",
        "plot.png",
    ]


def test_a_network_of_ones_own_is_measured_with_its_weights_and_logged_under_the_keys_of_a_training(monkeypatch):
    torch.manual_seed(0)
    save_file(UNet(channels=2, levels=3).state_dict(), "weights.safetensors")
    options = [*PLAIN[:2], *IMAGES, *NETWORK]
    genstab(monkeypatch, "measure", *options, *SMALL, "model.checkpoint=weights.safetensors", "hydra.run.dir=a")
    finish()
    logged = {key for row in read_history(run_file(Path("a"))) for key in row}
    assert logged >= {f"val/shift_psnr{end}" for end in ("", "_worst", "_pooled", "_crop")} | {"val/l1", "val/tv"}
    assert logged >= {"per_shift", "per_image", "corruptions", "features", "samples", "shift_map", "shift_film"}
    options.append("logger=csv")
    genstab(monkeypatch, "measure", *options, *ALONE, *SMALL[-2:], "hydra.run.dir=b")  # other, random weights
    assert summary("a")["config"]["run_name"] == "weights"
    assert summary("a")["parameters"] == summary("b")["parameters"] > 0
    assert summary("a")["val/shift_psnr"] != summary("b")["val/shift_psnr"]
    assert {path.name for path in Path("a").iterdir() if path.is_file()} >= {
        "summary.json", "measurements.json", "report.html", "samples.png", "shift_map.png", "shift.gif",
        "features.png", "corruptions.png", "slide_source.webp", "slide_output.webp",
    }  # fmt: skip
    baseline = ["model.checkpoint=weights.safetensors", "corruptions.baseline=a", "map=null", "features=null"]
    genstab(monkeypatch, "measure", *options, *SMALL[3:], *baseline, "hydra.run.dir=c")
    assert summary("c")["val/corruption_relative"] == pytest.approx(1)


def test_a_folder_of_images_has_no_targets(monkeypatch):
    Path("images").mkdir()
    for i, size in enumerate(((40, 32), (40, 32), (33, 47))):
        Image.effect_noise(size, 60).convert("RGB").save(f"images/{i}.png")
    Path("images/3.png").write_bytes(b"no image")
    options = [*PLAIN, *ALONE, *NETWORK, "data=folder", "data.root=images", "hydra.run.dir=out"]
    with pytest.raises(SystemExit, match=r"genstab: cannot read .*3\.png.*on_error=skip"):
        genstab(monkeypatch, "measure", *options)
    genstab(monkeypatch, "measure", *options, "on_error=skip")
    found = summary("out")
    assert found["images"] == 3
    assert "val/l1" not in found
    assert any("3.png" in note for note in found["notes"])


def test_pairs_are_measured_without_a_training_split_and_a_damaged_one_is_skipped(monkeypatch):
    for side in "AB":
        Path(f"pairs/test{side}").mkdir(parents=True)
        for i in range(2):
            Image.effect_noise((40, 32), 60).convert("RGB").save(f"pairs/test{side}/{i}.png")
    Path("pairs/testA/1.png").write_bytes(b"")
    options = [*PLAIN, *ALONE, *NETWORK, "data=paired", "data.root=pairs", "data.load_size=null", "hydra.run.dir=out"]
    with pytest.raises(SystemExit, match=r"genstab: cannot read .*testA/1\.png"):
        genstab(monkeypatch, "measure", *options)
    genstab(monkeypatch, "measure", *options, "on_error=skip")
    assert (summary("out")["images"], "val/l1" in summary("out")) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["measure"], "no model: set model.checkpoint"),
        (["measure", "model.checkpoint=nowhere.pth"], "nowhere.pth does not exist"),
        (
            ["measure", *NETWORK, "protocols=[roll]"],
            "protocols='roll' is not one of circular, crop, crop_edge, fractional",
        ),
        (["measure", *NETWORK, "map.reach=0"], r"map\.reach=0 is not an integer"),
        (["measure", *NETWORK, "device=cuda:9"], "this machine has . CUDA devices"),
        (["measure", *NETWORK, "device=tpu"], "device='tpu' is not one of auto, cpu, mps, cuda"),
        (["measure", *NETWORK, "data=folder", "data.root=nowhere"], "nowhere does not exist"),
        (["measure", *NETWORK, "data=folder", "data.root=."], "has no images"),
        (["measure", *NETWORK, "logger=null"], "remove a group with ~, as in ~logger"),
        (
            ["measure", *NETWORK, "imags=3"],
            r"Could not override 'imags': did you mean images\? \(To append .*\+imags=3; --help lists all",
        ),
        (["measure", *NETWORK, "value_range=1"], r"value_range=1 is not a list"),
        (["measure", *NETWORK, "output_dir=/dev/null/x"], "output_dir=/dev/null/x cannot be written: Not a directory"),
        (["measure", *NETWORK, "hydra.run.dir=/dev/null/x"], "cannot make /dev/null/x: Not a directory .hydra.run.dir"),
        (["report"], "name at least one folder of a run"),
        (["report", "nowhere"], "nowhere does not exist"),
        (["report", "nowhere", "costs=none.json"], "cannot read none.json: "),
        (["workspace"], "entity is missing: add entity=NAME"),
        (["mesure"], "'mesure' is not one of train, measure, predict, .*, workspace; did you mean measure"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, arguments, message):
    plain = PLAIN[:2] if arguments[0] == "measure" else []
    with pytest.raises(SystemExit, match=f"genstab: .*{message}") as error:
        genstab(monkeypatch, *arguments, *plain)
    assert "\n" not in str(error.value)


def test_every_bad_job_of_a_sweep_is_named_and_the_report_says_what_it_leaves_out(trained, monkeypatch, capsys):
    options = [*PLAIN, *IMAGES, *ALONE, "hydra.sweep.dir=sweep"]
    with pytest.raises(SystemExit, match=r"genstab: checkpoint b\.pt does not exist"):
        genstab(monkeypatch, "measure", "-m", *options, f"model.checkpoint=a.pt,{trained},b.pt")
    assert "genstab: checkpoint a.pt does not exist\n" in capsys.readouterr().err
    genstab(monkeypatch, "report", "sweep")
    assert "left out, without a summary.json: sweep/0, sweep/2\n" in capsys.readouterr().err


def test_ctrl_c_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("genstab.cli.jobs.measure", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(SystemExit, match="130"):
        genstab(monkeypatch, "measure", *PLAIN, *IMAGES, *NETWORK)
    assert capsys.readouterr().err.endswith("genstab: stopped\n")


def test_a_pickle_that_is_no_weights_is_refused(monkeypatch):
    torch.save({"generator": print}, "evil.pth")
    with pytest.raises(SystemExit, match=r"genstab: .*evil\.pth"):
        genstab(monkeypatch, "measure", *PLAIN[:2], "model.checkpoint=evil.pth")


def test_help_lists_the_groups_that_a_command_has_and_its_options_with_their_meanings(monkeypatch, capsys):
    genstab(monkeypatch, "measure", "data=paired", "images=8", "--help")
    printed = capsys.readouterr().out
    for line in (
        "images: 8  # the first images of the validation set; null: all",
        "  val_seed: 0  # another seed holds out other pairs",  # of data=paired
        "map:  # null: none",
        "fractional_shifts: [[0, 0.25], [0, 0.5], [0, 0.75], [0.5, 0.5]]",
    ):
        assert f"\n{line}\n" in printed
    assert "experiment" not in printed  # which only genstab train has
    for group in ("data", "logger"):
        assert f"{group}: {', '.join(sorted(path.stem for path in (cli.CONF / group).glob('*.yaml')))}\n" in printed


@pytest.mark.parametrize(
    ("left", "arguments", "message"),
    [
        ("checkpoints/last.ckpt", ["measure", "hydra.run.dir=runs/0"], "checkpoints, .hydra that may be of others"),
        ("samples.png", ["measure", "-m", "hydra.sweep.dir=runs", "seed=1"], "samples.png, .hydra that may be of"),
        ("checkpoints/best.ckpt", ["train", "hydra.run.dir=runs/0"], "checkpoints, .hydra that may be of others"),
        ("report.html", ["train", "hydra.run.dir=runs/0", "ckpt_path=last"], "report.html, .hydra that may be"),
        ("summary.json", ["train", "-m", "hydra.sweep.dir=runs", "seed=1"], "summary.json, .hydra that may be of"),
    ],
)
def test_a_folder_of_other_results_is_refused_before_anything_in_it_is_replaced(monkeypatch, left, arguments, message):
    files = [Path("runs/0", name) for name in (left, ".hydra/config.yaml")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    with pytest.raises(SystemExit, match=f"^genstab: \\S*runs/0 already holds {re.escape(message)}"):
        genstab(monkeypatch, *arguments)
    assert {file.read_text() for file in files} == {"mine"}
    logs = {f"{arguments[0]}.log", "multirun.yaml", ".lock"}
    left_there = {path.name for path in Path("runs").rglob("*") if path.is_file()}
    assert left_there - logs == {path.name for path in files} - logs
