"""Sessions with the plugin: `register` for a SessionOptions of yours, `InferenceSession` for the short way."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from typing import Any

import onnxruntime

from onnx_moe import _native
from onnx_moe.errors import LibraryError

# ONNX Runtime refuses a second registration on the same options, and offers no way to ask for the first.
_REGISTERED = "onnx_moe.registered"

#: Session entry: the name under which the plugin knows a session.
SESSION_NAME = "onnx_moe.session"


def _is_registered(session_options: onnxruntime.SessionOptions) -> bool:
    try:
        return bool(session_options.get_session_config_entry(_REGISTERED) == "1")
    except RuntimeError:  # ONNX Runtime's answer for an entry that is not there
        return False


def register(session_options: onnxruntime.SessionOptions) -> None:
    """Registers the operators on `session_options`; registering again does nothing.

    Raises LibraryError when this ONNX Runtime is too old or the library does not load.
    """
    if _is_registered(session_options):
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

    `sess_options` is registered on in place, so that it can be used again; its entry "onnx_moe.session" becomes the new
    session's name.
    """
    options = sess_options if sess_options is not None else onnxruntime.SessionOptions()
    register(options)
    options.add_session_config_entry(SESSION_NAME, uuid.uuid4().hex)
    model = path_or_bytes if isinstance(path_or_bytes, bytes) else os.fspath(path_or_bytes)
    return onnxruntime.InferenceSession(model, options, providers=list(providers), **kwargs)
