"""The exceptions of the package: each message names the thing, the value and the remedy."""

from __future__ import annotations


class OnnxMoeError(ValueError):
    """Base of every error that onnx_moe raises on purpose."""


class InvalidAttributeError(OnnxMoeError):
    """An operator's attribute is unknown, missing, of the wrong type, out of range or without effect."""


class InvalidInputError(OnnxMoeError):
    """A tensor given to an operator has the wrong shape, element type or value."""


class InvalidModelError(OnnxMoeError):
    """A model does not have the form that a function of the package needs."""


class ExportError(OnnxMoeError):
    """A Torch module cannot be exported as it is."""


class LibraryError(OnnxMoeError):
    """The native library is missing, does not load, or does not fit the runtime."""


class CheckpointError(ExportError):
    """A checkpoint is incomplete, damaged, or of a form that cannot be exported."""
