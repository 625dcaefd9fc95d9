"""What of a file the system keeps in memory."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onnx_moe.errors import OnnxMoeError


def drop(files: Sequence[Path]) -> None:
    """Asks the system to forget the files' pages. It keeps those that some process has mapped."""
    if not hasattr(os, "posix_fadvise"):
        raise OnnxMoeError("this system has no posix_fadvise to drop files from the page cache: run on Linux.")
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # pages that are not written yet would stay
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def resident_share(files: Sequence[Path]) -> float:
    """Pages of the files in memory / their pages."""
    total = resident = 0
    for path in files:
        pages = -(-path.stat().st_size // mmap.PAGESIZE)
        if pages:
            resident += _resident_pages(path, pages)
            total += pages
    return resident / total if total else 0.0


def _resident_pages(path: Path, pages: int) -> int:
    states = np.zeros(pages, np.uint8)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        view = np.frombuffer(mapped, np.uint8)
        address, size = view.ctypes.data, view.size
        del view  # or the mapping could not be closed
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), ctypes.c_void_p(states.ctypes.data)) != 0:
            raise OnnxMoeError(f"mincore of {path} failed: {os.strerror(ctypes.get_errno())}.")
    return int((states & 1).sum())
