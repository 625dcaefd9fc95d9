"""What stands beside FP4 in a checkpoint: FP8 with scales of each kind, and tensors that change what a weight means."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from onnx_moe.errors import CheckpointError
from onnx_moe.export.checkpoint import export_checkpoint
from onnx_moe.export.checkpoint.files import open_checkpoint
from onnx_moe.export.checkpoint.layouts import find_weights

from .folders import load_tensors, rewrite_config, save_tensors, write_checkpoint


def fp8(*shape: int) -> torch.Tensor:
    return (8 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(torch.float8_e4m3fn)


def scales(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 0.5


def write(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file(tensors, folder / "model.safetensors")
    return folder


#: Of a matrix [200, 288]: shape of the scales → rows and columns that share one.
KINDS = {
    (2, 3): (128, 128),  # DeepSeek-V3; the last blocks have 72 rows and 32 columns
    (200, 9): (1, 32),  # MXFP8
    (200, 1): (1, 288),
    (200,): (1, 288),
    (1, 1): (200, 288),
    (1,): (200, 288),
    (): (200, 288),
}


@pytest.mark.parametrize("shape", KINDS)
@pytest.mark.parametrize("suffix", [".weight_scale_inv", ".weight_scale", ".scale"])
def test_fp8(shape: tuple[int, ...], suffix: str, tmp_path: Path) -> None:
    matrix, scale = fp8(200, 288), scales(*shape)
    folder = write(tmp_path / "checkpoint", {"a.weight": matrix, f"a{suffix}": scale})
    rows, columns = KINDS[shape]
    expected = matrix.float()
    for row in range(200):
        for column in range(0, 288, 32):
            flat = scale.reshape(-1, -(-288 // columns))
            expected[row, column : column + 32] *= flat[row // rows, column // columns]
    with open_checkpoint(str(folder)) as files:
        weights, layouts = find_weights(files.tensors)
        assert layouts == {"FP8"}
        assert torch.equal(weights["a.weight"].read(files), expected)
        assert torch.equal(weights["a.weight"].read(files, range(120, 140)), expected[120:140])


@pytest.mark.parametrize("shape", [(3, 3), (2,), (2, 3, 1), (200, 4)])
def test_scales_of_fp8_that_do_not_fit(shape: tuple[int, ...], tmp_path: Path) -> None:
    folder = write(tmp_path / "checkpoint", {"a.weight": fp8(200, 288), "a.weight_scale": scales(*shape)})
    with (
        open_checkpoint(str(folder)) as files,
        pytest.raises(CheckpointError, match=r"a\.weight_scale has shape .*which makes no scales for each block"),
    ):
        find_weights(files.tensors)


def test_a_factor_that_no_layout_has(tmp_path: Path) -> None:
    """ModelOpt's AWQ divides the input of each product by numbers of its own: without them the weight is another."""
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    rewrite_config(checkpoint, quantization_config={"quant_method": "fp8"})
    tensors = load_tensors(checkpoint)
    name = "model.layers.0.self_attn.q_proj"
    tensors[f"{name}.weight"] = fp8(*tensors[f"{name}.weight"].shape)
    tensors |= {f"{name}.weight_scale": scales(1), f"{name}.pre_quant_scale": scales(128)}
    save_tensors(checkpoint, tensors)
    with pytest.raises(CheckpointError, match=r"q_proj\.pre_quant_scale belongs to .*no layout .* has a pre_quant"):
        export_checkpoint(checkpoint, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
