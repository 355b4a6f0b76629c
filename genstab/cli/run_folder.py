"""Refuse the folder of another run before Hydra writes the configuration of this job into it."""

import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from genstab.errors import InputError
from genstab.runtime.run_folder import check_measurable, check_unused

TRAINED = Path("checkpoints/last.ckpt"), Path("summary.json")


class CheckRunFolder(Callback):
    """Hydra's callback before a job: the job itself finds out only after `.hydra/config.yaml` was replaced.

    Args:
        training: the job is a training; otherwise it is a measurement.
    """

    def __init__(self, training: bool) -> None:
        self.training = training

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the folder of a single job; a training that resumes is checked by the job."""
        folder = Path(config.hydra.run.dir)
        try:
            if not self.training:
                check_measurable(folder)
            elif config.get("ckpt_path") is None:
                check_unused(folder, None, TRAINED)
        except InputError as error:
            sys.exit(f"genstab: {error}")  # Hydra turns any other error of a callback into a warning

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the folders of an earlier sweep where those of this one will lie."""
        for folder in () if self.training else sorted(Path(config.hydra.sweep.dir).glob("*/")):
            try:
                check_measurable(folder)
            except InputError as error:
                sys.exit(f"genstab: {error}")
