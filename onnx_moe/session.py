"""Sessions with the plugin: `register` for a SessionOptions of yours, `InferenceSession` for the short way."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any

import onnxruntime

from onnx_moe import _native
from onnx_moe.errors import LibraryError

# ONNX Runtime refuses a second registration on the same options, and offers no way to ask for the first.
_REGISTERED = "onnx_moe.registered"

#: Session entry: the name under which the plugin knows a session.
SESSION_NAME = "onnx_moe.session"

_session_numbers = itertools.count()


def config_entry(session_options: onnxruntime.SessionOptions, key: str) -> str | None:
    """The options' configuration entry; None where it is not set."""
    try:
        return str(session_options.get_session_config_entry(key))
    except RuntimeError:  # ONNX Runtime's answer for an entry that is not there
        return None


def _name_session(session_options: onnxruntime.SessionOptions) -> None:
    name = f"python session {next(_session_numbers)}"
    session_options.add_session_config_entry(SESSION_NAME, name)
    if config_entry(session_options, "onnx_moe.trace") not in (None, "off"):
        session_options.add_session_config_entry("onnx_moe.trace_name", name)


def register(session_options: onnxruntime.SessionOptions) -> None:
    """Registers the operators on `session_options`; registering again does nothing.

    Raises LibraryError when this ONNX Runtime is too old or the library does not load.
    """
    if config_entry(session_options, _REGISTERED) == "1":
        return
    try:
        session_options.register_custom_ops_library(str(_native.library_path()))
    except LibraryError:
        raise
    except Exception as error:  # ONNX Runtime raises types of its own
        raise LibraryError(f"ONNX Runtime does not take the plugin: {error}") from error
    session_options.add_session_config_entry(_REGISTERED, "1")


def InferenceSession(
    path_or_bytes: str | os.PathLike[str] | bytes,
    sess_options: onnxruntime.SessionOptions | None = None,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    **kwargs: Any,
) -> onnxruntime.InferenceSession:
    """An `onnxruntime.InferenceSession` with the plugin registered; arguments as there.

    `sess_options` is registered on in place, so that it can be used again; the new session's name goes there, into the
    entry "onnx_moe.session", and, where it records routing ("onnx_moe.trace"), into "onnx_moe.trace_name".
    """
    options = sess_options if sess_options is not None else onnxruntime.SessionOptions()
    register(options)
    _name_session(options)
    model = path_or_bytes if isinstance(path_or_bytes, bytes) else os.fspath(path_or_bytes)
    return onnxruntime.InferenceSession(model, options, providers=list(providers), **kwargs)
