"""Progress of a checkpoint's export on a terminal: what is done, how fast, how long it will take."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


class CheckpointProgress:
    """The Progress that `export_checkpoint` tells. A context manager: the bar is on the screen inside of it."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task("starting", total=None)

    def __enter__(self) -> CheckpointProgress:
        self._bar.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._bar.stop()

    def stage(self, line: str) -> None:
        self._bar.update(self._task, description=line)

    def total(self, nbytes: int) -> None:
        self._bar.reset(self._task, total=nbytes)

    def advance(self, nbytes: int) -> None:
        self._bar.advance(self._task, nbytes)
