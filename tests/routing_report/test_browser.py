"""The page in a headless Chromium: what it asks for, what keys do, and how it looks in both schemes and on paper."""

from __future__ import annotations

import io
import re
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from onnx_moe.routing import Call, LayerCounters, RoutingTrace, profile_counters
from onnx_moe.routing.profile import RoutingProfile, profile_trace
from onnx_moe.routing.report import write_report
from onnx_moe.routing.report.numbers import byte_size, percent
from onnx_moe.routing.trace import PREFILL
from tests.routing_report.browser import CHROMIUM, Page, chromium
from tests.routing_report.documents import small_document
from tests.routing_report.raw_trace import trace

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install Debian's package chromium")

CHART_IDS = (
    "cache-chart",
    "concentration-chart",
    "cover-chart",
    "layer-figures",
    "overlap",
    "reuse",
    "drift",
    "information",
    "predictor-layers",
)
MAP_IDS = ("expert-map", "transition-map", "balance-map")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    document = small_document()
    document["maps"]["prefill"] = {
        "share": document["maps"]["all"]["share"][::-1],
        "mass": document["maps"]["all"]["share"],
    }
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


def picture(page: Page, chart: str) -> str:
    """A heat map's canvas as an address that holds its pixels."""
    return page.evaluate(f"document.querySelector('#{chart} canvas').toDataURL()")


def elements(page: Page, selector: str, condition: str = "true") -> list[str]:
    """The beginnings of the elements `e` for which a JavaScript condition holds."""
    return page.evaluate(
        f"[...document.querySelectorAll({selector!r})].filter(e => {condition}).map(e => e.outerHTML.slice(0, 100))"
    )


def test_every_chart_is_drawn(page):
    for chart in CHART_IDS:
        marks = page.evaluate(
            f"document.querySelectorAll('#{chart} svg:not(.sample) :is(path.series, rect.bars)').length"
        )
        assert marks > 0, chart
        assert "NaN" not in drawing(page, chart), chart
    for chart in MAP_IDS:
        image = "c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer"
        canvas = f"document.querySelector('#{chart} canvas')"
        assert page.evaluate(f"(c => new Set(new Uint32Array({image})).size)({canvas})") > 2, chart


def test_the_page_fits_1280_pixels(page):
    assert page.evaluate("document.documentElement.scrollWidth") == 1280
    scrolled = "e.closest('svg, .scroll')"
    assert elements(page, "body *", f"!{scrolled} && e.getBoundingClientRect().right > 1281") == []
    assert elements(page, ".panel td, .panel th, .bar b", "e.scrollWidth > e.clientWidth + 1 && e.clientWidth") == []


def test_tab_reaches_every_control_and_plot(page):
    page.evaluate("addEventListener('focusin', event => event.target.classList.add('seen'))")
    reachable = "select, input, button, summary, .plot, .cells, nav a"
    page.press(*["Tab"] * (len(elements(page, reachable)) + 10))
    assert elements(page, reachable, "!e.classList.contains('seen')") == []


def test_a_budget_is_set_with_arrow_keys(page):
    assert page.text("#budget-reading") == "6.00 MB, 6 of 24 experts (25 %)"
    focus(page, "#budget")
    before = drawing(page, "cache-chart")
    page.press(*["ArrowRight"] * 25)
    assert "your budget: 6.00 MB" in before
    assert "your budget: 12.0 MB" in drawing(page, "cache-chart")
    assert page.text("#budget-reading") == "12.0 MB, 12 of 24 experts (50 %)"
    rows = dict(re.split(r"\t", line, maxsplit=1) for line in page.text("#operating-point").splitlines())
    # LRU hits 0.7, decayed LFU 0.8, Belady 0.9 of six lookups a token; an expert is 1 MB, the disk gives 2 GB/s.
    assert rows["hits"].split("\t") == ["70 %", "80 %", "90 %"]
    assert rows["misses"].split("\t") == ["1.8", "1.2", "0.6"]
    assert rows["read"].split("\t") == ["1.80 MB", "1.20 MB", "600 kB"]
    assert rows["reading takes"].split("\t") == ["0.9 ms", "0.6 ms", "0.3 ms"]
    assert rows["tokens/s at most"].split("\t") == ["1110", "1670", "3330"]
    focus(page, "#computing")
    page.press("ArrowUp")  # by one: a millisecond of computing before the reading
    rows = dict(re.split(r"\t", line, maxsplit=1) for line in page.text("#operating-point").splitlines())
    assert rows["tokens/s at most"].split("\t") == ["526", "625", "769"]


def test_a_budget_below_the_token_cycle_is_said(page):
    hidden = "document.getElementById('below-cycle').hidden"
    focus(page, "#budget")
    page.press(*["ArrowRight"] * 5)  # 7 of 24 experts: six of a token, and one to read into
    assert page.text("#budget-reading").startswith("7.00 MB")
    assert page.evaluate(hidden)
    page.press("ArrowLeft", "ArrowLeft", "ArrowLeft")
    assert not page.evaluate(hidden)


def test_the_heat_map_switches_measure_order_scale_and_tokens(page):
    def first_cell() -> str:
        focus(page, "#expert-map .cells")
        page.press("PageUp", "Home")
        return page.text("#expert-map .reading")

    expected = "Layer 0, expert 0: 50 % of the layer’s selections, 5.0 % of its gate mass; 4 times an even share."
    assert first_cell() == expected
    steps = {
        "measure": expected.replace("4 times", "0.4 times"),
        "scale": expected.replace("4 times", "0.4 times"),
        "order": "Layer 0, expert 1: 20 % of the layer’s selections, 30 % of its gate mass; 2.4 times an even share.",
        "phase": "Layer 0, expert 0: 5.0 % of the layer’s selections, 50 % of its gate mass; 4 times an even share.",
    }
    for control, cell in steps.items():
        before = picture(page, "expert-map")
        focus(page, f"#{control}")
        page.press("ArrowDown")
        assert first_cell() == cell, control
        assert picture(page, "expert-map") != before, control


def test_the_heat_map_shows_misses(page):
    focus(page, "#measure")
    page.press("End")
    focus(page, "#expert-map .cells")
    page.press("PageUp", "Home", "ArrowRight")
    assert page.text("#expert-map .reading") == (
        "Layer 0, expert 1: 20 % of the layer’s selections, 30 % of its gate mass, 5.0 % of its 0.5 misses a token "
        "(500 kB); 0.4 times an even share."
    )


def test_heat_map_cells_are_read_with_arrow_keys(page):
    focus(page, "#expert-map .cells")
    page.press("Home", "ArrowRight", "ArrowDown", "ArrowDown")
    assert page.text("#expert-map .reading").startswith(
        "Layer 2, expert 1: 30 % of the layer’s selections, 20 % of its gate mass"
    )
    page.press("End", "ArrowUp", "ArrowUp")
    assert page.text("#expert-map .reading").startswith("Layer 0, expert 7: 0 % of")


def test_charts_are_read_with_arrow_keys(page):
    focus(page, "#cache-chart .plot")
    page.press("Home", "ArrowRight")
    rates = "LRU 30 %, decayed LFU 50 %, Belady (knows the future) 70 %, pinned by the warm-up 40 %"
    reading = f"With 6.00 MB (25 % of the experts): {rates}"
    assert page.text("#cache-chart .reading") == reading
    assert page.evaluate("document.querySelector('#cache-chart .plot').getAttribute('aria-valuetext')") == reading


def test_charts_and_maps_are_read_with_the_pointer(page):
    page.point("#cache-chart .plot svg", 0.97, 0.5)
    assert page.text("#cache-chart .reading").startswith("With 24.0 MB (100 % of the experts): LRU 99 %")
    # 6 of 24 MB lie a quarter of the way from 56 to 742 of 760 pixels.
    page.point("#cache-chart .plot svg", (56 + 0.25 * 686) / 760, 0.5)
    assert page.text("#cache-chart .reading").startswith("With 6.00 MB")
    page.point("#expert-map .cells", 3.5 / 8, 2.5 / 3)
    assert page.text("#expert-map .reading").startswith("Layer 2, expert 3: 25 % of the layer’s selections")
    assert page.text("#cache-chart .reading") == ""


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
    focus(page, "#cache-table summary")
    page.press("Enter")
    page.wait("document.querySelector('#cache-table tbody') !== null")
    assert page.text("#cache-table tbody tr:nth-child(3)").split("\t") == [
        "12",
        "12.0 MB",
        "50 %",
        "70 %",
        "80 %",
        "90 %",
        "60 %",
    ]
    page.open_tables()
    assert elements(page, "details.numbers", "!e.querySelector('tbody td')") == []


def test_the_profile_is_saved_from_the_page(page, tmp_path):
    page.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    focus(page, "#save")
    page.press("Enter")
    limit = time.monotonic() + 20
    while [file.name for file in tmp_path.iterdir()] != ["routing-profile.json"]:
        assert time.monotonic() < limit, list(tmp_path.iterdir())
        time.sleep(0.02)
    assert "small" in (tmp_path / "routing-profile.json").read_text()


CONTRAST = Path(__file__).with_name("contrast.js").read_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out_in_both_schemes(page, scheme):
    """WCAG 2.2 AA: 4.5 for text, 3 for what carries a figure."""
    page.scheme(scheme)
    assert (
        page.evaluate(
            "getComputedStyle(document.body).colorScheme || getComputedStyle(document.documentElement).colorScheme"
        )
        == scheme
    )
    assert page.evaluate(CONTRAST) == []


def test_maps_are_drawn_anew_for_another_scheme(page):
    light = {chart: picture(page, chart) for chart in MAP_IDS}
    page.scheme("dark")
    for chart in MAP_IDS:
        page.wait(f"document.querySelector('#{chart} canvas').toDataURL() !== {light[chart]!r}")
    page.scheme("light")
    for chart in MAP_IDS:
        page.wait(f"document.querySelector('#{chart} canvas').toDataURL() === {light[chart]!r}")


def test_scripts_and_sentences_write_numbers_alike(page):
    script = (files("onnx_moe.routing.report") / "templates" / "js" / "dom.js").read_text()
    shares = [0, 1e-6, 0.0004, 0.042, 0.42, 0.994, 0.9951, 0.99996, 1]
    sizes = [999, 1000, 999_600, 5.0e6, 48.94e9, 512e12]
    written = page.evaluate(f"(() => {{ {script}; return [{shares}.map(percent), {sizes}.map(bytes)] }})()")
    assert written == [[percent(share) for share in shares], [byte_size(size) for size in sizes]]


def test_names_for_screen_readers(page):
    page.call("Accessibility.enable")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    named = {"slider", "application", "combobox", "spinbutton", "button", "link", "region", "heading"}
    nameless = [
        node["role"]["value"]
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in named and not node.get("name", {}).get("value")
    ]
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
    """Text and curves in several colours, on the background of the colour scheme."""
    image = page.screenshot(900)
    assert struct.unpack(">II", image[16:24]) == (1280, 900)
    pixels = np.round(255 * imread(io.BytesIO(image))[..., :3]).astype(int)
    colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    background = colours[counts.argmax()]
    scheme = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert (background.mean() < 60) if scheme else (background.mean() > 200)
    ink = (np.abs(pixels - background).sum(-1) > 90).mean()
    assert 0.01 < ink < 0.5
    saturated = colours[(colours.max(1) - colours.min(1) > 80) & (counts > 20)]
    assert len(saturated) >= 3


def counters_alone() -> RoutingProfile:
    """As of a session with onnx_moe.trace = counters."""
    whole = profile_trace(trace()).counts
    layers = [
        LayerCounters(str(n), whole.top_k, *(whole[key][:, n] for key in ("calls", "tokens", "uses", "mass")))
        for n in range(whole.num_layers)
    ]
    return profile_counters(layers)


def counts_only() -> RoutingProfile:
    return replace(profile_trace(trace(), expert_bytes=1_000_000), sample=None)


def prompts_only() -> RoutingProfile:
    return profile_trace(trace().select(trace().phases == PREFILL))


def no_weights() -> RoutingProfile:
    return profile_trace(replace(trace(), weights=None))


def a_silent_layer() -> RoutingProfile:
    return profile_trace(trace().select(trace().layers != 1))


def one_layer_of_two_experts() -> RoutingProfile:
    calls = [Call(0, np.array([[number % 2]], np.int32)) for number in range(40)]
    return profile_trace(RoutingTrace.of_calls(calls, 2, 1))


@pytest.mark.parametrize(
    "make", [counters_alone, counts_only, prompts_only, no_weights, a_silent_layer, one_layer_of_two_experts]
)
def test_a_profile_that_lacks_something_is_shown_without_it(browser, tmp_path, make):
    browser.open(write_report(make().document(), tmp_path / "report.html"))
    browser.open_tables()
    focus(browser, "#layer")
    browser.press("ArrowDown", "ArrowDown")
    browser.open_tables()
    assert browser.problems() == []
    assert not re.search(r"NaN|Infinity|undefined|null", browser.text("body"))
    assert "NaN" not in browser.evaluate("document.body.innerHTML")
