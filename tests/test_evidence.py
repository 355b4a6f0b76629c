"""The README's table of results is what the stored summaries of its runs say."""

import copy
import json
from collections import defaultdict
from pathlib import Path

from genstab.runs import read_runs
from genstab.seeds import options_among, options_table, read_costs

RESULTS = Path(__file__).parent / "results"
README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
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
    config["model"].pop("detail_weight")
    return config


def test_the_table_in_the_readme_is_made_of_the_stored_runs():
    assert options_table(list(OPTIONS.values())) in README


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


def test_what_the_readme_says_of_stable():
    stable, none = OPTIONS["stable-bin7-pre"], OPTIONS["none-pre"]
    gain = {key: stable.mean(f"val/{key}") - none.mean(f"val/{key}") for key in ("shift_psnr_crop", "l1")}
    gain |= {
        key: stable.mean(f"val/shift_psnr{key}") - none.mean(f"val/shift_psnr{key}") for key in ("", "_fractional")
    }
    assert f"gains {gain['shift_psnr_crop']:.0f} dB when the camera moves** and {gain['_fractional']:.0f} dB" in README
    assert f"Rolled around, it gains {gain['']:.0f} dB" in README
    assert f"What it costs is {100 * gain['l1'] / none.mean('val/l1'):.0f} % of L1" in README
    assert f"a step that takes {stable.cost:.2f} times as long" in README
    target = none.mean("val/tv_target")
    assert f"have {100 * stable.mean('val/tv') / target:.0f} % of their total variation" in README
    crop, swd = of_seed("val/shift_psnr_crop"), of_seed("val/swd")
    gains = [round(crop["stable-bin7-pre"][seed] - crop["none-pre"][seed]) for seed in (1, 2, 3)]
    assert "({}, {} and {} with seeds 1, 2, 3, against `none`".format(*gains) in README
    second = [round(swd[option][2]) for option in ("stable-bin7-pre", "none-pre")]
    assert "(sliced Wasserstein {} against {} with seed 2)".format(*second) in README
    # on average no worse than none in anything that says whether outputs look like the targets
    assert stable.mean("val/ssim") >= none.mean("val/ssim")
    assert stable.mean("val/swd") <= none.mean("val/swd")
    assert stable.mean("val/spectrum_error") <= none.mean("val/spectrum_error")
    assert abs(stable.mean("val/tv") - target) <= abs(none.mean("val/tv") - target)


def test_what_each_part_of_stable_does():
    runs = {run.folder.name: run for run in read_runs([RESULTS / "parts"])}
    runs |= {run.name: run for run in RUNS if run.name in ("stable-bin7-pre-seed1", "bin7-pre-seed1")}
    assert len(runs) == 6
    digits = {"shift_psnr_crop": 1, "shift_psnr_fractional": 1, "ssim": 3, "tv": 3, "spectrum_error": 1, "swd": 1}
    for run in runs.values():
        assert (run.config["seed"], run.summary["steps"]) == (1, 1000)
        cells = [f"{run.summary[f'val/{key}']:.{digit}f}" for key, digit in digits.items()]
        assert f" | {' | '.join(cells)} |\n" in README, run.name
    assert runs["detail0"].config["model"]["detail_weight"] == 0
    assert runs["l70"].config["model"]["l1_weight"] == 70
    assert runs["tri3"].config["antialias"]["filter"] == "tri3"
    twins = runs["twins"].config
    assert (twins["data"]["twin_reach"], twins["model"]["equivariance_weight"]) == (8, 60)
