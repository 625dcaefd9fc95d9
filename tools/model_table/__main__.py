"""python -m tools.model_table: a tiny model of every architecture, exported and compared with Torch; docs/models.md.

Results are kept as they come (tools/model_table/results.json): an interrupted run goes on where it stopped, and what
was recorded under the installed versions is not run again. `--check` only says whether the page fits the record.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Annotated

import typer
from rich.console import Console

from tools.model_table.architectures import ARCHITECTURES
from tools.model_table.page import PAGE, write_page
from tools.model_table.process import run
from tools.model_table.results import Result, installed_versions, load_results, save_results

console = Console()


def main(
    names: Annotated[
        list[str] | None, typer.Argument(help="Model types to run; all that have no result by default.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Run what has a result, too.")] = False,
    timeout: Annotated[int, typer.Option(help="Seconds for one architecture.")] = 600,
    jobs: Annotated[int, typer.Option(help="Architectures at once, each on one thread.")] = 1,
    nice: Annotated[int, typer.Option(help="How far others on the machine go first, 0 to 19.")] = 10,
    check: Annotated[
        bool, typer.Option("--check", help="Run nothing: is docs/models.md what the results say?")
    ] = False,
) -> None:
    """Which architectures export, and how near they are to Torch."""
    results = load_results()
    if check:
        if PAGE.read_text(encoding="utf-8") != write_page(results):
            raise SystemExit("docs/models.md is not what results.json says: run python -m tools.model_table.")
        return
    unknown = set(names or ()) - set(ARCHITECTURES)
    if unknown:
        raise SystemExit(f"No architecture {', '.join(sorted(unknown))}: choose of {', '.join(ARCHITECTURES)}.")
    todo = names or _without_result(results, again)
    with ThreadPoolExecutor(jobs) as pool:
        runs = {pool.submit(run, name, timeout, nice): name for name in todo}
        for number, done in enumerate(as_completed(runs), 1):
            name = runs[done]
            results[name] = done.result()
            save_results(results)
            console.print(f"[{number}/{len(todo)}] {name} {_summary(results[name])}", highlight=False, soft_wrap=True)
    PAGE.write_text(write_page(results), encoding="utf-8")
    console.print(f"{sum(result.passed for result in results.values())} of {len(ARCHITECTURES)} pass: {PAGE}")


def _without_result(results: dict[str, Result], again: bool) -> list[str]:
    versions = installed_versions()
    candidates = [name for name, architecture in ARCHITECTURES.items() if not architecture.excluded]
    return [name for name in candidates if again or name not in results or results[name].versions != versions]


def _summary(result: Result) -> str:
    if result.comparison is None:
        return f"fails after {result.seconds:.0f} s: {result.reason}"
    verdict = "passes" if result.passed else "DIFFERS"
    return f"{verdict}: {result.comparison.worst:.1e} in {result.seconds:.0f} s"


if __name__ == "__main__":
    typer.run(main)
