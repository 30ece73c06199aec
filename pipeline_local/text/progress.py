"""A progress bar over text files, on a terminal."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline_local.text.writing import OnProgress, Texts


@contextmanager
def shown(splits: Mapping[str, Texts]) -> Iterator[Callable[[str], OnProgress]]:
    """Bars on stderr, one for each split, which are gone in the end.

    Args:
        splits: the text files of each, by the name of its bar.

    Yields:
        What gives, by that name, the function to call with how many bytes have been read.
    """
    terminal = sys.stderr is not None and sys.stderr.isatty()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not terminal) as progress:
        tasks = {name: progress.add_task(name, total=texts.bytes) for name, texts in splits.items()}

        def reporter(name: str) -> OnProgress:
            return lambda position: progress.update(tasks[name], completed=position)

        yield reporter
