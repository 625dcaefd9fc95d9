"""What the accuracy benchmark makes of its measurements: shares with intervals, and parts of a page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.accuracy_text import Cost
from bench.page import table, write_measured


def cost(own: float, noise: float) -> Cost:
    """Original losses around 2, round to nearest 0.1 above them, this way `own` above them."""
    random = np.random.default_rng(0)
    original = 2 + 0.3 * random.standard_normal(200)
    baseline = original + 0.1 + noise * random.standard_normal(200)
    return Cost("any", original + own + noise * random.standard_normal(200), baseline, original, 0.1)


@pytest.mark.parametrize(("own", "share"), [(0.1, 0), (0.06, 40), (0.0, 100)])
def test_share_of_the_loss_that_is_removed(own: float, share: float) -> None:
    exact = cost(own, noise=0).removed
    assert (exact.low, exact.mean, exact.high) == pytest.approx((share, share, share))
    noisy = cost(own, noise=0.1).removed
    assert noisy.low < share < noisy.high
    assert 10 < noisy.high - noisy.low < 60


def test_increase_of_perplexity() -> None:
    increase = cost(0.06, noise=0).increase
    assert increase.mean == pytest.approx(100 * np.expm1(0.06))
    assert increase.low == pytest.approx(increase.high)


def test_a_part_of_a_page_is_written_anew(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("kept\n<!-- measured: a -->\nold a\n<!-- measured: b -->\nold b\n", encoding="utf-8")
    write_measured(page, "new a\n", "a")
    assert page.read_text() == "kept\n<!-- measured: a -->\nnew a\n<!-- measured: b -->\nold b\n"
    write_measured(page, "new b\n", "b")
    write_measured(page, "c\n", "c")
    expected = "<!-- measured: a -->\nnew a\n<!-- measured: b -->\nnew b\n<!-- measured: c -->\nc\n"
    assert page.read_text() == "kept\n" + expected


def test_a_table() -> None:
    assert table(("", "x"), [["a", "1"]]) == "|  | x |\n| --- | ---: |\n| a | 1 |\n"
