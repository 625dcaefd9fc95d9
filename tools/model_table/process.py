"""One architecture in a process of its own, that may crash or hang without taking the others with it."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from tools.model_table.compare import compare
from tools.model_table.comparison import Comparison
from tools.model_table.results import Result, installed_versions


def run(name: str, timeout: int, nice: int) -> Result:
    """The result of `name`. The process is forked: importing Torch and transformers takes longer than most exports."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_compare, args=(name, nice, sender))
    start = time.monotonic()
    process.start()
    sender.close()  # so that the end of the process is the end of the pipe
    answer: Comparison | str
    try:
        answer = receiver.recv() if receiver.poll(timeout) else f"no result within {timeout} s"
    except EOFError:
        process.join()
        answer = f"the process ended with {process.exitcode}"
    process.kill()
    process.join()
    seconds = round(time.monotonic() - start, 1)
    if isinstance(answer, str):
        return Result(installed_versions(), seconds, None, answer)
    return Result(installed_versions(), seconds, answer)


def _compare(name: str, nice: int, sender: Connection) -> None:
    os.nice(nice)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        try:
            sender.send(compare(name, Path(folder)))
        except Exception as error:  # whatever a model raises is the result
            sender.send(f"{type(error).__name__}: {error}")
