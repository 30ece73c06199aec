"""Which images were passed over: counted once, and named."""

from collections.abc import Iterable

from pipeline_local.errors import counted


class Skipped:
    """The images that were passed over: each counts once, in the order in which they were met."""

    def __init__(self) -> None:
        self._paths: dict[str, None] = {}

    def add(self, paths: Iterable[str]) -> None:
        """Some more, known or not."""
        self._paths.update(dict.fromkeys(paths))

    def facts(self) -> dict[str, int]:
        """`skipped_images`, if there are any: for the metrics."""
        return {"skipped_images": len(self._paths)} if self._paths else {}

    def warnings(self, most: int = 3) -> list[str]:
        """One line that names the first `most`; none if nothing was passed over."""
        if not self._paths:
            return []
        names, rest = list(self._paths)[:most], len(self._paths) - most
        more = f" and {rest} more" if rest > 0 else ""
        count = counted(len(self._paths), "image")
        return [f"{count} could not be read and left out: {', '.join(names)}{more}"]
