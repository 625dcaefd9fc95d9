"""The checks that run on an NVIDIA card, here on the simulator: three models' routers, projections and blocks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest

from metal.simulator.device import SimulatedDevice
from tools.metal_on_cuda import values
from tools.metal_on_cuda.models import SMALL, Model

from .simulation import needs_compiler

pytestmark = needs_compiler


class KeepingSimulator(SimulatedDevice):
    @contextlib.contextmanager
    def keeping(self, arrays: list[np.ndarray]) -> Iterator[None]:
        yield


@pytest.mark.parametrize("model", SMALL, ids=lambda model: model.name)
def test_models_at_small_sizes(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    assert values.check(KeepingSimulator(), (model,), (1, 7)), capsys.readouterr().out


def test_a_wrong_value_is_found(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "run_block", lambda *_: np.ones(SMALL[0].hidden_size))
    assert not values.check(KeepingSimulator(), SMALL[:1], (1,))
    assert "block, decode" in next(line for line in capsys.readouterr().out.splitlines() if "WRONG" in line)
