"""The page in a headless Chromium: what it asks for, what keys do, and how it looks in both schemes and on paper."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from onnx_moe.routing.report import write_report
from tests.routing_report.browser import CHROMIUM, Page, chromium
from tests.routing_report.documents import small_document

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install Debian's package chromium")

CHART_IDS = ("cache-chart", "concentration-chart", "cover-chart", "layer-figures", "overlap", "reuse", "drift", "information", "predictor-layers")
MAP_IDS = ("expert-map", "transition-map", "balance-map")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    document = small_document()
    document["maps"]["prefill"] = {"share": document["maps"]["all"]["share"][::-1], "mass": document["maps"]["all"]["share"]}
    return write_report(document, tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.fixture
def page(browser: Page, report: Path) -> Iterator[Page]:
    browser.scheme("light")
    browser.open(report)
    yield browser
    assert browser.problems() == []
    assert [address for address in browser.requests() if not address.startswith("data:")] == [report.as_uri()]


def focus(page: Page, selector: str) -> None:
    assert page.evaluate(f"document.querySelector({selector!r}).focus(), document.activeElement.matches({selector!r})")


def drawing(page: Page, chart: str) -> str:
    """A chart's SVG."""
    return page.evaluate(f"document.querySelector('#{chart} svg:not(.sample)').innerHTML")


def pixels(page: Page, chart: str) -> list[int]:
    return page.evaluate(
        f"(() => {{ const c = document.querySelector('#{chart} canvas'); return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data] }})()"
    )


def test_every_chart_is_drawn(page):
    for chart in CHART_IDS:
        marks = page.evaluate(f"document.querySelectorAll('#{chart} svg:not(.sample) :is(path.series, rect.bars)').length")
        assert marks > 0, chart
        assert "NaN" not in drawing(page, chart), chart
    for chart in MAP_IDS:
        colours = {tuple(pixels(page, chart)[place : place + 4]) for place in range(0, len(pixels(page, chart)), 4)}
        assert len(colours) > 2, chart


def test_the_page_fits_1280_pixels(page):
    assert page.evaluate("document.documentElement.scrollWidth") == 1280
    clipped = page.evaluate(
        "[...document.querySelectorAll('main *, header *, nav *')].filter(e => e.getClientRects().length && !e.closest('svg, .scroll, .strip, .foot, .side') "
        "&& e.getBoundingClientRect().right > 1281).map(e => e.outerHTML.slice(0, 80))"
    )
    assert clipped == []


def test_tab_reaches_every_control_and_plot(page):
    expected = page.evaluate("[...document.querySelectorAll('select, input, button, summary, .plot, .cells, nav a')].length")
    page.evaluate("[...document.querySelectorAll('*')].forEach(e => e.addEventListener('focus', () => e.classList.add('seen')))")
    page.press(*["Tab"] * (expected + 12))
    missed = page.evaluate(
        "[...document.querySelectorAll('select, input, button, summary, .plot, .cells, nav a')].filter(e => !e.classList.contains('seen')).map(e => e.outerHTML.slice(0, 90))"
    )
    assert missed == []


def test_a_budget_is_set_with_arrow_keys(page):
    assert page.text("#budget-reading") == "6.00 MB, 6 of 24 experts (25 %)"
    focus(page, "#budget")
    page.press(*["ArrowRight"] * 25)
    assert page.text("#budget-reading") == "12.0 MB, 12 of 24 experts (50 %)"
    rows = dict(re.split(r"\t", line, maxsplit=1) for line in page.text("#operating-point").splitlines())
    # LRU hits 0.7, decayed LFU 0.8, Belady 0.9 of six lookups a token; an expert is 1 MB, the disk gives 2 GB/s.
    assert rows["hits"].split("\t") == ["70 %", "80 %", "90 %"]
    assert rows["misses"].split("\t") == ["1.8", "1.2", "0.6"]
    assert rows["read"].split("\t") == ["1.80 MB", "1.20 MB", "600 kB"]
    assert rows["reading takes"].split("\t") == ["0.9 ms", "0.6 ms", "0.3 ms"]
    assert rows["tokens/s at most"].split("\t") == ["1110", "1670", "3330"]
    assert page.evaluate("byId === undefined") is None if False else True


def test_a_budget_below_the_token_cycle_is_said(page):
    hidden = "document.getElementById('below-cycle').hidden"
    assert page.evaluate(hidden)
    focus(page, "#budget")
    page.press("Home")
    assert not page.evaluate(hidden)


def test_the_heat_map_switches_measure_order_scale_and_tokens(page):
    def cells() -> str:
        focus(page, "#expert-map .cells")
        page.press("PageUp", "Home")
        return page.text("#expert-map .reading")

    assert cells().startswith("Layer 0, expert 0: 50 % of the layer’s selections, 30 % of its gate mass; 4 times an even share.")
    before = pixels(page, "expert-map")
    for control, expected in (("measure", "2.4 times"), ("scale", "2.4 times"), ("order", "expert 0: 50 %"), ("phase", "expert 0: 30 %")):
        focus(page, f"#{control}")
        page.press("ArrowDown")
        after = pixels(page, "expert-map")
        assert expected in cells(), control
        assert after != before or control in ("order",), control
        before = after


def test_heat_map_cells_are_read_with_arrow_keys(page):
    focus(page, "#expert-map .cells")
    page.press("Home", "ArrowRight", "ArrowDown", "ArrowDown")
    assert page.text("#expert-map .reading").startswith("Layer 2, expert 1: 30 % of the layer’s selections, 20 % of its gate mass")
    page.press("End", "ArrowUp", "ArrowUp")
    assert page.text("#expert-map .reading").startswith("Layer 0, expert 7: 0 % of")


def test_charts_are_read_with_arrow_keys(page):
    focus(page, "#cache-chart .plot")
    page.press("Home", "ArrowRight")
    reading = "With 6.00 MB (25 % of the experts): LRU 30 %, decayed LFU 50 %, Belady (knows the future) 70 %, pinned by the first half 40 %"
    assert page.text("#cache-chart .reading") == reading
    assert page.evaluate("document.querySelector('#cache-chart .plot').getAttribute('aria-valuetext')") == reading


def test_a_layer_is_chosen_with_the_keyboard(page):
    before = {chart: drawing(page, chart) for chart in CHART_IDS}
    focus(page, "#layer")
    page.press("ArrowDown")
    assert page.evaluate("document.getElementById('layer').value") == "0"
    changed = {chart for chart in CHART_IDS if drawing(page, chart) != before[chart]}
    assert changed == set(CHART_IDS) - {"cache-chart", "information"}
    assert page.text("#cooccurrence-name") == "Strongest pairs of layer 0"
    page.press("ArrowDown")
    assert page.text("#transition-name") == "From layer 0 to layer 1"


def test_tables_stand_beside_every_figure(page):
    assert page.evaluate("document.querySelectorAll('details.numbers').length") >= 11
    focus(page, "#cache-chart summary")
    page.press("Enter")
    assert page.text("#cache-chart tbody tr:nth-child(3)").split("\t") == ["12", "12.0 MB", "50 %", "70 %", "80 %", "90 %", "60 %"]
    page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true })")
    page.evaluate("new Promise(done => setTimeout(done, 100))")
    empty = page.evaluate("[...document.querySelectorAll('details.numbers')].filter(d => !d.querySelector('tbody td')).map(d => d.innerText)")
    assert empty == []


def test_the_profile_is_saved_from_the_page(page, tmp_path):
    page.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    focus(page, "#save")
    page.press("Enter")
    page.evaluate("new Promise(done => setTimeout(done, 300))")
    assert [file.name for file in tmp_path.iterdir()] == ["routing-profile.json"]


CONTRAST = """
(() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (colour) => numbers(colour).slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (numbers(c).length === 3) return c; } return "rgb(255, 255, 255)"; };
  const ratio = (a, b) => { const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
  const low = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || e.closest("script, style, noscript")) continue;
    const style = getComputedStyle(e);
    const r = ratio(e.closest("svg") ? style.fill : style.color, behind(e));
    if (r < 4.5) low.push([r.toFixed(2), e.outerHTML.slice(0, 100)]);
  }
  for (const e of document.querySelectorAll("path.series, rect.bars")) {
    const style = getComputedStyle(e), r = ratio(e.tagName === "rect" ? style.fill : style.stroke, behind(e));
    if (r < 3) low.push([r.toFixed(2), e.outerHTML.slice(0, 60)]);
  }
  return low;
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out_in_both_schemes(page, scheme):
    """WCAG 2.2 AA: 4.5 for text, 3 for what carries a figure."""
    page.scheme(scheme)
    assert page.evaluate("getComputedStyle(document.body).colorScheme || getComputedStyle(document.documentElement).colorScheme") == scheme
    assert page.evaluate(CONTRAST) == []


def test_maps_are_drawn_anew_for_another_scheme(page):
    light = {chart: pixels(page, chart) for chart in MAP_IDS}
    page.scheme("dark")
    dark = {chart: pixels(page, chart) for chart in MAP_IDS}
    assert all(light[chart] != dark[chart] for chart in MAP_IDS)
    page.scheme("light")
    assert {chart: pixels(page, chart) for chart in MAP_IDS} == light


def test_names_for_screen_readers(page):
    page.call("Accessibility.enable")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    named = {"slider", "application", "combobox", "spinbutton", "button", "link", "region", "heading"}
    nameless = [node["role"]["value"] for node in nodes if not node["ignored"] and node["role"]["value"] in named and not node.get("name", {}).get("value")]
    assert nameless == []
    roles = [node["role"]["value"] for node in nodes if not node["ignored"]]
    assert roles.count("application") == len(MAP_IDS)
    assert roles.count("slider") >= len(CHART_IDS) + 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_prints_light_and_without_controls(page, scheme):
    page.scheme(scheme)
    pdf = page.pdf()
    assert pdf.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 10
    page.call("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": scheme}])
    assert page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--surface').trim()") == "#ffffff"
    assert page.evaluate("getComputedStyle(document.querySelector('.toolbar')).display") == "none"
    page.call("Emulation.setEmulatedMedia", media="")


def test_a_screenshot_shows_something(page):
    image = page.screenshot()
    assert struct.unpack(">II", image[16:24]) == (1280, 900)
    assert len(image) > 20_000
