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
from tools.metal_on_cuda import bandwidth, values
from tools.metal_on_cuda.device import KeepingDevice, build
from tools.metal_on_cuda.models import SMALL, Model

from .simulation import needs_compiler

pytestmark = needs_compiler


KERNELS = {
    "router",
    "count_assignments",
    "plan_tiles",
    "scatter_assignments",
    "expert_decode",
    "expert_decode_combined",
    "expert_few",
    "expert_grouped",
    "combine",
}


@dataclass
class FirstLaunches:
    """Hands on a kernel's first launch only."""

    device: KeepingDevice
    seen: set[str] = field(default_factory=set)

    def run(self, launch: Launch) -> None:
        if launch.kernel not in self.seen:
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
def test_every_kernel_compiles_for_a_card(tmp_path: Path) -> None:
    """The first launch of each: twenty seconds."""

    def calls(device: KeepingDevice) -> None:
        first = FirstLaunches(device)
        values.check(first, SMALL[:1], (8, 1), values.Report(say=lambda line: None))
        bandwidth.compile_for(first)

    build(tmp_path, calls)
    compiled = {path.name.split("_half_")[0].split("_float_")[0] for path in tmp_path.glob("*.cubin")}
    assert compiled >= KERNELS
