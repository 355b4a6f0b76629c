import json
import math
import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from genstab import BlurPool2d
from genstab.bench.__main__ import markdown, run
from genstab.bench.guards import checks
from genstab.bench.layers import OTHERS, layer_cases, other_blurs, time_layers, unet_shapes
from genstab.bench.step import OPTIONS, step_models, time_steps
from genstab.bench.tables import ratio_table
from genstab.bench.timing import FEWEST, compare, peak_memory, storage_bytes, time_in_turn
from genstab.runtime.provenance import processor

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
TINY = ["--size", "32", "--channels", "2", "--seconds", "0"]


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
    times = time_in_turn(programs, seconds=0, clock=clock)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"  # the first round warms up
    assert times == {"a": [1.0] * FEWEST, "b": [3.0] * FEWEST, "c": [0.5] * FEWEST}
    order.clear()
    assert len(time_in_turn(programs, seconds=40, clock=clock)["a"]) == 9  # the last round that begins within 40 s


def test_a_quick_program_is_called_often_enough_for_the_clock():
    clock, order = Clock(), []
    times = time_in_turn({"a": clock.program("a", 3e-5, order)}, seconds=0, clock=clock)["a"]
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
    encoder, decoder = unet_shapes(256, 64)
    assert encoder == [(widths[i], widths[i + 1], 256 >> i, 128 >> i) for i in range(8)]
    assert decoder == [
        (widths[i + 1] * (1 if i == 7 else 2), widths[i], 128 >> i, 256 >> i) for i in reversed(range(8))
    ]


def test_every_blur_of_the_network_is_a_case():
    cases = [case for case in layer_cases(256, 64, "tri3", {}) if case.kind == "blur"]
    maps = {"blur, stride 1": [], "blur, stride 2": []}
    for case in cases:
        maps[case.name].append((case.channels, case.side))
    deep = [(512, 16), (512, 8), (512, 4), (512, 2)]
    assert maps["blur, stride 1"] == [(3, 256), (64, 128), (128, 64), (256, 32), *deep]
    assert maps["blur, stride 2"] == [(64, 256), (128, 128), (256, 64), (512, 32), *deep]


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
            layer.load_state_dict(weights)
            outputs[name] = layer(x)
        assert len({output.shape for output in outputs.values()}) == 1


def test_a_layer_that_would_do_other_work_or_fails_is_named():
    def rival(channels, filt_size, stride):
        return nn.Sequential(nn.Identity() if stride == 2 else nn.ReflectionPad2d(99))

    by_name = {case.name: case for case in reversed(layer_cases(32, 2, "tri3", {"rival": rival}))}
    results, out = time_layers(by_name["blur, stride 2"], 1, "contiguous", "float32", CPU, 0)
    assert [result["contestant"] for result in results] == ["genstab"]
    assert out == ["rival in blur, stride 2, 1×2×32×32: its output is (1, 2, 32, 32), not (1, 2, 16, 16)"]
    results, (failure,) = time_layers(by_name["blur, stride 1"], 1, "contiguous", "float32", CPU, 0)
    assert [result["contestant"] for result in results] == ["genstab"]
    assert failure.startswith("rival in blur, stride 1, 1×3×32×32: ")
    assert "Padding size should be less than the corresponding input dimension" in failure


class Spy(nn.Module):
    """A blur that notes what it is given."""

    def __init__(self, seen, channels, filt_size, stride):
        super().__init__()
        self.seen, self.arguments, self.blur = seen, (channels, filt_size, stride), BlurPool2d("bin5", stride)

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
    results, out = time_layers(case, 3, layout, "bfloat16", CPU, 0)
    assert seen == {(2, 5, 2, 3, 2, 32, 32, torch.bfloat16, last, grad) for grad in (True, False)}
    assert not out
    assert [result["contestant"] for result in results] == ["genstab", "spy"]


def test_the_source_of_the_network_has_no_gradient():
    cases = [case for case in layer_cases(32, 2, "tri3", {}) if case.kind == "conv"]
    assert [case.differentiable for case in cases] == [False, True, True, True, True]


@pytest.fixture(scope="module")
def layers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    options = ["--json", str(folder / "a.json"), "--markdown", str(folder / "a.md"), *TINY]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("genstab.bench.layers.OTHERS", {"kornia": OTHERS["kornia"]})
        run(["layers", *options])
    return json.loads((folder / "a.json").read_text()), (folder / "a.md").read_text()


def test_layers_writes_every_case_and_contestant(layers):
    report, _ = layers
    contestants = {
        "blur, stride 1": ["genstab", "kornia"],
        "blur, stride 2": ["genstab", "kornia"],
        "strided convolution": ["plain", "pre", "post"],
        "transposed convolution": ["plain", "blurred"],
        "max pooling": ["plain", "blurred"],
    }
    found = {}
    for result in report["results"]:
        key = (result["case"], *result["shape"], result["layout"], result["dtype"])
        found.setdefault(key, []).append(result["contestant"])
        times = result["times"]
        assert set(times) == {"forward", "forward_backward"}
        for timing in times.values():
            low, high = timing["seconds_quartiles"]
            assert 0 < low <= timing["seconds"] <= high
            assert timing["rounds"] >= FEWEST
            assert set(timing["ratio"]) == set(contestants[result["case"]]) - {result["contestant"]}
            assert all(ratio > 0 for ratio in timing["ratio"].values())
        assert result["peak_bytes"] > 0
    assert all(names == contestants[key[0]] for key, names in found.items())
    # 5 levels at 32 pixels; blurs with two strides; both layouts and both types
    assert len(found) == (2 + 1 + 1 + 1) * 5 * 2 * 2
    assert set(report) == {"command", "settings", "machine", "versions", "missing", "left_out", "results"}
    assert report["versions"]["torch"] == torch.__version__
    assert report["machine"]["threads"] == 1
    assert report["machine"]["devices"] == [processor()]
    assert report["left_out"] == []
    assert not report["settings"]["compile"]


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


def test_all_that_is_compared_is_compiled(monkeypatch):
    compiled = set()

    def backend(graph, inputs):  # Dynamo's part alone
        assert torch._dynamo.config.recompile_limit > len(OPTIONS)
        assert torch._dynamo.config.fail_on_recompile_limit_hit
        compiled.add(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    options = ["--only", "pool", "--dtype", "float32", "--layout", "contiguous", "--compile", *TINY]
    results = run(["layers", *options])["results"]
    assert len(compiled) == 2 * len(results)  # with a graph and without
    assert not torch._dynamo.config.fail_on_recompile_limit_hit
    torch.compiler.reset()


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    options = ["--json", str(folder / "a.json"), "--markdown", str(folder / "a.md"), "--batch", "1", "2", *TINY]
    run(["step", "--dtype", "float32", "--antialias", "tri3xpost", "polyphase", "stable", *options])
    return json.loads((folder / "a.json").read_text()), (folder / "a.md").read_text()


def test_every_filter_and_placement_is_an_option():
    filters = ["rect2", "tri3", "bin4", "bin5", "bin6", "bin7", "kaiser", "ideal"]
    blurs = [f"{filter}x{placement}" for filter in filters for placement in ("pre", "post")]
    assert list(OPTIONS) == ["none", *blurs, "polyphase", "polyphasextri3", "stable"]


def test_steps_of_options_beside_none(steps):
    report, text = steps
    options = ["none", "tri3xpost", "polyphase", "stable"]
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
    header = ["case", "input", "layout", "dtype", "name", "step ms", "IQR", "×", "× IQR", "peak MB", "×"]
    assert table[0] == header
    nones = {(r["shape"][0], r["dtype"]): r for r in report["results"] if r["contestant"] == "none"}
    for row, result in zip(table[1:], report["results"], strict=True):
        none = nones[result["shape"][0], result["dtype"]]
        shape = f"{result['shape'][0]}×3×32×32"
        assert row[:5] == ["training step", shape, "channels_last", result["dtype"], result["contestant"]]
        assert float(row[5]) == pytest.approx(1e3 * result["times"]["step"]["seconds"], abs=6e-4)
        assert float(row[7]) == pytest.approx(result["times"]["step"]["ratio"].get("none", 1.0), abs=6e-4)
        assert float(row[9]) == pytest.approx(result["peak_bytes"] / 1e6, abs=6e-4)
        assert float(row[10]) == pytest.approx(result["peak_bytes"] / none["peak_bytes"], abs=6e-4)
    assert report["command"] in text


def test_models_share_every_tensor_and_are_what_their_names_say():
    made = step_models(["tri3xpost", "bin5xpre"], 32, 2, "channels_last", False, CPU)
    assert list(made) == ["none", "tri3xpost", "bin5xpre"]
    none, adams = made["none"]
    antialias = [model.generator.config["antialias"] for model, _ in made.values()]
    assert [(a["filter"], a["placement"]) for a in antialias] == [("none", "pre"), ("tri3", "post"), ("bin5", "pre")]
    for model, own in made.values():
        pairs = zip(none.parameters(), model.parameters(), strict=True)
        assert all(a is b for a, b in pairs)
        assert own is adams
    trained = [p for adam in adams for group in adam.param_groups for p in group["params"]]
    assert set(trained) == set(none.parameters())
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in trained if p.dim() == 4)


def test_the_option_with_a_head_has_a_generator_and_optimizers_of_its_own():
    made = step_models(["stable", "tri3xpre"], 32, 2, "channels_last", False, CPU)
    (none, _), (stable, adams), _ = made.values()
    assert stable.generator.head is not None
    assert not set(none.generator.parameters()) & set(stable.generator.parameters())
    trained = [p for adam in adams for group in adam.param_groups for p in group["params"]]
    assert set(trained) == set(stable.parameters())
    seen = []
    stable.generator.register_forward_hook(lambda *args: seen.append(1))
    results = time_steps(made, 2, 64, "channels_last", "float32", CPU, 0)
    assert [result["contestant"] for result in results] == ["none", "stable", "tri3xpre"]
    assert seen


def test_a_step_trains_both_networks_and_has_its_memory_at_least():
    made = step_models(["tri3xpre"], 32, 2, "channels_last", False, CPU)
    plain, _ = made["none"]
    parameters = list(plain.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    types = set()
    plain.generator.decoder[-1].conv.register_forward_hook(lambda *args: types.add(args[-1].dtype))
    results = time_steps(made, 2, 32, "channels_last", "bfloat16", CPU, 0)
    assert types == {torch.bfloat16}
    assert not any(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    assert all(parameter.dtype == torch.float32 for parameter in parameters)
    weights = storage_bytes(parameters)  # and their gradients, and two moments of Adam
    none, tri3 = (result["peak_bytes"] for result in results)
    assert 4 * weights < none < tri3


def test_peak_memory_of_a_step_is_that_of_a_step_amid_a_training():
    made = step_models(["tri3xpre"], 32, 2, "channels_last", False, CPU)
    model, adams = made["tri3xpre"]
    measured = time_steps(made, 1, 32, "channels_last", "float32", CPU, 0)[1]["peak_bytes"]
    images = {"source": torch.rand(1, 3, 32, 32), "target": torch.rand(1, 3, 32, 32)}
    moments = [value for adam in adams for state in adam.state.values() for value in state.values()]
    resident = [*model.parameters(), *model.buffers(), *moments, *images.values()]

    def three_steps():
        for _ in range(3):
            model.update(images, *adams)

    for adam in adams:
        adam.zero_grad()
    assert measured == peak_memory(three_steps, CPU, resident)


def test_markdown_has_the_numbers_of_the_json(layers):
    report, text = layers
    details, ratios = tables(text)
    assert len(details) - 1 == len(report["results"])
    for row, result in zip(details[1:], report["results"], strict=True):
        cells = dict(zip(details[0], row, strict=False))
        assert cells["case"] == result["case"]
        assert cells["name"] == result["contestant"]
        assert [int(n) for n in cells["input"].split("×")] == result["shape"]
        assert float(cells["forward ms"]) == pytest.approx(1e3 * result["times"]["forward"]["seconds"], abs=6e-4)
        seconds = result["times"]["forward_backward"]["seconds"]
        assert float(cells["forward+backward ms"]) == pytest.approx(1e3 * seconds, abs=6e-4)
        assert float(cells["peak MB"]) == pytest.approx(result["peak_bytes"] / 1e6, abs=6e-4)
    post = next(row for row in ratios if row[:4] == ["post / plain convolution", "1", "contiguous", "float32"])
    expected = [
        result["times"]["forward"]["ratio"]["plain"]
        for result in report["results"]
        if result["contestant"] == "post" and (result["layout"], result["dtype"]) == ("contiguous", "float32")
    ]
    assert len(expected) == 5
    mean, worst = re.fullmatch(r"([\d.]+) \(([\d.]+) at \d+×\d+×\d+\)", post[4]).groups()
    assert float(mean) == pytest.approx(math.prod(expected) ** (1 / 5), abs=6e-3)
    assert float(worst) == pytest.approx(max(expected), abs=6e-3)
    assert report["command"] in text
    assert report["machine"]["devices"][0] in text
    assert f"torch {torch.__version__}" in text


def blur_result(contestant, side, ratio, peak):
    times = {"ratio": ratio}
    return {
        "case": "blur, stride 1",
        "kind": "blur",
        "shape": [1, 2, side, side],
        "layout": "contiguous",
        "dtype": "float32",
        "contestant": contestant,
        "times": {"forward": times, "forward_backward": times},
        "peak_bytes": peak,
    }


def test_key_ratios_by_hand():
    others = {"kornia": 1.0, "timm": 1.0, "antialiased_cnns": 1.0}
    results = []
    for side, ratio in ((8, {"kornia": 0.5, "timm": 0.25, "antialiased_cnns": 0.2}), (4, dict.fromkeys(others, 1.0))):
        results.append(blur_result("genstab", side, ratio, 100))
        results += [blur_result(name, side, {}, peak) for name, peak in zip(others, (50, 200, 400), strict=True)]
    (table,) = tables(ratio_table(results))
    assert {row[0]: row[4:] for row in table[1:]} == {
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
    }


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "timm.layers", None)
    blurs, missing = other_blurs()
    assert "kornia" in blurs
    assert missing["timm"].startswith("ModuleNotFoundError: ")
    monkeypatch.setattr("genstab.bench.layers.OTHERS", {"timm": OTHERS["timm"]})
    options = ["--only", "blur", "--dtype", "float32", "--layout", "contiguous", *TINY]
    text = markdown(run(["layers", *options]))
    assert "Not compared: timm, ModuleNotFoundError: " in text
    assert "of the others" not in text


def test_a_filter_that_the_other_libraries_lack_is_timed_alone():
    options = ["--only", "blur", "--dtype", "float32", "--layout", "contiguous", "--filter", "kaiser", *TINY]
    report = run(["layers", *options])
    assert report["missing"]["kornia"] == "has no filter kaiser"
    assert {result["contestant"] for result in report["results"]} == {"genstab"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sing"], "invalid choice: 'sing' (choose from"),
        ([], "the following arguments are required: layers|step"),
        (["layers", "--dtype", "float8"], "argument --dtype: invalid choice: 'float8' (choose from"),
        (["step", "--device", "tpu"], "argument --device: invalid choice: 'tpu' (choose from"),
        (["layers", "--filter", "none"], "argument --filter: invalid choice: 'none' (choose from"),
        (
            ["step", "--antialias", "tri9"],
            "argument --antialias: invalid choice: 'tri9' (choose from 'none', 'rect2xpre'",
        ),
        (["layers", "--batch", "two"], "argument --batch: two is not an integer of at least 1"),
        (["layers", "--batch", "0"], "argument --batch: 0 is not an integer of at least 1"),
        (["guards", "--channels", "-1"], "argument --channels: -1 is not an integer of at least 1"),
        (["layers", "--size", "48"], "argument --size: invalid choice: 48 (choose from 32, 64, 128"),
        (["layers", "--json", "."], "argument --json: . is a folder, not a file"),
        (["layers", "--json", __file__], "test_bench.py exists already: name another file"),
        (["layers", "--json", "nowhere/a.json"], "argument --json: nowhere/a.json: the folder nowhere does not exist"),
    ],
)
def test_invalid_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        run(arguments)
    assert caught.value.code == 2
    assert message in re.sub(r"\s+", " ", capsys.readouterr().err)


def test_a_device_that_is_not_there(monkeypatch, capsys):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    with pytest.raises(SystemExit):
        run(["layers", "--device", "cuda"])
    assert "argument --device: invalid choice: 'cuda' (choose from 'cpu')" in capsys.readouterr().err


def test_the_readme_names_the_commands():
    readme = (ROOT / "genstab/bench/README.md").read_text(encoding="utf-8")
    for command in ("layers", "step", "guards"):
        assert f"python -m genstab.bench {command}" in readme


def test_guards_beside_a_training_without(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("genstab.bench.guards.BATCHES", 2)
    run(["guards", *TINY, "--batch", "2", "--json", str(tmp_path / "guards.json")])
    report = json.loads((tmp_path / "guards.json").read_text())
    results = {result["contestant"]: result for result in report["results"]}
    assert list(results) == ["none", "all, on_nan=stop", "all, on_nan=skip"]
    printed = capsys.readouterr().out
    for name, result in results.items():
        step = result["times"]["step"]
        assert step["rounds"] == FEWEST
        if name != "none":
            assert f"{step['ratio']['none']:.3f}" in printed
    assert not (tmp_path / "checkpoints").exists()


def test_a_guarded_training_has_the_checks_of_a_real_one():
    for on_nan in ("stop", "skip"):
        configured = yaml.safe_load((ROOT / "conf/callbacks/default.yaml").read_text())
        names = {f"{type(check).__module__}.{type(check).__qualname__}" for check in checks(on_nan)}
        assert names < {callback["_target_"] for callback in configured.values()}
