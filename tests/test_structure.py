"""The floor plan: imports go down only, and only the commands know Hydra."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "genstab"
# A module may import those above its own line, and nothing else of the package.
FLOORS = [
    ["errors"],
    [
        "alone",
        "before",
        "consistency",
        "corruptions",
        "decoders",
        "depthwise",
        "devices",
        "download",
        "estimate",
        "filters",
        "image_writing",
        "inference",
        "launcher",
        "losses",
        "order",
        "place",
        "programs",
        "provenance",
        "random_states",
        "reading",
        "shift",
        "spectrum",
        "stopping",
        "streams",
        "surviving",
        "sync_norm",
        "synthetic",
        "twins",
        "verdict",
        "waiting",
        "wandb_service",
    ],
    [
        "fourier",
        "heat_maps",
        "images",
        "options",
        "padding",
        "perceptual",
        "protocols",
        "shard_order",
        "strategy",
        "team",
        "timing",
        "wandb_log",
        "whole_files",
    ],
    [
        "anchored_noise",
        "augment",
        "blur",
        "continued",
        "csv_log",
        "listing",
        "metrics",
        "plan",
        "report",
        "results",
        "slides",
    ],
    [
        "batches",
        "exhibits",
        "last_checkpoint",
        "layers",
        "loggers",
        "pairs",
        "polyphase",
        "predict",
        "robustness",
        "runs",
        "shards",
        "shift_table",
        "sliced_wasserstein",
    ],
    [
        "callbacks",
        "classifiers",
        "comparison",
        "data",
        "guards",
        "lost",
        "pictures",
        "pooling",
        "shard_files",
        "shares",
        "side_by_side",
        "stability",
        "unet",
        "watch",
    ],
    [
        "bench_layers",
        "charts",
        "folder",
        "patchgan",
        "pix2pix",
        "resnet",
        "shard_pairs",
        "shard_writing",
        "surgery",
        "tables",
    ],
    [
        "bench_guards",
        "bench_step",
        "bench_tables",
        "foreign",
        "hooks",
        "panels",
        "shard_data",
        "summary",
        "workspace",
    ],
    ["bench", "checkpoints", "features", "panel_maps", "seeds"],
    ["measure", "models", "page", "pareto", "resume"],
    ["publish"],
    ["__init__"],
    ["composed"],
    ["jobs", "training"],
    ["launched"],
    ["cli"],
]
FLOOR = {module: number for number, modules in enumerate(FLOORS) for module in modules}
MODULES = sorted(PACKAGE.glob("*.py"))


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            yield node.module


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_go_down(path):
    for name in imports(path):
        package, _, module = name.partition(".")
        if package == "genstab":
            assert module, f"{path.name} imports the whole package"
            assert FLOOR[module] < FLOOR[path.stem], f"{path.name} may not import {module}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_only_the_commands_know_hydra(path):
    if path.stem not in ("cli", "composed", "jobs", "launched", "training"):
        assert not {name.partition(".")[0] for name in imports(path)} & {"hydra", "omegaconf"}


def test_every_module_has_its_place_and_fits_on_a_few_pages():
    assert {path.stem for path in MODULES} == set(FLOOR)
    assert not [path.name for path in MODULES if len(path.read_text().splitlines()) > 300]
