"""The numbers of the READMEs are what the stored summaries of their runs say."""

import copy
import json
import re
from collections import defaultdict
from itertools import product
from pathlib import Path
from statistics import mean, stdev

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from genstab.evaluation.verdict import verdict
from genstab.metrics.registry import metrics
from genstab.report.runs import read_runs
from genstab.report.seeds import options_among, options_table, read_costs
from genstab.report.table import results_table
from genstab.runtime.files import read_json

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
FIRST_PAGE, EVIDENCE, BENCH = (
    (ROOT / path / "README.md").read_text(encoding="utf-8") for path in (".", "genstab/training", "genstab/bench")
)
WORDS = " ".join(EVIDENCE.split())
RUNS = read_runs([RESULTS / "facades_small"])
OPTIONS = {option.name: option for option in options_among(RUNS, read_costs(RESULTS / "step.json"))}


def of_seed(key):
    """Return {option: {seed: value}}."""
    found = defaultdict(dict)
    for name, option in OPTIONS.items():
        for run in option.runs:
            found[name][run.config["seed"]] = run.summary[key]
    return found


def all_but_the_option(config):
    """Return a run's configuration without its seed, its names and what its option sets."""
    config = copy.deepcopy(dict(config))
    for key in ("seed", "run_name", "run_prefix", "output_dir", "antialias", "ckpt_path"):
        config.pop(key, None)
    for key in ("antialias", "head"):
        config["model"]["generator"].pop(key)
    for key in ("equivariance_weight", "detail_weight"):
        config["model"].pop(key)
    config["data"].pop("twin_reach")
    return config


def test_the_table_of_all_options_is_made_of_the_stored_runs():
    assert options_table(list(OPTIONS.values())) in EVIDENCE


def test_the_five_rows_of_the_first_page_are_made_of_the_stored_runs():
    rows = {
        "`none` (plain pix2pix)": "none-pre",
        "`tri3` (the default)": "tri3-pre",
        "`bin7`, `post`": "bin7-post",
        "`polyphase`": "polyphase-none-pre",
        "`stable`": "stable-tri3-pre",
    }
    digits = {"shift_psnr_crop": 1, "shift_psnr": 1, "shift_psnr_fractional": 1, "psnr": 2, "ssim": 3, "swd": 0}
    for label, name in rows.items():
        option = OPTIONS[name]
        cells = [
            f"{option.mean(f'val/{key}'):.{digit}f} ± {option.spread(f'val/{key}'):.{digit}f}"
            for key, digit in digits.items()
        ]
        cells.insert(5, f"{100 * option.mean('val/tv') / option.mean('val/tv_target'):.0f} %")
        assert f"| {label} | {' | '.join(cells)} | {option.cost:.2f} × |" in FIRST_PAGE
    gain = OPTIONS["stable-tri3-pre"].mean("val/shift_psnr_crop") - OPTIONS["none-pre"].mean("val/shift_psnr_crop")
    assert f"`stable` gains {gain:.0f} dB when the camera moves" in FIRST_PAGE
    assert f"[All {len(OPTIONS)} options, " in FIRST_PAGE


@pytest.mark.parametrize("page", [".", "genstab/evaluation"])
def test_the_output_that_a_page_shows_is_what_is_printed(page):
    text = (ROOT / page / "README.md").read_text(encoding="utf-8")
    block, title, table = re.search(
        r"^```\n( +(\d+ \w+ in \d+ s)\n(┌.+?┘)\n.+?)^```$", text, re.MULTILINE | re.DOTALL
    ).groups()
    keys = {metric.name: key for key, metric in metrics().items()}
    rows = [line.split("│")[1:3] for line in table.splitlines() if line.startswith("│")]
    numbers = {keys[name.strip()]: float(value) for name, value in rows}
    if period := re.search(r"multiples of (\d+) pixels", block):
        numbers["val/shift_period"] = float(period[1])
    console = Console(width=120)
    with console.capture() as printed:
        console.print(results_table(numbers, title))
    lines = [line.rstrip() for line in printed.get().splitlines()]
    # the table has two digits of numbers that the verdict rounds to one
    judged = [f"val/shift_psnr_{name}_worst_shift" for name in ("crop", "crop_edge")]
    rests = product((-0.004, 0.004), repeat=len(judged))
    verdicts = [
        verdict(numbers | {key: numbers[key] + by for key, by in zip(judged, each, strict=True)}) for each in rests
    ]
    assert block.splitlines() in [lines + sentences for sentences in verdicts]


def test_every_run_is_of_the_same_training():
    assert {run.summary["steps"] for run in RUNS} == {1000}
    assert {run.config["data"]["crop_size"] for run in RUNS} == {128}
    assert len({run.summary["val/tv_target"] for run in RUNS}) == 1  # the same held-out images
    assert len({json.dumps(all_but_the_option(run.config), sort_keys=True) for run in RUNS}) == 1
    for option in OPTIONS.values():
        assert len({run.config["seed"] for run in option.runs}) == len(option.runs)


def test_every_option_is_stabler_than_none_with_every_seed():
    for key in ("val/shift_psnr", "val/shift_psnr_crop"):
        values = of_seed(key)
        none = values.pop("none-pre")
        for option, by_seed in values.items():
            for seed, value in by_seed.items():
                assert value > max(none.values()), (option, seed, key)


def test_polyphase_stays_at_the_cap():
    for option, by_seed in of_seed("val/shift_psnr").items():
        if option.startswith("polyphase"):
            assert min(by_seed.values()) >= 99.99


def test_what_is_written_of_stable():
    stable, none = OPTIONS["stable-tri3-pre"], OPTIONS["none-pre"]
    gain = {
        key: stable.mean(f"val/{key}") - none.mean(f"val/{key}")
        for key in ("shift_psnr", "shift_psnr_crop", "shift_psnr_fractional", "l1")
    }
    assert f"gains {gain['shift_psnr_crop']:.0f} dB when the camera moves**" in WORDS
    assert f"and {gain['shift_psnr_fractional']:.0f} dB at subpixel shifts" in WORDS
    assert f"When the image is rolled around, the gain is {gain['shift_psnr']:.0f} dB" in WORDS
    assert f"The price is {100 * gain['l1'] / none.mean('val/l1'):.0f} % of L1" in WORDS
    assert f"a step that takes {stable.cost:.2f} times as long" in WORDS
    target = none.mean("val/tv_target")
    assert f"have {100 * stable.mean('val/tv') / target:.0f} % of the photos' total variation" in WORDS
    swd = {option: of_seed("val/swd")[option] for option in ("stable-tri3-pre", "none-pre")}
    written = [f"{mean(values.values()):.0f} ± {stdev(values.values()):.0f}" for values in swd.values()]
    assert "sliced Wasserstein distance {} where `none` has {}".format(*written) in WORDS
    crop = of_seed("val/shift_psnr_crop")
    gains = [round(crop["stable-tri3-pre"][seed] - crop["none-pre"][seed]) for seed in (1, 2, 3)]
    assert "({}, {} and {} with seeds 1, 2, 3, against `none`".format(*gains) in WORDS


def test_the_seeds_where_stable_is_worse_are_named():
    found = {key: of_seed(f"val/{key}") for key in ("ssim", "swd")}
    worse = {
        key: [s for s in (1, 2, 3) if sign * (values["stable-tri3-pre"][s] - values["none-pre"][s]) > 0]
        for (key, values), sign in zip(found.items(), (-1, 1), strict=True)
    }
    assert worse == {"ssim": [2], "swd": [1, 3]}
    swd = [f"{found['swd']['stable-tri3-pre'][s]:.0f} against {found['swd']['none-pre'][s]:.0f}" for s in (1, 2, 3)]
    assert "{}, {} and {}".format(*swd) in WORDS
    ssim = [found["ssim"][option][2] for option in ("stable-tri3-pre", "none-pre")]
    assert f"SSIM is lower by {ssim[1] - ssim[0]:.4f} with seed 2" in WORDS


def test_stable_reaches_its_aim():
    stable, none = OPTIONS["stable-tri3-pre"], OPTIONS["none-pre"]
    crop = of_seed("val/shift_psnr_crop")
    assert min(crop["stable-tri3-pre"][seed] - crop["none-pre"][seed] for seed in (1, 2, 3)) >= 18
    assert stable.mean("val/ssim") >= none.mean("val/ssim")
    assert stable.mean("val/swd") <= none.mean("val/swd")
    assert stable.mean("val/spectrum_error") <= none.mean("val/spectrum_error")
    target = none.mean("val/tv_target")
    assert abs(stable.mean("val/tv") - target) <= abs(none.mean("val/tv") - target)
    assert stable.cost <= 1.1
    steps = {result["contestant"]: result["times"]["step"] for result in read_json(RESULTS / "step.json")["results"]}
    assert "(quartiles {:.2f} and {:.2f})".format(*steps["stable"]["ratio_quartiles"]["none"]) in WORDS
    full = [
        line.split("|")[4].strip() for line in BENCH.splitlines() if line.startswith(("| 1 | stable", "| 4 | stable"))
    ]
    assert "({:.2f} to {:.2f} at full size,".format(*map(float, full)) in WORDS


def test_what_each_part_of_stable_does():
    runs = {run.folder.name: run for run in read_runs([RESULTS / "parts"])}
    changes = {
        "notwins": {"data.twin_reach": 0, "model.equivariance_weight": 0},
        "head0": {"model.generator.head": 0},
        "detail0": {"model.detail_weight": 0},
        "bin7": {"antialias.filter": "bin7"},
        "none-twins": {"data.twin_reach": 8, "model.equivariance_weight": 60},
    }
    assert runs.keys() == changes.keys()
    stored = {run.name: run for run in RUNS}
    stable, plain = stored["stable-tri3-pre-seed1"], stored["none-pre-seed1"]
    for name, run in runs.items():
        change, start = changes[name], plain if name == "none-twins" else stable
        expected = OmegaConf.create(copy.deepcopy(dict(start.config)))
        for key, value in change.items():
            OmegaConf.update(expected, key, value)
        expected.model.generator.antialias = expected.antialias  # as ${antialias} does
        for key in ("output_dir", "run_name"):
            expected[key] = run.config[key]
        assert OmegaConf.to_container(expected) == run.config, name
        start_name = "none" if name == "none-twins" else "stable"
        overrides = (f"{key}={value}" for key, value in change.items())
        # the runs are older than the key's name
        row = " ".join([f"antialias={start_name}", *overrides]).replace("twin_reach", "overlap_offset")
        assert f"\n| `{row}` | {numbers(run)} |\n" in EVIDENCE, name
    for option in ("stable-tri3", "tri3", "none"):
        run, label = stored[f"{option}-pre-seed1"], option.partition("-")[0]
        assert f"\n| `antialias={label}` | {numbers(run)} |\n" in EVIDENCE, option
    gained = {name: run.summary["val/shift_psnr_crop"] for name, run in runs.items()}
    whole, none = (run.summary["val/shift_psnr_crop"] for run in (stable, plain))
    swd = [round(run.summary["val/swd"]) for run in (runs["notwins"], stable)]
    assert (
        f"The overlapping crops add {whole - gained['notwins']:.0f} dB, "
        f"at a sliced Wasserstein distance of {swd[1]} instead of {swd[0]}" in WORDS
    )
    assert f"on a plain network, they add {gained['none-twins'] - none:.0f} dB, but by blurring" in WORDS
    assert f"A wider blur adds {gained['bin7'] - whole:.0f} dB" in WORDS


def numbers(run):
    digits = {"shift_psnr_crop": 1, "shift_psnr_fractional": 1, "ssim": 3, "tv": 3, "spectrum_error": 1, "swd": 1}
    assert (run.config["seed"], run.summary["steps"]) == (1, 1000)
    return " | ".join(f"{run.summary[f'val/{key}']:.{digit}f}" for key, digit in digits.items())
