"""`export_checkpoint`: a checkpoint of any size → a folder that ONNX Runtime and onnxruntime-genai run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import onnx_ir as ir

from onnx_moe.errors import CheckpointError, InvalidModelError, OnnxMoeError
from onnx_moe.export.checkpoint.disk import sync
from onnx_moe.export.checkpoint.expert_units import checkpoint_format
from onnx_moe.export.checkpoint.files import CheckpointFiles, open_checkpoint
from onnx_moe.export.checkpoint.graph import GraphOptions, PendingModel, materialise, trace_model
from onnx_moe.export.checkpoint.journal import Journal, open_journal
from onnx_moe.export.checkpoint.layouts import find_weights
from onnx_moe.export.checkpoint.manifest import versions, write_manifest
from onnx_moe.export.checkpoint.options import DTYPES, CheckpointOptions
from onnx_moe.export.checkpoint.plan import Plan, make_plan
from onnx_moe.export.checkpoint.skeleton import build_model, configuration_entries, read_configuration
from onnx_moe.export.checkpoint.sources import match_sources
from onnx_moe.export.checkpoint.writer import write_shards
from onnx_moe.export.exported_layers import ExportedLayer
from onnx_moe.export.finish import add_metadata
from onnx_moe.functions import add_functions
from onnx_moe.generation import write_genai_config
from onnx_moe.generation.genai_config import CONFIG_NAME

#: Files of a checkpoint that a program needs beside the weights.
_COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.jinja",
    "LICENSE*",
)
#: Room for the model file, the tokenizer and the like.
_SPARE = 64 << 20


class Progress(Protocol):
    """Is told what happens: a line before each step, the bytes of the source that there are, those that are done."""

    def stage(self, line: str) -> None: ...
    def total(self, nbytes: int) -> None: ...
    def advance(self, nbytes: int) -> None: ...


class _Silent:
    def stage(self, line: str) -> None: ...
    def total(self, nbytes: int) -> None: ...
    def advance(self, nbytes: int) -> None: ...


@dataclass(frozen=True)
class CheckpointReport:
    """What `export_checkpoint` did. layouts: those in FP4 that the checkpoint had. resumed_bytes: of data that an
    earlier, interrupted export had written and that were kept. notes: what the reader should know, one line each.
    """

    folder: Path
    format: str
    layers: tuple[ExportedLayer, ...]
    layouts: tuple[str, ...]
    source_bytes: int
    written_bytes: int
    resumed_bytes: int
    notes: tuple[str, ...] = ()


def export_checkpoint(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    options: CheckpointOptions | None = None,
    progress: Progress | None = None,
) -> CheckpointReport:
    """Exports the checkpoint `source` to the new folder `folder`: model.onnx, its external data, tokenizer and
    configuration files, genai_config.json with the plugin beside it, manifest.json.

    source: a folder in Hugging Face layout (config.json, *.safetensors), or a name on the Hugging Face hub. Experts in
    FP4 keep their bytes; others are quantised, one expert at a time on every core. Memory holds a few experts and the
    largest other tensor, whatever the size of the checkpoint.

    It is written to `folder`.partial and renamed when it is whole; when it is interrupted, the same call goes on.
    Raises CheckpointError for what is wrong with the checkpoint, ExportError for what is wrong with the request, and
    InvalidAttributeError for a wrong format, block size or level.
    """
    options, progress = options or CheckpointOptions(), progress or _Silent()
    folder = Path(folder)
    if folder.exists():
        raise CheckpointError(f"{folder} exists: choose a new folder, or remove it.")
    progress.stage("reading the checkpoint's headers")
    with open_checkpoint(os.fspath(source)) as files:
        config = read_configuration(files.folder)
        model = build_model(config, DTYPES[options.dtype], options.attention)
        weights, layouts = find_weights(files.tensors)
        sources = match_sources(model, weights, files)
        own_format = checkpoint_format(sources)
        quantization = options.quantization(own_format)
        # Shared experts of a checkpoint in FP4 stay what its author made them.
        fold = options.fold_shared_experts and own_format is None
        progress.stage("tracing the decoder")
        graph_options = GraphOptions(fold, options.router_logits, options.opset, options.dense)
        pending = trace_model(model, sources, quantization, graph_options)
        del model
        plan = make_plan(pending.units.values(), options.shard_bytes)
        return _Export(files, folder, options, pending, plan, progress).run(config, quantization.format, layouts)


class _Export:
    """The writing part: everything is known, and nothing is written yet."""

    def __init__(
        self,
        files: CheckpointFiles,
        folder: Path,
        options: CheckpointOptions,
        pending: PendingModel,
        plan: Plan,
        progress: Progress,
    ) -> None:
        self.files, self.folder, self.options = files, folder, options
        self.pending, self.plan, self.progress = pending, plan, progress
        self.partial = folder.with_name(f"{folder.name}.partial")

    def run(self, config: Any, format: str, layouts: set[str]) -> CheckpointReport:
        journal = open_journal(self.partial, self._identity(format))
        self._check_space()
        embedded = {name: tensor for unit in self.plan.embedded for name, tensor in materialise(unit).items()}
        self._create(journal)
        try:
            resumed = self._write_weights(journal)
            self.progress.stage("writing the model")
            self._write_model(embedded, format)
            notes = self._write_companions(config)
            write_manifest(self.partial, self.files, self.options, self.pending, format, layouts, journal)
            self._rename(journal)
        except OnnxMoeError:
            shutil.rmtree(self.partial)  # a defect of the source: what was written is of no use
            raise
        except OSError as error:
            raise CheckpointError(
                f"{self.partial} cannot be written: {error}. Make room or mend the disk; the same command then goes on."
            ) from error
        return CheckpointReport(
            folder=self.folder,
            format=format,
            layers=self.pending.layers,
            layouts=tuple(sorted(layouts)),
            source_bytes=self.files.nbytes,
            written_bytes=sum(path.stat().st_size for path in self.folder.iterdir()),
            resumed_bytes=resumed,
            notes=notes,
        )

    def _identity(self, format: str) -> str:
        facts = [self.files.fingerprint(), self.plan.digest(), self.options.as_dict(), format, versions()]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _check_space(self) -> None:
        # What an interrupted export has left, whole or not, is kept or written over.
        left = [(self.partial / shard.name, shard.nbytes) for shard in self.plan.shards]
        present = sum(min(path.stat().st_blocks * 512, nbytes) for path, nbytes in left if path.is_file())
        parent = self.folder.absolute().parent
        while not parent.exists():
            parent = parent.parent
        needed = self.plan.nbytes - present + _SPARE
        free = shutil.disk_usage(parent).free
        if free < needed:
            raise CheckpointError(
                f"{self.folder} takes {needed / 1e9:.2f} GB, but {parent} has {free / 1e9:.2f} GB free: make room, or "
                "choose a folder on another disk."
            )

    def _create(self, journal: Journal) -> None:
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
            journal.write()
        except OSError as error:
            raise CheckpointError(f"{self.folder} cannot be written: {error}. Choose another folder.") from error

    def _write_weights(self, journal: Journal) -> int:
        jobs = (job for shard in self.plan.shards for unit in shard.units for job in unit.jobs())
        self.progress.total(sum(job.source_bytes for job in jobs))
        self.progress.stage("writing the weights")
        return write_shards(self.plan, self.partial, self.files, journal, self.progress.advance)

    def _write_model(self, embedded: dict[str, ir.TensorProtocol], format: str) -> None:
        model = self.pending.model
        initializers = model.graph.initializers
        for name in self.pending.units:
            if name in embedded:
                initializers[name].const_value = embedded[name]
        for shard in self.plan.shards:
            for name, place in shard.places.items():
                if name in initializers:
                    output = place.output
                    initializers[name].const_value = ir.ExternalTensor(
                        shard.name,
                        place.offset,
                        output.nbytes,
                        output.ir_type,
                        shape=ir.Shape(output.shape),
                        name=name,
                        base_dir=self.partial,
                    )
        add_metadata(model, format=format, scale=self.options.scale, dense=self.options.dense)
        if self.options.functions:
            add_functions(model)
        ir.save(model, self.partial / "model.onnx")

    def _write_companions(self, config: Any) -> tuple[str, ...]:
        for pattern in _COPIED:
            for path in sorted(self.files.folder.glob(pattern)):
                if path.is_file():
                    shutil.copyfile(path, self.partial / path.name)
        try:
            write_genai_config(self.partial, config=configuration_entries(config))
        except InvalidModelError as error:
            return (f"no {CONFIG_NAME}: {error}",)
        return ()

    def _rename(self, journal: Journal) -> None:
        """Gives the folder its name once all of it is on the disk."""
        for path in (*self.partial.iterdir(), self.partial):
            sync(path)
        journal.remove()
        try:
            os.replace(self.partial, self.folder)
        except OSError:
            journal.write()  # the same call can go on
            raise
