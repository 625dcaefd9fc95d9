"""The checks that run on an NVIDIA card, here on the simulator: three models' routers, projections and blocks."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from metal.simulator.device import SimulatedDevice
from metal.simulator.operators import Launch
from tools.metal_on_cuda import values
from tools.metal_on_cuda.device import KeepingDevice, build
from tools.metal_on_cuda.models import SMALL, Model

from .simulation import needs_compiler

pytestmark = needs_compiler


#: Those with more than loads and sums; all of them take minutes: python -m tools.metal_on_cuda build.
KERNELS = {"router", "plan_tiles", "expert_few", "expert_grouped"}


@dataclass
class FirstLaunches:
    """Hands on the first launch of each of KERNELS."""

    device: KeepingDevice
    seen: set[str] = field(default_factory=set)

    def run(self, launch: Launch) -> None:
        if launch.kernel in KERNELS - self.seen:
            self.seen.add(launch.kernel)
            self.device.run(launch)

    def keeping(self, arrays: list[np.ndarray]) -> contextlib.AbstractContextManager[None]:
        return self.device.keeping(arrays)


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


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="kernels are compiled for NVIDIA cards by nvcc")
def test_kernels_compile_for_a_card(tmp_path: Path) -> None:
    def calls(device: KeepingDevice) -> None:
        values.check(FirstLaunches(device), SMALL[:1], (8,), values.Report(say=lambda line: None))

    build(tmp_path, calls)
    assert {kernel for kernel in KERNELS if list(tmp_path.glob(f"{kernel}_*.cubin"))} == KERNELS
