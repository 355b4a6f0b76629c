"""Keep the config of a job in its folder, as Hydra does, but only once the folder is known to be free for it."""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from genstab.runtime.files import writing


def keep_config(config: DictConfig) -> None:
    """Write `.hydra/` into the folder of a job that Hydra started.

    Hydra itself (`hydra.output_subdir`) would do it before the job can refuse the folder of another run.
    """
    if HydraConfig.initialized():
        hydra: Any = HydraConfig.instance().cfg
        folder = Path(config.output_dir, ".hydra")
        kept = {"config": config, "hydra": hydra, "overrides": hydra.hydra.overrides.task}
        with writing("output_dir", config.output_dir):
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in kept.items():
                OmegaConf.save(content, folder / f"{name}.yaml")
