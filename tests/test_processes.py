"""Several processes: the same metrics, one run folder and one W&B run a job."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from pytorch_lightning import Trainer

from genstab import FeatureDistance, ShiftConsistency
from tests.conftest import pairs_loader, tiny_pix2pix
from tests.metrics_on_two import measure
from tests.test_config import TINY_SYNTHETIC, composed
from tests.test_pix2pix import QUIET

ROOT = Path(__file__).parents[1]


def program(*arguments):
    """Run a script of the checkout as a user would; return what it printed."""
    environment = {key: value for key, value in os.environ.items() if key not in ("LOCAL_RANK", "PL_GLOBAL_SEED")}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture
def checkpoint(tmp_path):
    """A few steps of training: statistics and weights that are nobody's default."""
    trainer = Trainer(max_steps=4, **QUIET)
    trainer.fit(tiny_pix2pix(), pairs_loader(8, 2))
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    return tmp_path / "some.ckpt"


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize(("images", "batch_size"), [(53, 4), (53, 7), (1, 2)])
def test_two_processes_measure_what_one_does(tmp_path, checkpoint, images, batch_size):
    results = {}
    for devices in (1, 2):
        out = tmp_path / str(devices)
        program(ROOT / "tests" / "validate_on_two.py", devices, batch_size, checkpoint, images, out)
        results[devices] = [json.loads(Path(f"{out}.{rank}").read_text()) for rank in range(devices)]
    [one], [two, other] = results[1], results[2]
    assert {"val/l1", "val/ssim", "val/shift_psnr", "val/shift_psnr_worst", "val/shift_psnr_crop"} <= set(
        one["metrics"]
    )
    assert two["metrics"] == pytest.approx(one["metrics"], abs=1e-4)
    assert two == other
    assert one["names"] == two["names"] == [f"{index}.png" for index in range(images)]
    for protocol in ("circular", "crop", "fractional"):
        for key, shape in (("tables", (4 if protocol == "fractional" else 2, images)), ("pooled", None)):
            expected, found = (torch.tensor(result[key][protocol]) for result in (one, two))
            assert key == "pooled" or found.shape == shape
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.ddp
@pytest.mark.slow
def test_metrics_with_uneven_shares_on_two_processes(tmp_path):
    metrics = (FeatureDistance(), ShiftConsistency())
    measure(0, 8, metrics)
    program(ROOT / "tests" / "metrics_on_two.py", tmp_path / "values")
    for rank in (0, 1):
        values = json.loads((tmp_path / f"values.{rank}").read_text())
        assert values == pytest.approx([metric.compute().item() for metric in metrics], abs=1e-6)


def folders(path, pattern):
    return sorted(str(found.relative_to(path)) for found in path.glob(pattern))


@pytest.mark.ddp
@pytest.mark.slow
def test_a_sweep_on_two_processes_makes_one_folder_and_one_wandb_run_a_job(tmp_path):
    program(
        ROOT / "train.py", "-m", "antialias=none,tri3", "trainer=ddp_cpu", f"hydra.sweep.dir={tmp_path}/sweep",
        *TINY_SYNTHETIC, "data.val_images=3",
    )  # fmt: skip
    assert folders(tmp_path, "*") == ["sweep"]
    assert folders(tmp_path / "sweep", "*/summary.json") == ["0/summary.json", "1/summary.json"]
    for job, filter in (("0", "none"), ("1", "tri3")):
        folder = tmp_path / "sweep" / job
        assert len(folders(folder, "wandb/offline-run-*")) == 1
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["processes"] == 2
        assert summary["steps"] == 1  # four images, two processes with batches of four: two each
        assert summary["config"]["antialias"]["filter"] == filter

        # on one process the weights that they trained together give the numbers that they logged together
        config = composed(folder, f"antialias={filter}", *TINY_SYNTHETIC, "data.val_images=3")
        model = instantiate(config.model)
        model.load_state_dict(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])
        trainer = Trainer(callbacks=[instantiate(config.callbacks.stability)], **QUIET)
        trainer.validate(model, datamodule=instantiate(config.data), verbose=False)
        for key, value in trainer.callback_metrics.items():
            assert summary[key] == pytest.approx(value.item(), abs=1e-4), key


@pytest.mark.ddp
@pytest.mark.slow
def test_the_installed_command_starts_several_processes_too(tmp_path):
    options = ["train", "trainer=ddp_cpu", "logger=csv", f"hydra.run.dir={tmp_path}/run", *TINY_SYNTHETIC]
    program("-m", "genstab.cli", *options)
    assert folders(tmp_path, "*") == ["run"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["processes"] == 2


@pytest.mark.slow
def test_six_jobs_of_a_sweep(tmp_path):
    program(
        ROOT / "train.py", "-m", "antialias=none,tri3,bin5", "antialias.placement=pre,post",
        f"hydra.sweep.dir={tmp_path}/sweep", *TINY_SYNTHETIC,
    )  # fmt: skip
    assert folders(tmp_path, "*") == ["sweep"]
    summaries = [json.loads((tmp_path / "sweep" / str(job) / "summary.json").read_text()) for job in range(6)]
    chosen = [(s["config"]["antialias"]["filter"], s["config"]["antialias"]["placement"]) for s in summaries]
    assert chosen == [(filter, placement) for filter in ("none", "tri3", "bin5") for placement in ("pre", "post")]
    assert len(folders(tmp_path / "sweep", "*/wandb/offline-run-*/run-*.wandb")) == 6
    assert torch.load(tmp_path / "sweep" / "3" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 1
