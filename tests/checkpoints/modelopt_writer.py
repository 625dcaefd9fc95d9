"""Writes checkpoints with ModelOpt: python -m tests.checkpoints.modelopt_writer FOLDER CONFIGURATION...

In a process of its own, because ModelOpt changes classes of Torch and transformers when it is imported.
"""

from __future__ import annotations

import sys
from pathlib import Path

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.export import export_hf_checkpoint

from tests.checkpoints.folders import random_model


def write(folder: Path, configuration: str) -> None:
    """A quantised model of one layer, written by ModelOpt's own exporter into `folder`."""
    model = random_model("qwen3_moe", num_experts=4)
    model.config.architectures = [type(model).__name__]
    tokens = torch.randint(3, 97, (4, 32), generator=torch.Generator().manual_seed(0))
    mtq.quantize(model, getattr(mtq, configuration), forward_loop=lambda calibrated: calibrated(input_ids=tokens))
    with torch.inference_mode():
        export_hf_checkpoint(model, export_dir=folder)


if __name__ == "__main__":
    for name in sys.argv[2:]:
        write(Path(sys.argv[1]) / name, name)
