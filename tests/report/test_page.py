"""The page that compares runs: what it says, that it needs nothing else, and its size."""

import html
import json
import re
from html.parser import HTMLParser

import pytest

from genstab.errors import InputError
from genstab.report.page import build_page, write_page
from genstab.report.runs import read_runs
from tests.helpers.run_folder import make_run


class Page(HTMLParser):
    """The tables and the text of a page, scripts and styles left out."""

    def __init__(self, page):
        super().__init__()
        self.tables, self.text, self.tags, self.cell = [], [], [], None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.cell = []

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append(" ".join("".join(self.cell).split()))
            self.cell = None

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] not in ("script", "style"):
            self.text.append(data)
        if self.cell is not None:
            self.cell.append(data)


def compare(*folders):
    return build_page(read_runs(folders))


def data_of(page):
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)[1])


def test_the_table_has_units_best_values_and_what_is_missing(tmp_path):
    first = make_run(tmp_path / "first", 1, l1=0.25, psnr=15.04, shift_psnr=30, ssim=None)
    second = make_run(tmp_path / "second", 2, l1=0.2, psnr=15, shift_psnr=33.333, ssim=float("nan"), sharpness=0.5)
    page = compare(first, second)
    (_, headings, *rows), *_ = Page(page).tables
    table = {row[0]: dict(zip(headings[1:], row[1:], strict=True)) for row in rows}
    assert table["first"]["L1"] == "0.250"
    assert table["first"]["PSNR dB"] == "15.0"
    assert table["second"]["circular dB"] == "33.3"
    assert (table["first"]["sharpness"], table["second"]["sharpness"]) == ("–", "0.5000")
    assert table["first"]["parameters million"] == "1.50"
    assert "SSIM" not in headings  # no run has it
    assert not {"noise floor dB", "accuracy"} & set(headings)
    assert "Not measured: sharpness" in page
    best = re.findall(r'class="number best" data-value="([^"]*)"', page)
    assert {"0.2", "15.04", "33.333"} <= set(best)
    assert not {"0.25", "15", "30", "0.5"} & set(best)


def test_names_cannot_become_markup(tmp_path):
    evil = '</script><script>alert("x")</script>&amp;'
    page = compare(make_run(tmp_path / "a", name=evil), make_run(tmp_path / "b", 1, name="<b>b</b>"))
    assert evil not in page
    assert "<b>b</b>" not in page
    parsed = Page(page)
    assert [tag for tag, _ in parsed.tags].count("script") == 3
    assert f"# {evil}" not in page
    assert parsed.tables[0][2][0] == evil  # and yet it is shown as it is
    figures = data_of(page)["panels"]["shifts"]["figures"][0]["circular"]["data"]
    assert html.unescape(figures[1]["name"]) == "</script><scri…/script>&amp;"
    assert "<" not in figures[1]["name"]


def test_a_run_with_a_bare_summary_gets_a_page_that_names_what_is_missing(tmp_path):
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "summary.json").write_text("{}")
    parsed = Page(compare(folder))
    text = " ".join(parsed.text)
    for sentence in (
        "No run has a metric in its summary.", "No run has both a quality and a shift PSNR.",
        "No run has measurements per shift.", "No run has a shift map.", "No run has feature distances; genstab",
        "No run has corruptions; genstab measure", "No run has slider frames.", "There is only one run.",
        "Not measured: shift PSNR per shift and per image; shift map", "no measurements.json",
        "summary.json has no verdict, no config, no versions",
    ):  # fmt: skip
        assert sentence in text
    assert not [tag for tag, _ in parsed.tags if tag in ("canvas", "select")]
    sections = [attributes["id"] for tag, attributes in parsed.tags if tag == "section"]
    assert sections == ["runs", "options", "missing"]  # no empty boxes
    assert [link["href"] for tag, link in parsed.tags if tag == "a"] == [f"#{each}" for each in sections]


def test_a_constant_output_is_never_the_best(tmp_path):
    same = {"l1": 0.1, "shift_psnr": 100.0, "shift_psnr_crop": 100.0, "output_spread": 0.0}
    others = [make_run(tmp_path / name, i, l1=0.2 + i, shift_psnr=30.0 + i) for i, name in enumerate("ab")]
    page = compare(make_run(tmp_path / "still", 3, **same), *others)
    best = re.findall(r'class="number best" data-value="([^"]*)"', page)
    assert {"0.2", "31.0"} <= set(best)
    assert not {"0.1", "100.0", "0.0"} & set(best)
    assert "never of a constant output (still)" in page


def test_a_classifier_has_its_own_words_and_no_empty_sections(tmp_path):
    folder = tmp_path / "classifier"
    folder.mkdir()
    numbers = {"val/consistency": 0.9, "val/consistency_roll": 0.95, "val/accuracy": 0.8}
    (folder / "summary.json").write_text(json.dumps({**numbers, "config": {"features": None}}))
    parsed = Page(compare(folder))
    text = " ".join(" ".join(parsed.text).split())
    assert "Consistency is the share of pairs of shifts of an image" in text
    assert "Not for classifiers, whose outputs are not images: shift PSNR, quality, slider or flicker strip" in text
    assert "Switched off: feature distance" in text
    assert "decibels" not in text
    sections = [attributes["id"] for tag, attributes in parsed.tags if tag == "section"]
    assert sections == ["runs", "scatter", "options", "missing"]


def test_what_a_measurement_could_not_do_is_said(tmp_path):
    folder = tmp_path / "noted"
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps({"notes": ["skipped: cannot read 3.png: the file is empty"]}))
    assert "skipped: cannot read 3.png: the file is empty" in " ".join(Page(compare(folder)).text)


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    page = compare(make_run(tmp_path / "a"), make_run(tmp_path / "b", 1))
    own = page.replace(re.search(r"<script>.*?</script>", page, re.DOTALL)[0], "")  # plotly.js names many addresses
    assert not re.findall(r"https?://", own)
    for tag, attributes in Page(own).tags:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("data:", "#")), (tag, attributes)
    assert "default-src 'none'" in own
    assert page.count("Content-Security-Policy") == 1


def test_only_options_that_differ_are_shown_and_the_folder_is_none_of_them(tmp_path):
    parsed = Page(compare(*(make_run(tmp_path / f"{i}", i, name=f"run{i}") for i in range(3))))
    (table,) = [table for table in parsed.tables if table[0][0] == "option"]
    assert table[1:] == [["antialias.filter", "filter0", "filter1", "filter2"]]
    assert "torch 2.13.0, genstab 0.1.0" in " ".join("".join(parsed.text).split())


def test_a_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    make_run(tmp_path / "run")
    output = tmp_path / "new/folder/report.html"
    write_page(read_runs([tmp_path / "run"]), output, title="A & B")
    assert "<title>A &amp; B</title>" in output.read_text()
    with pytest.raises(InputError, match=r"output=.*new cannot be written: Is a directory"):
        write_page(read_runs([tmp_path / "run"]), tmp_path / "new")
    before = output.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(InputError, match="cannot be written: disk full"):
        write_page(read_runs([tmp_path / "run"]), output)
    assert output.read_bytes() == before
    assert [path.name for path in output.parent.iterdir()] == ["report.html"]
    with pytest.raises(InputError, match=r"output=/dev/null/x.html cannot be written: "):
        write_page(read_runs([tmp_path / "run"]), "/dev/null/x.html")


@pytest.mark.slow
def test_six_runs_of_noise_at_256_pixels_stay_under_15_megabytes(tmp_path):
    for i in range(6):
        make_run(tmp_path / f"{i}", i, size=256, flicker=255)
    assert len(compare(tmp_path).encode()) < 15e6


@pytest.mark.slow
def test_more_runs_get_smaller_pictures(tmp_path):
    runs = [make_run(tmp_path / f"{i}", i, size=160) for i in range(7)]
    slides = [data_of(compare(*some))["slides"] for some in (runs[:6], runs)]
    assert [(each[0]["width"], each[-1]["width"], len(each)) for each in slides] == [(128, 128, 7), (118, 118, 8)]
