import json
import math
import re
import statistics
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from torch import nn

from genstab import BlurPool2d, InputError
from genstab.bench.__main__ import _every_compilation, main, markdown, run
from genstab.bench.guards import Turns
from genstab.bench.layers import blur_bytes, layer_cases, other_blurs, race, unet_shapes
from genstab.bench.step import EVERY, contest
from genstab.bench.step import race as race_steps
from genstab.bench.tables import copy_ratio, geometric_mean, key_ratios
from genstab.bench.timing import FEWEST, compare, interleave, peak_memory, storage_bytes
from tests.conftest import pairs_loader, tiny_pix2pix
from tests.training.test_pix2pix import QUIET

CPU = torch.device("cpu")
TINY = ["--size", "32", "--channels", "2", "--seconds", "0", "--threads", "1"]


class Clock:
    """A clock that programs set, so that a test knows every time."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def program(self, name, seconds, order):
        def run():
            self.now += seconds
            order.append(name)

        return run


def test_programs_run_in_turn_and_every_round_begins_with_another():
    clock, order = Clock(), []
    programs = {name: clock.program(name, seconds, order) for name, seconds in (("a", 1.0), ("b", 3.0), ("c", 0.5))}
    times = interleave(programs, seconds=0, clock=clock)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"  # the first round warms up
    assert times == {"a": [1.0] * FEWEST, "b": [3.0] * FEWEST, "c": [0.5] * FEWEST}
    order.clear()
    assert len(interleave(programs, seconds=40, clock=clock)["a"]) == 9  # the last round that begins within 40 s


def test_a_quick_program_is_called_often_enough_for_the_clock():
    clock, order = Clock(), []
    times = interleave({"a": clock.program("a", 3e-5, order)}, seconds=0, clock=clock)["a"]
    assert times == pytest.approx([3e-5] * FEWEST)
    assert len(order) == 1 + 2 + FEWEST * 7  # 7 · 30 µs are the first to exceed 200 µs


def test_ratios_are_those_of_each_round_so_that_a_slower_machine_changes_nothing():
    times = {"a": [1.0, 10.0, 100.0], "b": [2.0, 20.0, 200.0], "c": [4.0, 20.0, 100.0]}
    result = compare(times)
    assert result["a"]["seconds"] == 10.0
    assert result["a"]["ratio"] == {"b": 0.5, "c": 0.5}
    assert result["a"]["ratio_quartiles"] == {"b": [0.5, 0.5], "c": [0.375, 0.75]}
    assert result["c"]["ratio"] == {"a": 2.0, "b": 1.0}


def test_peak_memory_of_known_allocations():
    mib = 2**20

    def program():
        a = torch.empty(3 * mib, dtype=torch.uint8)
        b = torch.empty(5 * mib, dtype=torch.uint8)  # 8 MiB together
        del a
        c = torch.empty(2 * mib, dtype=torch.uint8)  # 7
        del b
        d = torch.empty(mib, dtype=torch.uint8)  # 3
        return c, d

    resident = torch.empty(4 * mib, dtype=torch.uint8)
    assert peak_memory(program, CPU) == 8 * mib
    assert peak_memory(program, CPU, [resident, resident[:7]]) == 12 * mib
    assert peak_memory(lambda: None, torch.device("meta")) is None


def test_peak_memory_counts_what_autograd_keeps():
    x = torch.ones(1000, requires_grad=True)

    def program():
        y = x
        for _ in range(5):
            y = y.exp()  # keeps its output of 4000 bytes for the backward pass
        torch.autograd.grad(y, x, torch.ones(1000))

    # five outputs and the gradient of the last; backward holds a gradient in and out while it frees output after output
    assert 24000 <= peak_memory(program, CPU) <= 32000


def test_storages_are_counted_once():
    x = torch.zeros(10, 10)
    assert storage_bytes([x, x.t(), x[:2], torch.zeros(1)]) == 404


def test_shapes_are_those_of_the_papers_network():
    widths = [3, 64, 128, 256, 512, 512, 512, 512, 512]
    shapes = unet_shapes(256, 64)
    assert shapes[:8] == [(False, widths[i], widths[i + 1], 256 >> i, 128 >> i) for i in range(8)]
    assert shapes[8:] == [
        (True, widths[i + 1] * (1 if i == 7 else 2), widths[i], 128 >> i, 256 >> i) for i in reversed(range(8))
    ]


def test_every_blur_of_the_network_is_a_case():
    cases = [case for case in layer_cases(256, 64, "tri3", {}) if case.kind == "blur"]
    maps = {"blur, stride 1": [], "blur, stride 2": []}
    for case in cases:
        maps[case.name].append((case.channels, case.side))
    deep = [(512, 16), (512, 8), (512, 4), (512, 2)]
    assert maps["blur, stride 1"] == [(3, 256), (64, 128), (128, 64), (256, 32), *deep]
    assert maps["blur, stride 2"] == [(64, 256), (128, 128), (256, 64), (512, 32), *deep]


def test_bytes_moved_by_hand():
    assert blur_bytes((2, 3, 8, 10), stride=1, itemsize=4) == 4 * 2 * 3 * (80 + 80)
    assert blur_bytes((1, 5, 7, 9), stride=2, itemsize=2) == 2 * 5 * (63 + 4 * 5)
    copy = {"bytes_moved": {"forward": 1000}, "times": {"forward": {"seconds": 2.0}}}  # 500 bytes a second
    blur = {"bytes_moved": {"forward": 750}, "times": {"forward": {"seconds": 6.0}}}  # could take 1.5 seconds
    assert copy_ratio(blur, copy, "forward") == 4.0


@pytest.mark.parametrize("filter", ["tri3", "bin4", "bin5"])
@pytest.mark.parametrize("kind", ["conv", "transposed", "pool"])
def test_the_layers_of_a_case_do_the_same_work(kind, filter):
    torch.manual_seed(0)
    for case in layer_cases(32, 2, filter, {}):
        if case.kind != kind:
            continue
        layers = {name: build() for name, build in case.layers.items()}
        weights = next(iter(layers.values())).state_dict()
        x = torch.randn(1, case.channels, case.side, case.side)
        outputs = {}
        for name, layer in layers.items():
            target = layer.conv if name == "naive post" else layer
            target.load_state_dict(weights)
            outputs[name] = layer(x)
        assert len({output.shape for output in outputs.values()}) == 1
        if kind == "conv":
            torch.testing.assert_close(outputs["naive post"], outputs["post"])


def test_a_layer_that_would_do_other_work_or_fails_is_named():
    def rivals(channels, size, stride):
        return nn.Sequential(nn.Identity() if stride == 2 else nn.ReflectionPad2d(99))

    cases = layer_cases(32, 2, "tri3", {"rival": rivals})
    by_name = {case.name: case for case in reversed(cases)}
    results, out = race(by_name["blur, stride 2"], 1, "contiguous", "float32", CPU, 0)
    assert [result["contestant"] for result in results] == ["genstab", "copy"]
    assert [(o["contestant"], o["reason"]) for o in out] == [
        ("rival", "its output is (1, 2, 32, 32), not (1, 2, 16, 16)")
    ]
    _, out = race(by_name["blur, stride 1"], 1, "contiguous", "float32", CPU, 0)
    assert out[0]["contestant"] == "rival"
    assert "Padding size" in out[0]["reason"]


class Spy(nn.Module):
    """A blur that notes what it is given."""

    def __init__(self, seen, *arguments):
        super().__init__()
        self.seen, self.arguments, self.blur = seen, arguments, BlurPool2d("bin5", arguments[2])

    def forward(self, x):
        last = x.is_contiguous(memory_format=torch.channels_last)
        self.seen.add((*self.arguments, *x.shape, x.dtype, last, torch.is_grad_enabled() and x.requires_grad))
        return self.blur(x)


@pytest.mark.parametrize(("layout", "last"), [("channels_last", True), ("contiguous", False)])
def test_the_input_is_what_the_result_says(layout, last):
    seen = set()
    cases = layer_cases(32, 2, "bin5", {"spy": partial(Spy, seen)})
    case = next(case for case in cases if case.name == "blur, stride 2")
    assert case.layers["genstab"]().filter == "bin5"
    results, out = race(case, 3, layout, "bfloat16", CPU, 0)
    assert seen == {(2, 5, 2, 3, 2, 32, 32, torch.bfloat16, last, grad) for grad in (True, False)}
    assert not out
    assert [r["bytes_moved"]["forward"] for r in results] == [
        2 * 3 * 2 * n for n in (32**2 + 16**2,) * 2 + (2 * 32**2,)
    ]
    assert results[0]["bytes_moved"]["forward_backward"] == 2 * results[0]["bytes_moved"]["forward"]


def test_the_source_of_the_network_has_no_gradient():
    cases = [case for case in layer_cases(32, 2, "tri3", {}) if case.kind == "conv"]
    assert [case.differentiable for case in cases] == [False, True, True, True, True]


@pytest.fixture(scope="module")
def layers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    options = ["--json", str(folder / "a.json"), "--markdown", str(folder / "a.md"), "--against", "kornia", *TINY]
    run(["layers", *options])
    return json.loads((folder / "a.json").read_text()), (folder / "a.md").read_text()


def test_layers_writes_every_case_and_contestant(layers):
    report, _ = layers
    contestants = {
        "blur": ["genstab", "kornia", "copy"],
        "conv": ["plain", "pre", "post", "naive post"],
        "transposed": ["plain", "blurred"],
        "pool": ["plain", "blurred"],
    }
    found = {}
    for result in report["results"]:
        key = (result["kind"], result["case"], *result["shape"], result["layout"], result["dtype"])
        found.setdefault(key, []).append(result["contestant"])
        times = result["times"]
        assert set(times) == ({"forward"} if result["contestant"] == "copy" else {"forward", "forward_backward"})
        for timing in times.values():
            low, high = timing["seconds_quartiles"]
            assert 0 < low <= timing["seconds"] <= high
            assert timing["rounds"] >= FEWEST
            assert set(timing["ratio"]) >= set(contestants[result["kind"]]) - {result["contestant"], "copy"}
            assert all(ratio > 0 for ratio in timing["ratio"].values())
        assert result["contestant"] == "copy" or result["peak_bytes"] > 0
        assert not result["compiled"]
    assert all(names == contestants[key[0]] for key, names in found.items())
    # 5 levels at 32 pixels; blurs with two strides; both layouts and both types
    assert len(found) == (2 + 1 + 1 + 1) * 5 * 2 * 2
    assert set(report) == {"command", "settings", "machine", "versions", "missing", "left_out", "results"}
    assert report["versions"]["torch"] == torch.__version__
    assert report["machine"]["threads"] == 1
    assert report["machine"]["copy_gigabytes_per_second"] > 0
    assert report["left_out"] == []
    assert report["settings"]["against"] == ["kornia"]


def tables(text):
    """Return the tables of a Markdown text, each a list of rows, the header first."""
    lines = text.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else None for line in lines]
    found, table = [], []
    for row in [*rows, None]:
        if row is not None:
            table.append(row)
        elif table:
            found.append([table[0], *table[2:]])
            table = []
    return found


def test_compiled_layers_are_all_compiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # Dynamo's part, without C++
    cases = [case for case in layer_cases(32, 2, "tri3", {}) if case.kind == "pool"]
    with _every_compilation():
        assert torch._dynamo.config.recompile_limit > len(EVERY)
        assert torch._dynamo.config.fail_on_recompile_limit_hit
        results, _ = race(cases[-1], 1, "contiguous", "float32", CPU, 0, compiled=True)
    assert not torch._dynamo.config.fail_on_recompile_limit_hit
    assert [result["compiled"] for result in results] == [True, True]
    torch.compiler.reset()


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    options = ["--json", str(folder / "a.json"), "--markdown", str(folder / "a.md"), "--batch", "1", "2", *TINY]
    run(["step", "--dtype", "float32", *options])
    return json.loads((folder / "a.json").read_text()), (folder / "a.md").read_text()


def test_steps_of_every_option_beside_none(steps):
    report, text = steps
    filters = ["rect2", "tri3", "bin4", "bin5", "bin6", "bin7", "kaiser", "ideal"]
    options = ["none", *(f"{filter}x{placement}" for filter in filters for placement in ("pre", "post"))]
    options += ["polyphase", "polyphasextri3", "stable"]
    found = {}
    for result in report["results"]:
        place = (result["shape"][0], result["layout"], result["dtype"])
        found.setdefault(place, []).append(result["contestant"])
        timing = result["times"]["step"]
        assert result["shape"][1:] == [3, 32, 32]
        assert result["images_per_second"] == result["shape"][0] / timing["seconds"] > 0
        assert set(timing["ratio"]) == set(options) - {result["contestant"]}
    assert found == {(batch, "channels_last", "float32"): options for batch in (1, 2)}
    (table,) = tables(text)
    assert len(table) - 1 == len(report["results"])
    assert table[0][-1] == table[0][6] == "×"
    nones = {(r["shape"][0], r["dtype"]): r for r in report["results"] if r["contestant"] == "none"}
    for row, result in zip(table[1:], report["results"], strict=True):
        none = nones[result["shape"][0], result["dtype"]]
        assert row[:4] == [str(result["shape"][0]), "channels_last", result["dtype"], result["contestant"]]
        assert float(row[4]) == pytest.approx(1e3 * result["times"]["step"]["seconds"], abs=6e-4)
        assert float(row[6]) == pytest.approx(result["times"]["step"]["ratio"].get("none", 1.0), abs=6e-4)
        assert float(row[8]) == pytest.approx(result["images_per_second"], abs=6e-3)
        assert float(row[9]) == pytest.approx(result["peak_bytes"] / 1e6, abs=6e-4)
        assert float(row[10]) == pytest.approx(result["peak_bytes"] / none["peak_bytes"], abs=6e-4)
    assert report["command"] in text


def test_models_of_a_contest_share_every_tensor_and_are_what_their_names_say():
    made = contest(["tri3xpost", "bin5"], 32, 2, "channels_last", False, CPU)
    assert list(made.models) == ["none", "tri3xpost", "bin5"]
    none = made.models["none"]
    antialias = [model.generator.config["antialias"] for model in made.models.values()]
    assert [(a["filter"], a["placement"]) for a in antialias] == [("none", "pre"), ("tri3", "post"), ("bin5", "pre")]
    for model in made.models.values():
        pairs = zip(none.parameters(), model.parameters(), strict=True)
        assert all(a is b for a, b in pairs)
    trained = [p for optimizer in made.optimizers["none"] for group in optimizer.param_groups for p in group["params"]]
    assert set(trained) == set(none.parameters())
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in trained if p.dim() == 4)


def test_the_option_with_a_head_has_a_generator_and_optimizers_of_its_own():
    made = contest(["stable", "tri3xpre"], 32, 2, "channels_last", False, CPU)
    none, stable = made.models["none"], made.models["stable"]
    assert stable.generator.head is not None
    assert not set(none.generator.parameters()) & set(stable.generator.parameters())
    trained = [
        p for optimizer in made.optimizers["stable"] for group in optimizer.param_groups for p in group["params"]
    ]
    assert set(trained) == set(stable.parameters())
    seen = []
    stable.generator.register_forward_hook(lambda *args: seen.append(1))
    results = race_steps(made, 2, 64, "channels_last", "float32", CPU, 0)
    assert [result["contestant"] for result in results] == ["none", "stable", "tri3xpre"]
    assert seen


def test_a_step_trains_both_networks_and_has_its_memory_at_least():
    made = contest(["tri3xpre"], 32, 2, "channels_last", False, CPU)
    parameters = list(made.models["none"].parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    types = set()
    made.models["none"].generator.decoder[-1].conv.register_forward_hook(lambda *args: types.add(args[-1].dtype))
    results = race_steps(made, 2, 32, "channels_last", "bfloat16", CPU, 0)
    assert types == {torch.bfloat16}
    assert not any(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    assert all(parameter.dtype == torch.float32 for parameter in parameters)
    weights = storage_bytes(parameters)  # and their gradients, and two moments of Adam
    none, tri3 = (result["peak_bytes"] for result in results)
    assert 4 * weights < none < tri3


def test_peak_memory_of_a_step_is_that_of_a_step_amid_a_training():
    made = contest(["tri3xpre"], 32, 2, "channels_last", False, CPU)
    model = made.models["tri3xpre"]
    measured = race_steps(made, 1, 32, "channels_last", "float32", CPU, 0)[1]["peak_bytes"]
    images = {"source": torch.rand(1, 3, 32, 32), "target": torch.rand(1, 3, 32, 32)}
    moments = [
        value for optimizer in made.optimizers["none"] for state in optimizer.state.values() for value in state.values()
    ]
    resident = [*model.parameters(), *model.buffers(), *moments, *images.values()]

    def three_steps():
        for _ in range(3):
            model.update(images, *made.optimizers["none"])

    for optimizer in made.optimizers["none"]:
        optimizer.zero_grad()
    assert measured == peak_memory(three_steps, CPU, resident)


def test_an_unknown_option_is_named():
    with pytest.raises(InputError, match="antialias='tri9' is not one of none, rect2xpre, "):
        run(["step", "--antialias", "tri9", *TINY])


def test_markdown_has_the_numbers_of_the_json(layers):
    report, text = layers
    ratios, details = tables(text)
    assert len(details) - 1 == len(report["results"])
    for row, result in zip(details[1:], report["results"], strict=True):
        cells = dict(zip(details[0], row, strict=False))
        assert cells["case"] == result["case"]
        assert cells["layer"] == result["contestant"]
        assert [int(n) for n in cells["map"].split("×")] == result["shape"][1:]
        assert float(cells["forward ms"]) == pytest.approx(1e3 * result["times"]["forward"]["seconds"], abs=6e-4)
        if result["contestant"] != "copy":
            seconds = result["times"]["forward_backward"]["seconds"]
            assert float(cells["forward+backward ms"]) == pytest.approx(1e3 * seconds, abs=6e-4)
            assert float(cells["peak MB"]) == pytest.approx(result["peak_bytes"] / 1e6, abs=6e-4)
    post = next(
        row
        for row in ratios
        if row[:4] == ["post / plain with stride 1, then depthwise blur", "1", "contiguous", "float32"]
    )
    expected = [
        result["times"]["forward"]["ratio"]["naive post"]
        for result in report["results"]
        if result["contestant"] == "post" and (result["layout"], result["dtype"]) == ("contiguous", "float32")
    ]
    assert len(expected) == 5
    mean, worst = re.fullmatch(r"([\d.]+) \(([\d.]+) at \d+×\d+×\d+\)", post[4]).groups()
    assert float(mean) == pytest.approx(math.prod(expected) ** (1 / 5), abs=6e-3)
    assert float(worst) == pytest.approx(max(expected), abs=6e-3)
    assert report["command"] in text
    assert report["machine"]["processor"] in text
    assert f"torch {torch.__version__}" in text


def blur_result(contestant, side, ratio, peak):
    times = {"seconds": 1.0, "seconds_quartiles": [1.0, 1.0], "ratio": ratio}
    return {
        "case": "blur, stride 1",
        "kind": "blur",
        "shape": [1, 2, side, side],
        "layout": "contiguous",
        "dtype": "float32",
        "contestant": contestant,
        "times": {"forward": times, "forward_backward": times},
        "bytes_moved": {"forward": 8, "forward_backward": 16},
        "peak_bytes": peak,
    }


def test_key_ratios_by_hand():
    others = {"kornia": 1.0, "timm": 1.0, "antialiased_cnns": 1.0}
    results = []
    for side, ratio in ((8, {"kornia": 0.5, "timm": 0.25, "antialiased_cnns": 0.2}), (4, dict.fromkeys(others, 1.0))):
        results.append(blur_result("genstab", side, {**ratio, "copy": 7.0}, 100))
        results += [blur_result(name, side, {}, peak) for name, peak in zip(others, (50, 200, 400), strict=True)]
        results.append(blur_result("copy", side, {}, None))
    rows = {row[0]: list(row[4:]) for row in key_ratios(results).rows}
    assert rows == {
        "blur / fastest of the others": [  # √(0.5 · 1), √(2 · 2)
            "0.71 (1.00 at 2×4×4)",
            "0.71 (1.00 at 2×4×4)",
            "2.00 (2.00 at 2×8×8)",
        ],
        "blur / median of the others": [  # √(0.25 · 1), √(0.5 · 0.5)
            "0.50 (1.00 at 2×4×4)",
            "0.50 (1.00 at 2×4×4)",
            "0.50 (0.50 at 2×8×8)",
        ],
        "blur / its bytes at copy speed": ["1.00 (1.00 at 2×8×8)", "0.50 (0.50 at 2×8×8)", "–"],
    }
    assert geometric_mean([1.0, 4.0, 2.0]) == pytest.approx(statistics.geometric_mean([1.0, 4.0, 2.0]))


def test_a_missing_library_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "timm.layers", None)
    blurs, missing = other_blurs(["kornia", "timm"])
    assert list(blurs) == ["kornia"]
    assert list(missing) == ["timm"]
    assert missing["timm"].startswith("not installed: ")
    options = ["--against", "timm", "--only", "pool", "--dtype", "float32", "--layout", "contiguous", *TINY]
    report = run(["layers", *options])
    assert "Not compared: timm, not installed: " in capsys.readouterr().out
    assert "Not compared: timm, not installed: " in markdown(report)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sing"], "invalid choice: 'sing' (choose from"),
        ([], "the following arguments are required: layers|step"),
        (["layers", "--dtype", "float8"], "argument --dtype: invalid choice: 'float8' (choose from"),
        (["step", "--device", "tpu"], "argument --device: invalid choice: 'tpu' (choose from"),
        (["layers", "--filter", "none"], "argument --filter: invalid choice: 'none' (choose from"),
        (["layers", "--against", "scipy"], "argument --against: invalid choice: 'scipy' (choose from"),
        (["layers", "--batch", "two"], "argument --batch: invalid int value: 'two'"),
    ],
)
def test_arguments_that_are_none(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        run(arguments)
    assert caught.value.code == 2
    assert message in re.sub(r"\s+", " ", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["layers", "--batch", "0"], "batch=0 is not an integer of at least 1"),
        (["layers", "--size", "48"], "size=48 is not a power of two of at least 32"),
        (["layers", "--threads", "0"], "threads=0 is not an integer of at least 1"),
        (["layers", "--json", "."], ". is a folder, not a file"),
        (["layers", "--seconds", "-1"], "seconds=-1.0 is not a number of at least 0"),
        (["layers", "--json", "nowhere/a.json"], "nowhere/a.json: the folder nowhere does not exist"),
    ],
)
def test_arguments_that_cannot_be(arguments, message, monkeypatch):
    with pytest.raises(InputError, match=re.escape(message)):
        run(arguments)
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == f"genstab: {message}"


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="device=cuda is not here; this machine has cpu"):
        run(["layers", "--device", "cuda"])


def test_threads_are_put_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run(["layers", "--only", "pool", "--dtype", "float32", "--layout", "contiguous", "--against", "kornia", *TINY])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_readme_names_the_commands():
    readme = (Path(__file__).parents[2] / "genstab/bench/README.md").read_text(encoding="utf-8")
    for command in ("layers", "step", "guards"):
        assert f"python -m genstab.bench {command}" in readme


def test_guards_take_turns_in_one_training_and_are_timed_by_blocks(capsys, tmp_path):
    run(["guards", *TINY, "--batch", "1", "--json", str(tmp_path / "guards.json")])
    report = json.loads((tmp_path / "guards.json").read_text())
    results = {result["contestant"]: result for result in report["results"]}
    assert list(results) == ["none", "all, on_nan=stop", "all, on_nan=skip"]
    for name, result in results.items():
        step = result["times"]["step"]
        assert step["rounds"] == FEWEST
        assert result["images_per_second"] == pytest.approx(1 / step["seconds"])
        if name == "none":
            assert result["throughput"] == 1
        else:
            assert result["throughput"] == results["none"]["times"]["step"]["ratio"][name]
    assert report["seconds_to_check_1000_pairs"] > 0
    printed = capsys.readouterr().out
    assert "data.check=fast takes" in printed
    assert f"{results['all, on_nan=stop']['throughput']:.3f}" in printed


def test_only_the_callbacks_of_a_block_hear_of_its_batches():
    heard = {name: [] for name in "abc"}

    class Listener(Callback):
        def __init__(self, name):
            self.name = name

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            heard[self.name].append(batch_idx)

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            heard[self.name].append(-batch_idx)

    others = {"a": [], "b": [Listener("b")], "c": [Listener("c")]}
    turns = Turns(others, 2, 0.0, lambda: None)
    trainer = Trainer(max_steps=1000, callbacks=[turns], **QUIET)
    trainer.fit(tiny_pix2pix(), pairs_loader(100, 1))
    # the first block warms up; then abc, bca, cab
    assert "".join(turns.name(block) for block in range(9)) == "abcbcacab"
    assert heard["b"] == [4, -4, 5, -5, 8, -8, 9, -9, 18, -18, 19, -19]
    assert heard["c"][:8] == [6, -6, 7, -7, 10, -10, 11, -11]
    assert {name: len(times) for name, times in turns.times.items()} == dict.fromkeys("abc", FEWEST)
    assert trainer.global_step == 2 * (1 + 9) + 1


def test_blocks_must_have_a_look_at_the_losses(capsys):
    with pytest.raises(InputError, match="steps=15 is not a multiple of 10"):
        run(["guards", *TINY, "--steps", "15"])
