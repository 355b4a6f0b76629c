"""Tests of the loggers; each W&B run is real, in its own folder, with no login and no network."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
import yaml
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.logger import DummyLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from genstab.errors import InputError
from genstab.loggers import wandb as wandb_log
from genstab.loggers.lifecycle import how_to_view
from genstab.loggers.media import log_image, log_video
from genstab.loggers.wandb import STEP, wandb_logger
from genstab.metrics.registry import best_ends
from tests.helpers.wandb_file import finish, read_config, read_history, read_summary, run_file

IMAGE = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
KEY = "a" * 40


pytestmark = pytest.mark.usefixtures("nobody")


@pytest.fixture
def gif(tmp_path: Path) -> Path:
    path = tmp_path / "shift.gif"
    frames = [Image.fromarray(IMAGE), Image.fromarray(IMAGE[::-1].copy())]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return path


def row(path: Path, key: str) -> list[dict[str, Any]]:
    return [line for line in read_history(path) if key in line]


def test_an_offline_run_holds_metrics_pictures_and_the_best_value(tmp_path: Path, gif: Path) -> None:
    logger = wandb_logger(tmp_path, mode="offline", name="n", group="g", tags=["t"])
    logger.log_hyperparams({"lr": 0.5, "a": {"b": 1}})
    for step, (psnr, l1) in enumerate([(20.0, 0.3), (30.0, 0.1), (25.0, 0.2)]):
        logger.log_metrics({"val/psnr": psnr, "val/l1": l1, "val/tv": psnr}, step=10 * step)
        log_image(logger, "val/samples", IMAGE, step=10 * step, caption="three")
    log_video(logger, "val/shift", gif, step=20)
    run = logger.experiment
    assert (run.name, run.group, run.tags, run.project) == ("n", "g", ("t",), "genstab")
    assert (run.settings.init_timeout, run.settings.finish_timeout) == (10, 120)
    finish()

    path = run_file(tmp_path)
    metrics, pictures = row(path, "val/psnr"), row(path, "val/samples")
    assert [line["val/psnr"] for line in metrics] == [20, 30, 25]
    assert [line[STEP] for line in metrics] == [line[STEP] for line in pictures] == [0, 10, 20]
    assert pictures[0]["val/samples"]["captions"] == ["three"]
    (file,) = pictures[0]["val/samples"]["filenames"]
    with Image.open(path.parent / "files" / file) as image:
        assert np.array_equal(np.asarray(image), IMAGE)
    (video,) = row(path, "val/shift")
    assert video[STEP] == 20
    copy = path.parent / "files" / video["val/shift"]["videos"][0]["path"]
    assert copy.read_bytes() == gif.read_bytes()
    summary = read_summary(path)
    assert summary["val/psnr"] == {"max": 30, "last": 25}
    assert summary["val/l1"] == {"min": 0.1, "last": 0.2}
    assert summary["val/tv"] == 25
    config = read_config(path)
    assert (config["a"], config["lr"]) == ({"b": 1}, 0.5)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 5, 3), (5, 1, 3)])
def test_a_thin_picture_keeps_its_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    logger = wandb_logger(tmp_path, mode="offline")
    log_image(logger, "picture", np.ones(shape, np.uint8), step=0)
    finish()
    path = run_file(tmp_path)
    (line,) = row(path, "picture")
    with Image.open(path.parent / "files" / line["picture"]["filenames"][0]) as image:
        assert np.array_equal(np.asarray(image), np.ones(shape, np.uint8))


@pytest.mark.parametrize(
    ("variable", "offline", "disabled"),
    [(None, True, False), ("offline", True, False), ("dryrun", True, False), ("disabled", False, True)],
)
def test_the_environment_sets_the_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None, offline: bool, disabled: bool
) -> None:
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    run = wandb_logger(tmp_path).experiment
    assert (run.offline, run.disabled) == (offline, disabled)


@pytest.mark.parametrize("stored", ["offline", "disabled"])
def test_what_the_wandb_command_stored_sets_the_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    settings = tmp_path / "home" / "config" / "settings"
    settings.parent.mkdir()
    settings.write_text(f"[default]\nmode = {stored}\n")
    run = wandb_logger(tmp_path).experiment
    assert (run.offline, run.disabled) == (stored == "offline", stored == "disabled")


def test_a_user_is_logged_in_by_the_environment_or_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not wandb_log.logged_in()
    (tmp_path / "home" / "netrc").write_text(f"machine api.wandb.ai login user password {KEY}\n")
    assert wandb_log.logged_in()
    (tmp_path / "home" / "netrc").unlink()
    wandb.teardown()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert wandb_log.logged_in()


@pytest.mark.parametrize("mode", [None, "online"])
def test_a_dead_server_makes_the_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str | None) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    logger = wandb_logger(tmp_path, mode=mode, init_timeout=1)
    start = time.monotonic()
    with pytest.warns(
        UserWarning, match=r"^W&B cannot log online: http://127\.0\.0\.1:9: .*refused.*logged offline.*wandb sync"
    ) as warned:
        run = logger.experiment
    assert time.monotonic() - start < 8
    assert len(warned) == 1
    assert "Consider" not in str(warned[0].message)  # wandb's advice
    assert run.offline
    folder = Path(run.dir).parent
    assert str(folder) in str(warned[0].message)
    logger.log_metrics({"val/psnr": 1.0}, step=3)
    finish()
    (path,) = folder.glob("*.wandb")
    assert row(path, "val/psnr")[0][STEP] == 3


@pytest.mark.parametrize(("key", "problem"), [(None, "no API key"), ("short", r"40\+ characters")])
def test_online_without_a_valid_login_goes_offline_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str | None, problem: str
) -> None:
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    with pytest.warns(UserWarning, match=f"{problem}.*logged offline") as warned:
        run = wandb_logger(tmp_path, mode="online").experiment
    assert len(warned) == 1
    assert run.offline


def test_bad_arguments_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"^mode='on' is not one of online, offline, disabled$"):
        wandb_logger(tmp_path, mode="on")
    monkeypatch.setenv("WANDB_MODE", "on")
    with pytest.raises(InputError, match=r"^WANDB_MODE='on' is not one of"):
        wandb_logger(tmp_path)


def test_each_job_of_a_process_gets_its_own_run(tmp_path: Path) -> None:
    first = wandb_logger(tmp_path / "0", mode="offline")
    first.log_metrics({"val/psnr": 1.0}, step=0)  # and is never finished
    second = wandb_logger(tmp_path / "1", mode="offline")
    second.log_metrics({"val/psnr": 2.0}, step=0)
    finish()
    assert first.version != second.version
    for job, value in (("0", 1), ("1", 2)):
        assert [line["val/psnr"] for line in row(run_file(tmp_path / job), "val/psnr")] == [value]


def test_other_ranks_create_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gif: Path) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = wandb_logger(tmp_path / "run", mode="offline")
    assert isinstance(logger, Logger)
    logger.log_hyperparams({"lr": 1})
    logger.log_image("key", [IMAGE], step=0)
    log_image(logger, "key", IMAGE, step=0)
    log_video(logger, "key", gif, step=0)
    logger.experiment.log({"val/psnr": 1.0})
    logger.finalize("success")
    assert how_to_view(logger) is None
    assert wandb.run is None
    assert not (tmp_path / "run").exists()


def test_the_run_starts_at_first_use(tmp_path: Path) -> None:
    logger = wandb_logger(tmp_path / "run", mode="offline")
    assert how_to_view(logger) is None
    assert not (tmp_path / "run").exists()


def test_tensorboard_gets_pictures_but_no_videos(tmp_path: Path, gif: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    log_image(logger, "val/samples", IMAGE, step=7, caption="ignored")
    log_video(logger, "val/shift", gif, step=7)
    logger.experiment.close()
    events = EventAccumulator(logger.log_dir).Reload()
    assert events.Tags()["images"] == ["val/samples"]
    (event,) = events.Images("val/samples")
    assert (event.step, event.height, event.width) == (7, 2, 3)
    view = how_to_view(logger)
    assert view == f"tensorboard --logdir {logger.log_dir}"
    assert Path(logger.log_dir).is_dir()


def test_csv_gets_neither_pictures_nor_videos(tmp_path: Path, gif: Path) -> None:
    logger = CSVLogger(tmp_path)
    log_image(logger, "val/samples", IMAGE, step=0)
    log_video(logger, "val/shift", gif, step=0)
    assert not Path(logger.log_dir).exists()
    logger.log_metrics({"val/psnr": 1.0}, step=0)
    logger.save()
    view = how_to_view(logger)
    assert view is not None
    assert "val/psnr" in Path(view).read_text()


def test_an_offline_run_says_how_to_upload_it_and_to_look_at_it(tmp_path: Path) -> None:
    logger = wandb_logger(tmp_path, mode="offline")
    assert logger.experiment.offline
    finish()
    view = how_to_view(logger)
    assert view is not None
    folder = run_file(tmp_path).parent
    assert view.splitlines() == [f"wandb sync {folder}", f"wandb leet {folder}"]


def test_nothing_to_view(tmp_path: Path) -> None:
    disabled = wandb_logger(tmp_path, mode="disabled")
    disabled.log_metrics({"val/psnr": 1.0}, step=0)
    assert how_to_view(disabled) is None
    assert how_to_view(DummyLogger()) is None


def test_an_online_run_has_a_url(tmp_path: Path) -> None:
    class Run:
        id, dir, disabled, offline, url = "1", "/run-1/files", False, False, "https://wandb.ai/me/genstab/runs/1"

    view = how_to_view(WandbLogger(experiment=Run()))  # type: ignore[arg-type]
    assert view is not None
    url, again = view.splitlines()
    assert url == "https://wandb.ai/me/genstab/runs/1"
    assert again == "wandb sync --include-online /run-1  # if something is missing there"


def test_the_sweep_hands_over_hydra_overrides() -> None:
    sweep = yaml.safe_load((Path(__file__).parents[2] / "conf/wandb_sweep.yaml").read_text())
    chosen = {name: {"value": parameter["values"][0]} for name, parameter in sweep["parameters"].items()}
    overrides = create_sweep_command_args({"args": chosen})["args_no_hyphens"]
    assert overrides == ["antialias=none", "antialias.placement=pre"]
    assert sweep["command"] == ["${env}", "python", "${program}", "${args_no_hyphens}"]
    assert best_ends()[sweep["metric"]["name"]] == sweep["metric"]["goal"].removesuffix("imize")
