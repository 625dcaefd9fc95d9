"""The host runtime and the kernels inside ONNX Runtime, on a fake Metal device: `onnx_moe.device` = metal."""

from __future__ import annotations

import contextlib
import gc
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import test_fusion
from conformance.cases import ROUTER_CASES, GemmCase, RouterCase, case_id
from conformance.check import check_router, check_values
from conformance.data import Array, GemmInputs, draw_gemm_inputs, draw_router_inputs
from conformance.implementations import ModelImplementation, Outputs, PluginKernel, run_poisoned, session_options
from conformance.oracle import expected_gemm
from conformance.test_gemm import allowed_frobenius
from residency import model as residency_model

import onnx_moe
from onnx_moe import _native
from onnx_moe.diagnosis import diagnose
from onnx_moe.errors import OnnxMoeError

from .plugin import LARGE, Plugin, build_plugin
from .simulation import METAL_GEMM_CASES

pytestmark = pytest.mark.metal

#: Every case but those of the interleaved layout and of a router beyond Metal's limits, which the CPU computes.
METAL_ROUTER_CASES = [case for case in ROUTER_CASES if case.top_k <= 32 and case.num_experts <= 1024]


@pytest.fixture(scope="module")
def plugin() -> Plugin:
    built = build_plugin()
    built.gemm(GemmCase(), draw_gemm_inputs(GemmCase()))  # has the device test itself, before anything is counted
    return built


@pytest.fixture
def simulated(plugin: Plugin) -> Iterator[Plugin]:
    """The plugin on the fake device, whose injected failures end with the test."""
    if not plugin.is_simulated:
        pytest.skip("only the fake device counts and fails as told")
    yield plugin
    plugin.fail_after(-1)
    plugin.lose_device(False)


@pytest.mark.parametrize("case", METAL_GEMM_CASES, ids=case_id)
def test_gemm(plugin: Plugin, case: GemmCase) -> None:
    inputs = draw_gemm_inputs(case)
    check_values(plugin.gemm(case, inputs)["y"], expected_gemm(case, inputs), case.dtype, allowed_frobenius(case))


@pytest.mark.parametrize("case", METAL_ROUTER_CASES, ids=case_id)
def test_router(plugin: Plugin, case: RouterCase) -> None:
    inputs = draw_router_inputs(case)
    check_router(case, inputs, plugin.router(case, inputs))


def fused_model(dtype: str = "float32") -> onnx.ModelProto:
    model = ir.from_proto(test_fusion.block_model(dtype))
    onnx_moe.fuse(model)
    return ir.to_proto(model)


def run_block(plugin: Plugin, model: onnx.ModelProto, x: Array) -> Array:
    outputs = {"y": np.empty((*x.shape[:-1], test_fusion.OUTPUT), x.dtype)}
    return plugin.evaluate(model, {"x": x}, outputs)["y"]


@pytest.mark.parametrize("dtype", list(test_fusion.DTYPES))
@pytest.mark.parametrize("tokens", [1, 3, 40], ids=["decode", "few", "grouped"])
def test_fused_block_gives_the_bytes_of_three_nodes(plugin: Plugin, tokens: int, dtype: str) -> None:
    model = test_fusion.block_model(dtype)
    fused = fused_model(dtype)
    assert [node.op_type for node in fused.graph.node] == ["MoEBlockFP4"]
    rng = np.random.default_rng(tokens)
    x = rng.standard_normal((tokens, test_fusion.HIDDEN)).astype(test_fusion.DTYPES[dtype])
    y = run_block(plugin, fused, x)
    assert y.tobytes() == run_block(plugin, model, x).tobytes()
    cpu = PluginKernel("reference").evaluate(fused, {"x": x}, {"y": np.empty_like(y)})["y"].astype(np.float64)
    bound = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}[dtype]
    assert np.linalg.norm(y - cpu) <= 2 * bound * np.linalg.norm(cpu)


@pytest.mark.parametrize(("tokens", "dispatches"), [(1, 3), (40, 6)])
def test_fused_block_is_one_command_buffer(simulated: Plugin, tokens: int, dispatches: int) -> None:
    fused = fused_model()
    before = simulated.command_buffers(), simulated.dispatches()
    run_block(simulated, fused, np.ones((tokens, test_fusion.HIDDEN), np.float32))
    assert (simulated.command_buffers() - before[0], simulated.dispatches() - before[1]) == (1, dispatches)


def test_runs_leave_no_metal_objects_behind(simulated: Plugin) -> None:
    case = GemmCase(tokens=(40,), num_experts=3, combine=True)
    inputs = draw_gemm_inputs(case)
    simulated.gemm(case, inputs)
    before = simulated.live_objects()
    assert before > 0, "nothing ran on the fake device"
    simulated.gemm(case, inputs)
    assert simulated.live_objects() == before


def test_weights_are_not_copied(simulated: Plugin) -> None:
    case = GemmCase(tokens=(1,), rows=1024, blocks=32, num_experts=4)
    inputs = draw_gemm_inputs(case)
    simulated.gemm(case, inputs)  # the pool's buffers
    before = simulated.allocated()
    simulated.gemm(case, inputs)
    assert simulated.allocated() - before < inputs.weights.nbytes // 8


@pytest.mark.parametrize("macos", ["14", "15"])
def test_weights_are_resident_where_macos_can(simulated: Plugin, macos: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One set for all sessions. A process has one device: another one is asked."""
    monkeypatch.setenv("ONNX_MOE_SIMULATOR_MACOS", macos)
    facts = {"devices_asked_for": 1, "residency_sets": 1 if macos == "15" else 0, "command_buffers": 1}
    assert simulated.facts_in_new_process() == facts


def test_a_model_of_many_layers_is_resident_while_it_is_there(simulated: Plugin) -> None:
    """More nodes than a queue takes residency sets."""
    case = GemmCase(tokens=(1,), slots=1, rows=64, num_experts=1)
    inputs = draw_gemm_inputs(case)
    weights = [inputs.weights + np.uint8(layer) for layer in range(33)]
    gc.collect()
    before = simulated.resident()
    session = onnxruntime.InferenceSession(
        chain_model(inputs, weights).SerializeToString(), simulated.options(), ["CPUExecutionProvider"]
    )
    assert simulated.resident() - before >= sum(array.nbytes for array in weights)
    y = session.run(["y_32"], {"x": inputs.x})[0]
    expected = expected_gemm(case, replace(inputs, weights=weights[-1], expert_ids=np.zeros((1, 1), np.int32)))
    check_values(y, expected, case.dtype, allowed_frobenius(case))
    del session
    gc.collect()
    assert simulated.resident() == before


def chain_model(inputs: GemmInputs, weights: list[Array]) -> onnx.ModelProto:
    """A projection of x for each of `weights`, y_0, y_1 …"""
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    constants = [numpy_helper.from_array(np.zeros((1, 1), np.int32), "ids")]
    constants.append(numpy_helper.from_array(inputs.scales, "scales"))
    constants += [numpy_helper.from_array(array, f"weights_{i}") for i, array in enumerate(weights)]
    nodes = [
        helper.make_node("MoEExpertGemmFP4", ["x", "ids", f"weights_{i}", "scales"], [f"y_{i}"], domain="onnx_moe")
        for i in range(len(weights))
    ]
    kind = onnx.TensorProto.FLOAT
    x = helper.make_tensor_value_info("x", kind, list(inputs.x.shape))
    y = [helper.make_tensor_value_info(f"y_{i}", kind, None) for i in range(len(weights))]
    graph = helper.make_graph(nodes, "chain", [x], y, constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("onnx_moe", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


COPIED = r"the GPU has a copy of \d+ KiB of its weights: Metal does not take them where they lie"
NO_SET = r"its weights are not kept resident: Metal gives no residency set \(no memory for a set\)"
TOO_MANY = "its weights are not kept resident: with the weights before them .* of which the device recommends to keep 0"


@pytest.mark.parametrize(
    ("settings", "remark"),
    [({"NO_RESIDENCY": "1"}, NO_SET), ({"NO_WRAPS": "1", "WORKING_SET": "100000"}, f"{COPIED}.*; {TOO_MANY}")],
    ids=["no residency set", "copied, too many"],
)
def test_weights_that_are_copied_or_not_resident_are_logged(
    simulated: Plugin, settings: dict[str, str], remark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(f"ONNX_MOE_SIMULATOR_{name}", value)
    log = simulated.log_in_new_process()
    assert len(re.findall(f"node 'node_under_test': {remark}", log)) == 2, log  # of two sessions


UNUSABLE = {
    "NO_DEVICE": ("1", "no Metal device answers"),
    "GPU_FAMILY": ("1006", "Metal: Simulated GPU is no GPU of Apple's, or one before the M1"),
    "SIMD_WIDTH": ("64", "runs in simdgroups of 64 threads, but is written for 32"),
    "MOST_BUFFER_BYTES": ("65536", "Metal: Simulated GPU gives no buffer of 262144 bytes; its longest has 65536"),
}


@pytest.mark.parametrize("setting", UNUSABLE)
def test_auto_goes_on_without_a_device_and_says_why(
    simulated: Plugin, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, reason = UNUSABLE[setting]
    monkeypatch.setenv(f"ONNX_MOE_SIMULATOR_{setting}", value)
    log = simulated.on("auto").log_in_new_process()
    assert len(re.findall(f"runs on the CPU: .*{re.escape(reason)}", log)) == 2, log  # once in each of two sessions


@pytest.mark.parametrize("setting", ["NO_DEVICE", "MOST_BUFFER_BYTES"])
def test_metal_is_an_error_without_a_device(simulated: Plugin, setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value, reason = UNUSABLE[setting]
    monkeypatch.setenv(f"ONNX_MOE_SIMULATOR_{setting}", value)
    assert reason in simulated.error_in_new_process()


def test_cpu_does_not_look_for_a_device(simulated: Plugin) -> None:
    assert simulated.on("cpu").facts_in_new_process()["devices_asked_for"] == 0


@pytest.mark.parametrize("mode", ["pagecache", "pool"])
def test_experts_that_are_not_mapped_keep_the_cpu_and_say_so(
    simulated: Plugin, mode: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = residency_model.save(residency_model.Stack(layers=1), tmp_path)
    options = simulated.on("auto").options()
    options.add_session_config_entry("onnx_moe.residency", mode)
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    before = simulated.command_buffers()
    for _ in range(2):
        session.run(None, {"layer0.in": np.ones((512, residency_model.HIDDEN), np.float32)})
    assert simulated.command_buffers() == before
    reason = f"runs on the CPU: expert residency is {mode}, and the device takes experts that are mapped"
    assert capfd.readouterr().err.count(reason) == 1


def test_sizes_that_only_a_call_shows_are_looked_at(simulated: Plugin, capfd: pytest.CaptureFixture[str]) -> None:
    case = RouterCase(gate="absent", num_experts=1056, top_k=4)
    inputs = draw_router_inputs(case)
    check_router(case, inputs, simulated.router(case, inputs))
    reason = "runs on the CPU: the Metal router chooses among at most 1024 experts, not 1056"
    assert capfd.readouterr().err.count(reason) == 1


def test_concurrent_runs_give_the_same_bytes(plugin: Plugin) -> None:
    case = GemmCase(tokens=(5,), rows=34)
    inputs = draw_gemm_inputs(case)
    expected = plugin.gemm(case, inputs)["y"].tobytes()
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: plugin.gemm(case, inputs)["y"].tobytes(), range(8)))
    assert set(results) == {expected}


def test_concurrent_runs_of_one_session_give_the_same_bytes(plugin: Plugin) -> None:
    model = fused_model()
    session = onnxruntime.InferenceSession(model.SerializeToString(), plugin.options(), ["CPUExecutionProvider"])
    xs = [np.random.default_rng(i).standard_normal((i, test_fusion.HIDDEN)).astype(np.float32) for i in (1, 2, 9, 30)]
    expected = [session.run(None, {"x": x})[0].tobytes() for x in xs]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda x: session.run(None, {"x": x})[0].tobytes(), xs * 3))
    assert results == expected * 3


def test_failed_command_buffer_is_an_error_status(simulated: Plugin) -> None:
    inputs = draw_gemm_inputs(GemmCase())
    simulated.fail_after(0)
    with pytest.raises(Exception, match=r"node 'node_under_test': Metal on .*: Caused GPU Hang.*kernels: .*expert_"):
        simulated.gemm(GemmCase(), inputs)
    y = simulated.gemm(GemmCase(), inputs)["y"]  # the next one is well
    check_values(y, expected_gemm(GemmCase(), inputs), "float32", 1e-6)


def test_device_loss_is_an_error_status_for_everybody(simulated: Plugin) -> None:
    inputs = draw_gemm_inputs(GemmCase())
    simulated.lose_device(True)

    def message(_: int) -> str:
        with pytest.raises(Exception, match="Device Removed") as error:
            simulated.gemm(GemmCase(), inputs)
        return str(error.value)

    with ThreadPoolExecutor(4) as pool:
        messages = list(pool.map(message, range(8)))
    assert all("node 'node_under_test'" in text for text in messages)


def test_kernel_that_does_not_compile_names_itself(simulated: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNX_MOE_SIMULATOR_PYTHON", "echo 'error: no such type'; false")
    error = simulated.error_in_new_process()
    assert "node 'node_under_test'" in error
    assert "Metal does not compile" in error
    assert "error: no such type" in error


#: Defects of a compiler: in decode's sums, in the rows of a tile, in its lower half, in the router.
DEFECTS = {
    "decode": "sums[r] = metal::simd_sum(sums[r]) => sums[r] = sums[r]",
    "few rows": "if (a < count) { => if (a < 1) {",
    "grouped": "tile_row < count => tile_row + 8 < count",
    "decode, ": "if (NORMALIZE) { => if (!NORMALIZE) {",
}


@pytest.mark.parametrize("regime", DEFECTS)
def test_auto_leaves_a_device_alone_that_computes_otherwise(
    simulated: Plugin, regime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONNX_MOE_SIMULATOR_MISCOMPILES", DEFECTS[regime])
    log = simulated.on("auto").log_in_new_process()
    assert log.count("node 'node_under_test' runs on the CPU: Simulated GPU, macOS simulated fails its self-test") == 2
    assert re.search(rf"tokens \({regime}.*differs from the CPU's by \S+ of its norm", log)


def test_distrust_is_told_in_full_once_a_session(simulated: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNX_MOE_SIMULATOR_PYTHON", "echo 'error: no such type'; false")
    log = simulated.on("auto").log_in_new_process("block")
    assert log.count("error: no such type") == 1
    assert log.count("runs on the CPU: the device fails its self-test") == 2


def test_metal_refuses_a_device_that_computes_otherwise(simulated: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNX_MOE_SIMULATOR_MISCOMPILES", DEFECTS["decode"])
    error = simulated.error_in_new_process()
    assert re.search(r"onnx_moe.device is 'metal', but Simulated GPU.*self-test.*: use auto or cpu", error)


def test_auto_goes_on_where_kernels_do_not_compile(simulated: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNX_MOE_SIMULATOR_PYTHON", "echo 'error: no such type'; false")
    assert (
        "self-test: Metal does not compile router.metal: error: no such type"
        in simulated.on("auto").log_in_new_process()
    )


def test_expert_id_out_of_range_names_node_and_row(plugin: Plugin) -> None:
    inputs = draw_gemm_inputs(GemmCase())
    ids = inputs.expert_ids.copy()
    ids[3, 1] = 8
    with pytest.raises(Exception, match=r"node '.*': expert_ids holds 8 in row 3, slot 1"):
        plugin.gemm(GemmCase(), replace(inputs, expert_ids=ids))


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (GemmCase(weight_layout="interleaved", rows=32), "weight_layout interleaved is for its kernels alone"),
        (next(c for c in ROUTER_CASES if c.top_k > 32), "the Metal router chooses at most 32 experts"),
    ],
    ids=["interleaved", "router"],
)
def test_fallback_is_logged_once_and_right(
    simulated: Plugin, case: GemmCase | RouterCase, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = simulated.command_buffers()
    if isinstance(case, RouterCase):
        router_inputs = draw_router_inputs(case)
        check_router(case, router_inputs, simulated.router(case, router_inputs))
    else:
        inputs = draw_gemm_inputs(case)
        check_values(simulated.gemm(case, inputs)["y"], expected_gemm(case, inputs), case.dtype, 1e-6)
    assert simulated.command_buffers() == before
    assert capfd.readouterr().err.count(f"runs on the CPU: {reason}") == 1


@pytest.mark.parametrize(
    ("device", "case", "on_gpu"),
    [("auto", GemmCase(), 0), ("auto", LARGE, 1), ("cpu", LARGE, 0), ("metal", GemmCase(), 1)],
    ids=["auto-small", "auto-large", "cpu", "metal"],
)
def test_device_entry_and_size_choose(simulated: Plugin, device: str, case: GemmCase, on_gpu: int) -> None:
    inputs = draw_gemm_inputs(case)
    before = simulated.command_buffers()
    y = simulated.on(device).gemm(case, inputs)["y"]
    assert simulated.command_buffers() - before == on_gpu
    check_values(y, expected_gemm(case, inputs), case.dtype, allowed_frobenius(case))


def test_doctor_tries_every_kernel_on_the_device(simulated: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "library_path", lambda: simulated.library)
    _native.library.cache_clear()
    try:
        diagnosis = diagnose()
    finally:
        _native.library.cache_clear()
    assert dict(diagnosis.facts)["Metal device"] == "Simulated GPU, macOS simulated"
    states = [state for name, state in diagnosis.kernels if name.startswith("metal ")]
    assert states == ["computes correctly"] * 3
    assert not diagnosis.problems


def test_unknown_device_is_an_error(plugin: Plugin) -> None:
    with pytest.raises(Exception, match=r"onnx_moe\.device is 'gpu': use auto, metal or cpu"):
        plugin.on("gpu").gemm(GemmCase(), draw_gemm_inputs(GemmCase()))


def test_a_path_that_is_no_library_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an empty one, which `$(python …)` leaves when it fails: everything would be skipped."""
    monkeypatch.setenv("ONNX_MOE_METAL_PLUGIN", "")
    with pytest.raises(pytest.fail.Exception, match="ONNX_MOE_METAL_PLUGIN is '', which is no file"):
        build_plugin()


def test_a_mac_s_tests_take_the_installed_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONNX_MOE_METAL_PLUGIN", raising=False)
    monkeypatch.setattr("sys.platform", "darwin")
    assert build_plugin().library == onnx_moe.library_path()


def test_a_library_without_metal_says_so() -> None:
    with contextlib.suppress(OnnxMoeError):
        pytest.skip(f"the installed library has Metal: {_native.device()}")

    class Plain(ModelImplementation):
        name = "plain"

        def evaluate(self, model: onnx.ModelProto, feeds: Mapping[str, Array], outputs: Outputs) -> Outputs:
            options = session_options(1)
            onnx_moe.register(options)
            options.add_session_config_entry("onnx_moe.device", "metal")
            return run_poisoned(model, options, feeds, outputs)

    with pytest.raises(Exception, match="this library was built without Metal: use auto or cpu"):
        Plain().gemm(GemmCase(), draw_gemm_inputs(GemmCase()))
