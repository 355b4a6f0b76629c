"""The registry of metrics: complete, consistent, and all that a new metric needs to be seen everywhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from genstab.errors import InputError
from genstab.evaluation import verdict
from genstab.loggers.wandb_tables import tables
from genstab.metrics import registry
from genstab.metrics.registry import GROUPS, Metric, best_ends, metric_of, metrics, register
from genstab.report.page import build_page
from genstab.report.pareto import pareto_picture
from genstab.report.runs import Run
from genstab.report.seeds import options_among, options_table
from genstab.report.table import results_table
from tests.helpers.key_list import key_list

PACKAGE = Path(__file__).parents[2] / "genstab"
TOY = Metric(
    "val/toy", "toy distance", "a metric of this test", unit="furlongs", better="min", digits=2, in_training=True,
    per_image=True, brief=True, pareto=3,
)  # fmt: skip
RUNS = [
    Run(
        name, Path(name), {"val/toy": toy, "val/shift_psnr": 30.0, "val/shift_psnr_crop": crop, "tv_ratio": 1.0},
        {"quality": {"images": ["first"], "toy": [toy]}},
    )
    for name, toy, crop in (("near", 0.123, 31.0), ("far", 4.567, 25.0))
]  # fmt: skip


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(registry, "_METRICS", dict(registry._METRICS))
    register(TOY)
    return TOY


def test_a_new_metric_is_in_the_terminals_table(toy):
    console = Console(width=100)
    with console.capture() as captured:
        console.print(results_table(RUNS[1].summary, "run"))
    assert re.search(r"toy distance +│ 4\.567 +│ furlongs", captured.get())


def test_a_new_metric_is_on_the_page_in_its_table_its_scatter_and_its_images(toy):
    page = build_page(RUNS)
    assert re.search(r'toy distance <span class="unit">furlongs</span>', page)
    assert re.search(r'class="number best" data-value="0.123">0.12<', page)  # less is better
    assert re.search('<option value="val/toy"( selected)?>toy distance, furlongs</option>', page)
    assert '"val/toy|val/shift_psnr_crop":' in page
    circular = {"images": ["first"], "shifts": [[0, 1]], "decibels": [[30.0]]}
    run = Run("run", Path("run"), {}, {**RUNS[0].measurements, "shift_psnr": {"circular": circular}})
    assert "first: 30.0 dB, toy distance 0.12 furlongs" in build_page([run])


def test_a_new_metric_is_in_the_markdown_table_and_on_the_pareto_plot(toy):
    options = options_among(RUNS)
    assert options_table(options).splitlines()[2:] == [
        "| near | 1 | 30.0 | 31.0 | 0.12 |",
        "| far | 1 | 30.0 | 25.0 | 4.57 |",
    ]
    assert "| toy distance, furlongs |" in options_table(options)
    assert pareto_picture(options).ndim == 3  # the panel of the toy: these runs have nothing else to draw


def test_a_metric_that_is_not_registered_is_not_on_the_pareto_plot():
    with pytest.raises(InputError, match="no run has both val/shift_psnr_crop and val/swd or tv_ratio: nothing to"):
        pareto_picture(options_among(RUNS))


def test_a_new_metric_is_defined_at_wandb_and_in_its_tables_and_workspace(toy):
    assert best_ends()["val/toy"] == "min"
    columns, rows = tables(RUNS[0].measurements)["per_image"]
    assert [row[columns.index("toy")] for row in rows] == [0.123]
    pytest.importorskip("wandb_workspaces", reason="wandb-workspaces is not installed")
    from genstab.loggers.wandb_workspace import workspace

    sections = {section.name: section.panels for section in workspace("me").sections}
    assert "toy distance, furlongs (lower is better)" in [panel.title for panel in sections["Quality"]]
    assert "toy distance and shift PSNR crop" in [panel.title for panel in sections["Quality against stability"]]


def test_a_new_metric_is_in_the_list_of_keys(toy):
    assert "| `val/toy` | toy distance | furlongs | lower | a metric of this test |" in key_list().splitlines()


def test_and_then_it_is_gone():
    assert "val/toy" not in metrics()
    assert metric_of("val/toy").group == "further"


def test_the_readme_holds_the_list_of_keys():
    readme = (PACKAGE / "metrics/README.md").read_text(encoding="utf-8")
    begin, end = "<!-- keys: begin -->\n", "\n<!-- keys: end -->"
    assert readme.partition(begin)[2].partition(end)[0] == key_list()


def test_every_key_that_the_code_logs_or_judges_is_registered():
    texts = [path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")]
    found = {key for text in texts for key in re.findall(r'"(val/\w+)"', text)}
    pictures = {"val/samples", "val/shift"}
    assert len(found) > 15
    assert found - metrics().keys() - pictures == set()


def test_metrics_are_whole():
    every = metrics()
    assert {metric.group for metric in every.values()} <= set(GROUPS)
    assert len({metric.name for metric in every.values()}) == len(every)
    for key, metric in every.items():
        assert metric.key == key
        assert metric.meaning
        assert metric.meaning[-1] != "."
        assert "|" not in metric.title + metric.meaning  # they stand in tables of Markdown
    groups = [metric.group for metric in every.values()]
    assert groups == sorted(groups, key=GROUPS.index)


def test_verdicts_name_metrics_as_the_registry_does(toy, monkeypatch):
    monkeypatch.setitem(registry._METRICS, "val/tv", Metric("val/tv", "busyness", "", unit="nits", digits=1))
    assert "(busyness 0.3 nits)" in verdict.verdict({"val/shift_psnr_crop": 42.0, "val/tv": 0.31})[1]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"key": "val/l1"}, "the metric val/l1 is registered already"),
        ({"group": "beauty"}, "group='beauty' is not one of shift PSNR, stability, quality, cost, further"),
    ],
)
def test_a_metric_that_cannot_be_is_refused(changed, message):
    with pytest.raises(InputError, match=re.escape(message)):
        register(Metric(**{"key": "val/toy", "heading": "toy", "meaning": "a toy", **changed}))


def test_the_registry_needs_no_torch():
    code = "import sys, genstab.metrics.registry; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
