"""The page that compares runs, in a real browser: it opens from disk, moves, sorts and fits."""

import base64
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from genstab.report.page import write_page
from genstab.report.runs import read_runs
from tests.helpers.run_folder import make_run, slide_frames

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]

SIZE = 24  # of the moving pictures: shown whole
# By hand: L1 less is better, shift PSNR more. b beats d; a, b and c beat each other in one or the other.
L1 = {"a": 0.3, "b": 0.2, "c": 0.1, "d": 0.25}
SHIFT_PSNR = {"a": 35.0, "b": 30.0, "c": 25.0, "d": 28.0}
FRONT = [(0.3, 35.0), (0.2, 30.0), (0.1, 25.0)]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    for i, name in enumerate(L1):
        make_run(
            folder / name, i, size=SIZE, l1=L1[name], shift_psnr=SHIFT_PSNR[name], ssim=None if name == "b" else i / 9
        )
    make_run(folder / "large", 9, name='<img src="x" onerror="alert(1)">', size=160, flicker=0, l1=None, ssim=None)
    write_page(read_runs([folder]), folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def chromium():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def wrong():
    """What a page said on its console, raised, or asked from elsewhere."""
    return []


@pytest.fixture(autouse=True)
def _nothing_goes_wrong(wrong):
    yield
    assert wrong == []


@pytest.fixture(scope="module")
def opened(chromium, report, wrong):
    """Open the report from disk."""

    def note(request):
        if not request.url.startswith(("file:", "data:", "blob:")):
            wrong.append(request.url)

    def open_page(width, **options):
        page = chromium.new_context(viewport={"width": width, "height": 900}, **options).new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on("request", note)
        page.goto(report.as_uri())
        page.locator(".slider:not([aria-busy])").wait_for()
        return page

    return open_page


@pytest.fixture(scope="module")
def page(opened):
    return opened(1280)


def pixels(page, run):
    """What the canvas of a run shows, or of its source: (H, W, 3)."""
    uri = page.evaluate(
        """run => [...document.querySelectorAll('.slider figure')]
            .find(figure => figure.querySelector('figcaption').textContent.trim().startsWith(run))
            .querySelector('canvas').toDataURL()""",
        run,
    )
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGBA"))


def move(page, to):
    page.evaluate(
        "to => { const range = document.querySelector('input[type=range]'); range.value = to;"
        " range.dispatchEvent(new Event('input')); }",
        to,
    )


def test_it_opens_without_an_error_and_every_chart_is_drawn(page):
    charts = page.evaluate(
        "[...document.querySelectorAll('.chart')].map(chart => chart.querySelectorAll('svg').length)"
    )
    assert len(charts) > 10
    assert 0 not in charts
    assert page.evaluate("document.querySelectorAll('img[onerror]').length") == 0


def test_the_slider_shows_each_frame_of_each_run(page):
    for frame in (0, 1, 7, 15):
        move(page, frame)
        for seed, run in enumerate(L1):
            source, output = slide_frames(SIZE, seed)
            assert np.array_equal(pixels(page, run)[..., :3], output[frame]), (run, frame)
            if run == "a":
                assert np.array_equal(pixels(page, "source of a")[..., :3], source[frame])


def test_the_output_moved_back(page):
    move(page, 5)
    back = page.get_by_label("move the output back")
    back.check()
    _, output = slide_frames(SIZE, 1)
    assert np.array_equal(pixels(page, "b")[..., :3], np.roll(output[5], -5, axis=1))
    # The middle 128 of 160 pixels of a run that doesn't flicker stand still; the rest is left empty.
    _, output = slide_frames(160, 9, flicker=0)
    shown = pixels(page, "<img")
    assert np.array_equal(shown[:, :-5, :3], output[0][16:144, 16:139])
    assert (shown[:, -5:, 3] == 0).all()
    assert page.locator("figcaption", has_text="<img").nth(-1).inner_text().endswith("100.0 dB")
    back.uncheck()


def test_keys_and_the_play_button_move_it(page):
    move(page, 0)
    before = pixels(page, "a")
    slider = page.get_by_label("Input moved right by")
    slider.focus()
    slider.press("ArrowRight")
    assert page.locator("output").inner_text() == "1 px"
    assert not np.array_equal(pixels(page, "a"), before)
    page.get_by_role("button", name="Play").click()
    page.wait_for_timeout(500)  # a frame takes 160 ms
    assert page.locator("output").inner_text() != "1 px"
    page.get_by_role("button", name="Pause").click()
    stopped = page.locator("output").inner_text()
    page.wait_for_timeout(400)
    assert page.locator("output").inner_text() == stopped


def test_the_table_sorts_and_missing_values_stay_last(page):

    def names():
        return [name.strip() for name in page.locator("table.runs tbody th").all_inner_texts()]

    heading = page.get_by_role("button", name="SSIM")
    heading.click()
    assert names()[:3] == ["d", "c", "a"]
    assert page.locator("th[aria-sort=descending]").inner_text().startswith("SSIM")
    heading.click()
    assert [name for name in names() if len(name) == 1] == ["a", "c", "d", "b"]
    assert names()[0] == "a"
    page.get_by_role("button", name="run", exact=True).click()
    assert [name for name in names() if len(name) == 1] == ["a", "b", "c", "d"]


def test_the_front_has_the_right_points_and_follows_the_choice(page):

    def front():
        x, y = page.evaluate(
            "(() => { const [t] = document.querySelector('#scatter .chart').data; return [t.x, t.y] })()"
        )
        return list(zip(x, y, strict=True))

    assert page.evaluate("document.querySelector('#scatter .chart').data.length") == 1 + 5  # L1 would be of 4 runs
    page.locator("#scatter select").first.select_option(label="L1")
    assert sorted(front(), reverse=True) == FRONT
    page.locator("#scatter select").first.select_option(label="SSIM")
    assert (L1["a"], SHIFT_PSNR["a"]) not in front()
    axis = page.evaluate("document.querySelector('#scatter .chart').layout.xaxis")
    assert axis["title"]["text"].startswith("SSIM")
    assert axis["range"][0] < axis["range"][1]  # more is better, to the right; of L1 less is


def test_a_layer_is_chosen(page):
    values = "JSON.stringify(document.querySelector('#features .grid .chart').data[0].z)"
    before = page.evaluate(values)
    page.locator("#features select").select_option("decoder.0")
    assert page.evaluate(values) != before


def test_a_table_wider_than_the_window_says_how_many_columns_are_out_of_sight(opened):
    page = opened(900)
    note = page.locator("#runs .wider")
    headings = page.locator("table.runs thead tr").last.locator("th")
    edge = page.locator("#runs .scroll").bounding_box()
    beyond = [i for i in range(headings.count()) if right_of(headings.nth(i)) > edge["x"] + edge["width"] + 1]
    assert len(beyond) > 1
    assert note.inner_text().startswith(f"Wider than the window: {len(beyond)} more columns to the right")
    page.set_viewport_size({"width": 4000, "height": 900})  # the page itself stays narrow: 1360 px
    page.evaluate("document.body.style.maxWidth = 'none'; dispatchEvent(new Event('resize'))")
    assert not note.is_visible()


def right_of(locator):
    box = locator.bounding_box()
    return box["x"] + box["width"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_follows_the_colour_scheme(opened, scheme):
    page = opened(390, is_mobile=True, has_touch=True, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    ink, paper = page.evaluate(
        "[getComputedStyle(document.querySelector('#scatter .xtick text')).fill,"
        " getComputedStyle(document.body).backgroundColor]"
    )
    ink, paper = (sum(json.loads(colour.replace("rgb(", "[").replace(")", "]"))) for colour in (ink, paper))
    assert (ink < paper) == (scheme == "light")
    assert abs(ink - paper) > 500


def test_on_paper_it_is_light_without_controls_and_nothing_is_cut(opened):
    page = opened(1280, color_scheme="dark")
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")
    page.emulate_media(media="print", color_scheme="dark")
    page.set_viewport_size({"width": 1047, "height": 718})  # A4 across, less its margins
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("#features select").is_visible()
    assert page.locator("#features .chosen").inner_text() == "encoder.0"
    assert page.evaluate("document.documentElement.scrollWidth") <= 1047
    cut = "[...document.querySelectorAll('.chart, .scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    assert page.evaluate(cut) == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")


def test_everything_has_a_name(page):
    unnamed = """[...document.querySelectorAll('img, [role=img], canvas, button, select, input')]
        .filter(e => !e.closest('.js-plotly-plot .plot-container'))
        .filter(e => !(e.ariaLabel || e.alt || e.textContent.trim() || (e.labels && e.labels.length))).length"""
    assert page.evaluate(unnamed) == 0
    assert page.get_by_label("Input moved right by").get_attribute("type") == "range"
