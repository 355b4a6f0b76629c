"""Several processes: the same metrics, one run folder and one W&B run a job."""

import json
import time
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from lightning_fabric.plugins.environments.lightning import find_free_network_port
from pytorch_lightning import Trainer

from tests.cli.test_config import TINY_SYNTHETIC, composed
from tests.conftest import pairs_loader, tiny_pix2pix
from tests.helpers import norm_on_some
from tests.helpers.commands import HELPERS, ROOT, finish, program, start
from tests.helpers.metrics_on_two import every, measure, values
from tests.helpers.train_on_some import train
from tests.helpers.validate_on_some import validate
from tests.training.test_pix2pix import QUIET


@pytest.fixture
def checkpoint(tmp_path):
    """A few steps of training: statistics and weights that are nobody's default."""
    trainer = Trainer(max_steps=4, **QUIET)
    trainer.fit(tiny_pix2pix(), pairs_loader(8, 2))
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    return tmp_path / "some.ckpt"


def on_processes(number, script, *arguments, **options):
    """Run a script by torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}"]
    return program(*torchrun, script, *arguments, **options)


VALIDATED = [(1, 2), (2, 2), (5, 2), (17, 4), (23, 7)]  # images, batch size


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_measure_what_one_does(tmp_path, checkpoint, processes):
    on_processes(
        processes,
        HELPERS / "validate_on_some.py",
        checkpoint,
        tmp_path / "of",
        json.dumps(VALIDATED),
    )
    ranks = [json.loads((tmp_path / f"of.{rank}").read_text()) for rank in range(processes)]
    assert all(results == ranks[0] for results in ranks)
    for (images, batch_size), found in zip(VALIDATED, ranks[0], strict=True):
        expected = validate(checkpoint, images, batch_size)
        assert {"val/l1", "val/psnr", "val/ssim", "val/tv", "val/shift_psnr", "val/shift_psnr_worst"} <= set(
            expected["metrics"]
        )
        assert found["metrics"] == pytest.approx(expected["metrics"], rel=1e-6)
        assert found["names"] == [f"{index}.png" for index in range(images)]
        for protocol in ("circular", "crop", "fractional"):
            for key, shape in (("tables", (4 if protocol == "fractional" else 2, images)), ("pooled", None)):
                values, others = (torch.tensor(result[key][protocol]) for result in (expected, found))
                assert key == "pooled" or others.shape == shape
                torch.testing.assert_close(others, values, rtol=1e-6, atol=0)


# 11 and 14 images end in a batch of uneven shares, or of fewer images than processes, twice or more in eight steps.
TRAINED = [
    {"images": images, "batch_size": 2, "norm": norm, "precision": precision}
    for images, norm, precision in (
        (12, "batch", "32-true"), (11, "instance", "64-true"), (11, "batch", "64-true"), (14, "batch", "64-true"),
        (14, "none", "64-true"),
    )
]  # fmt: skip
# A loader with torch's sampler, which repeats images to fill up.
TRAINED.append({**TRAINED[1], "own_loader": True})
TRAINED.append({**TRAINED[2], "offset": 5})  # overlapping crops


# 17 images end in an uneven batch that is accumulated with a full one.
TRAINED.append({**TRAINED[1], "images": 17, "accumulate": 2, "clip": 0.05})


def furthest(found, expected):
    """Return the largest difference of a weight."""
    return max((found["weights"][name] - weight).abs().max().item() for name, weight in expected["weights"].items())


def beyond(found, expected, tolerance):
    """Return how many single weights differ by more than so much."""
    pairs = ((found["weights"][name], weight) for name, weight in expected["weights"].items())
    return sum(((one - other).abs() > tolerance).sum().item() for one, other in pairs)


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_train_the_weights_of_one_with_batches_as_large_as_all_of_theirs(tmp_path, processes):
    on_processes(processes, HELPERS / "train_on_some.py", tmp_path / "of", json.dumps(TRAINED))
    ranks = [torch.load(tmp_path / f"of.{rank}", weights_only=True) for rank in range(processes)]
    for case, found, *others in zip(TRAINED, *ranks, strict=True):
        at_once = case.get("accumulate", 1)
        expected = train(**{**case, "batch_size": case["batch_size"] * processes * at_once, "accumulate": 1})
        exact = case["precision"] == "64-true"
        if exact:
            assert furthest(found, expected) < 1e-12
        else:
            # Adam makes of the rounding of a gradient that is almost zero up to a share of its step, 2e-4: that is so
            # for single weights, or one process is as far from what it would be without rounding.
            precise = train(**{**case, "batch_size": case["batch_size"] * processes, "precision": "64-true"})
            assert furthest(found, expected) < (
                2e-4 if beyond(found, expected, 1e-5) <= 3 else furthest(expected, precise)
            )
        for name, weight in found["weights"].items():
            assert all(torch.equal(other["weights"][name], weight) for other in others)
        assert all(other["losses"] == found["losses"] for other in others)
        assert len(found["losses"]) == 8
        for step, of_all in zip(expected["losses"], found["losses"], strict=True):
            shift = ["loss_g_shift"] if "offset" in case else []
            assert set(step) == {f"train/{key}" for key in ("loss_d", "loss_g", "loss_g_gan", "loss_g_l1", *shift)}
            assert of_all == pytest.approx(step, rel=1e-12 if exact else 1e-5)


@pytest.mark.ddp
@pytest.mark.slow
def test_synchronised_batch_norm_is_that_of_all_images_on_one_process(tmp_path):
    processes = 3
    program(HELPERS / "norm_on_some.py", processes, tmp_path / "of")
    ranks = [torch.load(f"{tmp_path / 'of'}.{rank}", weights_only=True) for rank in range(processes)]
    for number, case in enumerate(norm_on_some.CASES):
        outputs, gradients, buffers = norm_on_some.run(norm_on_some.network(**case), norm_on_some.images(processes))
        results = [rank[number] for rank in ranks]
        for found, expected in zip(zip(*(result[0] for result in results), strict=True), outputs, strict=True):
            torch.testing.assert_close(torch.cat(found), expected, rtol=0, atol=1e-9)
        for found, expected in zip(zip(*(result[1] for result in results), strict=True), gradients, strict=True):
            torch.testing.assert_close(sum(found), expected, rtol=1e-9, atol=1e-8)
        for result in results:
            torch.testing.assert_close(result[2], buffers, rtol=1e-9, atol=1e-9)


@pytest.mark.ddp
@pytest.mark.slow
def test_metrics_with_uneven_shares_on_two_processes(tmp_path):
    metrics = every()
    measure(0, 8, metrics)
    program(HELPERS / "metrics_on_two.py", tmp_path / "values")
    for rank in (0, 1):
        found = json.loads((tmp_path / f"values.{rank}").read_text())
        assert found == pytest.approx(values(metrics), rel=1e-5, abs=1e-6)


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
            assert summary[key] == pytest.approx(value.item(), rel=1e-6, abs=1e-4), key  # val/swd is of hundreds


@pytest.mark.ddp
@pytest.mark.slow
def test_the_installed_command_starts_several_processes_too(tmp_path):
    options = ["train", "trainer=ddp_cpu", "logger=csv", f"hydra.run.dir={tmp_path}/run", *TINY_SYNTHETIC]
    program("-m", "genstab.cli", *options, interpreter=True)
    assert folders(tmp_path, "*") == ["run"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["processes"] == 2


def slurm(*arguments, processes=2):
    """Start `train.py` as srun would on one machine; return exit code and output of each process."""
    variables = {"SLURM_NTASKS": str(processes), "SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_JOB_NAME": "train"}
    variables["MASTER_PORT"] = str(find_free_network_port())
    started = []
    for rank in range(processes):
        own = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        time.sleep(1.1 * bool(rank))  # so that each would make a folder of its own, by its own clock
        started.append(start(ROOT / "train.py", *arguments, **variables, **own))
    return [finish(process) for process in started]


@pytest.mark.ddp
@pytest.mark.slow
def test_two_nodes_by_torchrun_make_one_folder_and_one_wandb_run():
    torchrun = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"]
    torchrun += [f"--rdzv-endpoint=127.0.0.1:{find_free_network_port()}", "--local-addr=127.0.0.1", ROOT / "train.py"]
    options = ["trainer=ddp_cpu", "trainer.devices=1", "trainer.num_nodes=2", *TINY_SYNTHETIC]
    nodes = [start(*torchrun, *options) for _ in range(2)]
    for code, printed in map(finish, nodes):
        assert code == 0, printed
    (folder,) = Path("outputs").glob("*/*")
    assert folders(Path(), "**/.hydra") == [f"{folder}/.hydra"]
    assert len(folders(folder, "wandb/offline-run-*")) == 1
    assert json.loads((folder / "summary.json").read_text())["processes"] == 2


@pytest.mark.ddp
@pytest.mark.slow
def test_a_sweep_by_torchrun(tmp_path):
    sweep = ["-m", "antialias=none,tri3", "trainer=ddp_cpu", "logger=csv", f"hydra.sweep.dir={tmp_path}/sweep"]
    on_processes(2, ROOT / "train.py", *sweep, *TINY_SYNTHETIC)
    assert folders(tmp_path, "*") == ["sweep"]
    for job, filter in enumerate(("none", "tri3")):
        summary = json.loads((tmp_path / "sweep" / str(job) / "summary.json").read_text())
        assert (summary["processes"], summary["config"]["antialias"]["filter"]) == (2, filter)


@pytest.mark.ddp
@pytest.mark.slow
def test_slurm_runs_a_sweep_whose_bad_job_does_not_stop_the_others(tmp_path):
    options = [option for option in TINY_SYNTHETIC if "crop_size" not in option]
    first, other = slurm("-m", "data.crop_size=64,32,32", "trainer=ddp_cpu", *options)
    assert first[0] == other[0] == 1
    assert "size=32 is smaller than crop_size=(64, 64)" in first[1].splitlines()[-1]
    assert "genstab:" not in other[1]  # said once
    (folder,) = Path("multirun").glob("*/*")
    assert folders(folder, "*/summary.json") == ["1/summary.json", "2/summary.json"]
    assert folders(Path(), "**/.hydra") == [f"{folder}/{job}/.hydra" for job in range(3)]
    for job in "12":
        assert len(folders(folder / job, "wandb/offline-run-*")) == 1


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "SLURM started 2 processes, but trainer.devices=1 and trainer.num_nodes=1 make 1"),
        (["trainer=ddp_cpu", "antialias=tri9"], "Could not find 'antialias/tri9'"),
    ],
)
def test_what_slurm_cannot_start_is_said_once(options, message):
    first, other = slurm(*options, *TINY_SYNTHETIC)
    assert first[0] == other[0] == 1
    assert [line for line in first[1].splitlines() if message in line][-1].startswith("genstab: ")
    assert "Traceback" not in first[1]
    assert other[1].strip() == ""


@pytest.mark.slow
def test_four_jobs_of_a_sweep(tmp_path):
    program(
        ROOT / "train.py", "-m", "antialias=none,tri3", "antialias.placement=pre,post",
        f"hydra.sweep.dir={tmp_path}/sweep", *TINY_SYNTHETIC,
    )  # fmt: skip
    assert folders(tmp_path, "*") == ["sweep"]
    summaries = [json.loads((tmp_path / "sweep" / str(job) / "summary.json").read_text()) for job in range(4)]
    chosen = [(s["config"]["antialias"]["filter"], s["config"]["antialias"]["placement"]) for s in summaries]
    assert chosen == [(filter, placement) for filter in ("none", "tri3") for placement in ("pre", "post")]
    assert len(folders(tmp_path / "sweep", "*/wandb/offline-run-*/run-*.wandb")) == 4
    assert torch.load(tmp_path / "sweep" / "3" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 1
