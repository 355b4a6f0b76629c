"""Keep the config of a job in its folder, as Hydra does, but only once the folder is known to be free for it."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from genstab.runtime.files import writing
from genstab.runtime.run_folder import alone_in, check_free

FOLDER = ".hydra"


def claim(config: DictConfig, kind: str, checkpoint: Path | None = None, ended: Collection[Path] = ()) -> None:
    """Refuse the folder of others (see `check_free`); leave the config in a new one, by which a failed job is known.

    The config of an earlier run of the same folder stays until `keep_config` replaces it.
    """
    check_free(config.output_dir, kind, checkpoint, ended)
    if HydraConfig.initialized() and not Path(config.output_dir, FOLDER).exists():
        with writing("output_dir", config.output_dir), alone_in(config.output_dir, kind):
            keep_config(config)


def keep_config(config: DictConfig) -> None:
    """Write `.hydra/` into the folder of a job that Hydra started.

    Hydra itself (`hydra.output_subdir`) would do it before the job can refuse the folder of another run.
    """
    if HydraConfig.initialized():
        hydra: Any = HydraConfig.instance().cfg
        folder = Path(config.output_dir, FOLDER)
        kept = {"config": config, "hydra": hydra, "overrides": hydra.hydra.overrides.task}
        with writing("output_dir", config.output_dir):
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in kept.items():
                OmegaConf.save(content, folder / f"{name}.yaml")
