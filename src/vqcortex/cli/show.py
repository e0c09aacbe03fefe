"""What the command line draws: bars with time left, tables, one closing line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar, final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from vqcortex.pipelines.progress import Advance

T = TypeVar("T")

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


@final
class Bars:
    """Progress on standard error, so that standard output stays for results."""

    @contextmanager
    def bar(self, task: str, total: int) -> Iterator[Advance]:
        columns = (
            TextColumn("{task.description:<32}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=err) as bars:
            number = bars.add_task(task, total=total or None)
            yield lambda: bars.advance(number)

    def track(self, items: Iterable[T], task: str, total: int) -> Iterator[T]:
        with self.bar(task, total) as advance:
            for item in items:
                yield item
                advance()


def print_table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a plain table on standard output; without a head line if no column has a head."""
    table = Table(box=None, pad_edge=False, show_header=any(heads))
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    out.print(table)
