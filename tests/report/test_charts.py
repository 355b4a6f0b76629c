"""Figures hold the numbers that they are drawn from."""

import pytest

from genstab.metrics.measurements import image_means
from genstab.metrics.registry import metrics
from genstab.report.charts import (
    COLOURS,
    colour_bar,
    heat_map,
    image_boxes,
    quality_scatter,
    run_lines,
    run_styles,
    shift_lines,
)
from genstab.report.panels import corruption_panel, map_panel, scatter_panel
from genstab.report.runs import Run
from tests.helpers.run_folder import measurements

STYLES = run_styles(["a", "b", "<c>"])
L1, SSIM, RATIO, CIRCULAR = (metrics()[key] for key in ("val/l1", "val/ssim", "tv_ratio", "val/shift_psnr"))
DISTANCE = metrics()["val/feature_distance"]


def run(name, measured=None, **metrics):
    return Run(name, None, {f"val/{key}": value for key, value in metrics.items()}, measured or {})


def luminance(colour):
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colour", COLOURS)
def test_every_colour_stands_out_on_a_light_and_on_a_dark_page(colour):
    for page in ("#ffffff", "#12161d"):
        dark, light = sorted((luminance(colour), luminance(page)))
        assert (light + 0.05) / (dark + 0.05) >= 3


def test_runs_look_different_even_when_the_colours_come_again():
    styles = run_styles([str(i) for i in range(24)])
    assert len({(style.colour, style.dash) for style in styles.values()}) == 24


def test_long_names_are_cut_and_stay_apart():
    names = [f"{'long' * 20}{i}{'-name' * 9}" for i in range(3)] + ["<b>", "short"]
    labels = [style.label for style in run_styles(names).values()]
    assert len(set(labels)) == 5
    assert max(map(len, labels)) <= 32
    assert labels[3:] == ["&lt;b&gt;", "short"]


def test_a_front_over_an_error_prefers_less_of_it():
    points = {"a": (0.3, 35.0), "b": (0.2, 30.0), "<c>": (0.25, 28.0)}
    figure = quality_scatter(points, STYLES, L1, CIRCULAR, dict.fromkeys(points, ""))
    assert list(zip(figure.data[0].x, figure.data[0].y, strict=True)) == [(0.3, 35.0), (0.2, 30.0)]
    assert figure.layout.xaxis.range[0] > 0.3 > 0.2 > figure.layout.xaxis.range[1]
    assert figure.data[3].name == "&lt;c&gt;"
    figure = quality_scatter(points, STYLES, SSIM, CIRCULAR, dict.fromkeys(points, ""))
    assert list(figure.data[0].x) == [0.3]
    assert figure.layout.xaxis.range[0] < 0.2
    figure = quality_scatter({"a": (1.25, 0.1), "b": (0.9, 0.3)}, STYLES, RATIO, DISTANCE, dict.fromkeys("ab", ""))
    assert [(trace.x, trace.y) for trace in figure.data[1:]] == [((0.25,), (0.1,)), ((pytest.approx(0.1),), (0.3,))]
    assert figure.layout.xaxis.title.text == "|TV / targets' TV − 1|, better →"
    for axis in (figure.layout.xaxis, figure.layout.yaxis):  # of both, less is better
        assert axis.range[0] > axis.range[1]


def test_lines_are_pooled_or_means_per_shift_by_direction_with_upright_bars():
    measured = {
        "a": {
            "shifts": [[0, 2], [0, 1], [1, 0], [2, 1]],
            "decibels": [[20, 30, 40], [10, None, 20], [None] * 3, [5, 5, 8]],
        },
        "b": {"shifts": [[-1.5, 1.5]], "decibels": [[30]], "pooled": [29.0]},
    }
    figure = shift_lines(measured, STYLES)
    bars, right, _, other, _, diagonal = figure.data
    assert (right.x, right.y) == (("→ 1", "→ 2"), (15, 30))
    # quartiles of 10 and 20, and of 20, 30 and 40: lines upwards that leave the plot free
    assert (bars.x, bars.y) == (("→ 1", "→ 1", None, "→ 2", "→ 2", None), (12.5, 17.5, None, 25, 35, None))
    assert bars.fill is None
    assert (other.x, other.y) == (("(2, 1)",), (6,))
    assert (diagonal.x, diagonal.y, diagonal.name) == (("↗ 1.5",), (29,), "b")
    assert [line.showlegend for line in (right, other, diagonal)] == [True, False, True]
    assert figure.layout.xaxis.categoryarray == ("→ 1", "→ 2", "↗ 1.5", "(2, 1)")


def test_of_many_shifts_only_axes_and_diagonals_are_drawn():
    shifts = [[dy, dx] for dy in range(-4, 5) for dx in range(-4, 5) if (dy, dx) != (0, 0)]
    figure = shift_lines({"a": {"shifts": shifts, "decibels": [[30.0]] * len(shifts)}}, STYLES)
    assert len(figure.layout.xaxis.categoryarray) == 8 * 4
    figure = shift_lines({"a": {"shifts": shifts[:40], "decibels": [[30.0]] * 40}}, STYLES)
    assert len(figure.layout.xaxis.categoryarray) == 40


def test_a_map_has_the_zero_shift_in_the_middle_and_down_points_down():
    figure = heat_map([[1, 2, 3], [4, None, 6], [7, 8, 9]], (1, 9), "Viridis", "dB")
    (trace,) = figure.data
    assert (trace.x, trace.y) == ((-1, 0, 1), (-1, 0, 1))
    assert trace.z[2][1] == 8
    assert figure.layout.yaxis.autorange == "reversed"
    (bar,) = colour_bar((1, 9), "Viridis", "dB").data
    assert (bar.z[0][0], bar.z[0][-1]) == (1, 9)


def test_maps_share_a_scale_on_which_a_perfect_value_has_a_colour_of_its_own():
    perfect = {"shift_map": {"decibels": [[100.0] * 3, [100.0, None, 100.0], [100.0] * 3]}}
    other = {"shift_map": {"decibels": [[20.0] * 3, [31.0, None, None], [30.0] * 3]}}
    panel = map_panel([run("a", perfect), run("b", other), run("<c>")], STYLES)
    assert [(cell.run, cell.figures[""].data[0].zmin, cell.figures[""].data[0].zmax) for cell in panel.cells] == [
        ("a", 20, 31),
        ("b", 20, 31),
    ]
    scale, beside = panel.bar[""].data
    assert panel.bar[""].layout.xaxis.ticktext == ("20", "22.8", "25.5", "28.2", "31", "100")
    assert panel.bar[""].layout.xaxis.tickvals[-1] in beside.x
    assert max(scale.x) == 31 < min(beside.x)
    drawn = [cell.figures[""].data for cell in panel.cells]
    assert [len(traces) for traces in drawn] == [2, 1]
    assert [list(row) for row in drawn[0][1].z] == [[1.0] * 3, [1.0, None, 1.0], [1.0] * 3]
    assert drawn[0][1].colorscale == beside.colorscale
    alone = map_panel([run("a", perfect)], STYLES).cells[0].figures[""].data[0]
    assert alone.zmin < alone.zmax
    assert len(map_panel([run("b", other)], STYLES).bar[""].data) == 1  # not a word of 100 dB where there is none


def test_the_scatter_has_a_choice_for_every_pair_that_is_there():
    runs = [
        run("a", shift_psnr=30.0, l1=0.2, tv=0.05, tv_target=0.1),
        run("b", shift_psnr=25.0, shift_psnr_crop=28.0, ssim=0.5),
    ]
    (cell,) = scatter_panel(runs, STYLES).cells
    assert set(cell.figures) == {
        "val/l1|val/shift_psnr", "tv_ratio|val/shift_psnr", "val/ssim|val/shift_psnr", "val/ssim|val/shift_psnr_crop",
    }  # fmt: skip
    assert cell.figures["tv_ratio|val/shift_psnr"].data[1].x == (0.5,)
    assert not scatter_panel([run("a", l1=0.2)], STYLES).cells


def test_the_scatter_opens_on_what_most_runs_have_and_a_constant_output_is_no_part_of_the_front():
    runs = [
        run("a", accuracy=0.9, consistency=0.9),
        run("b", l1=0.2, shift_psnr=25.0, shift_psnr_crop_worst_shift=21.0),
        run("<c>", l1=0.1, shift_psnr=100.0, shift_psnr_crop_worst_shift=100.0, output_spread=0.001),
    ]
    panel = scatter_panel(runs, STYLES)
    assert panel.opens_on == ("val/l1", "val/shift_psnr_crop_worst_shift")
    front, *points = panel.cells[0].figures["|".join(panel.opens_on)].data
    assert (front.x, front.y) == ((0.2,), (21.0,))  # by hand: the other one would beat it in both
    assert [each.x for each in points] == [(0.2,), (0.1,)]
    assert points[1].text == ("constant output",)


def test_corruptions_and_their_mean():
    measured = {
        "corruptions": {
            "severities": [1, 2],
            "decibels": {"noise": [30, 20], "fog": [20, None]},
            "relative": {"noise": 0.5},
        }
    }
    panel = corruption_panel([run("a", measured)], STYLES)
    assert panel.cells[0].figures[""].data[0].y == (25, 20)
    assert panel.cells[0].figures["fog"].data[0].y == (20, None)
    assert panel.table[1] == [["noise", "0.50"], ["fog", "–"]]


def test_the_other_figures_hold_a_trace_a_run():
    measured = measurements()
    means = image_means(measured["shift_psnr"]["circular"])
    notes = {name: dict.fromkeys(means, "note") for name in "ab"}
    boxes = image_boxes({"a": means, "b": means}, notes, STYLES)
    assert list(boxes.data[1].y) == list(means.values())
    layers = run_lines({"a": {"one": 0.1, "<2>": None}, "b": {"<2>": 0.3}}, STYLES, "", "")
    assert (layers.data[0].y, layers.data[1].x, layers.data[1].y) == ((0.1, None), ("&lt;2&gt;",), (0.3,))
