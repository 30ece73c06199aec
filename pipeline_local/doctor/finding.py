"""What a check has found, and how a check is carried out so that none of them ends the command."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pipeline_local.doctor.anonymous import anonymous
from pipeline_local.errors import UserError, type_and_line

Status = Literal["PASS", "WARN", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        status: FAIL keeps runs from working; WARN may make them slow, or larger ones fail.
        found: what is there.
        remedy: what to do; empty where nothing needs to be done.
        values: the same as numbers and versions, for programs that read the JSON.
        name: of the check.
    """

    status: Status
    found: str
    remedy: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    name: str = ""

    def __str__(self) -> str:
        """The line."""
        text = "; ".join(filter(None, [self.found, self.remedy]))
        return f"{self.status}  {self.name:<13}  {text}"


Check = Callable[[], Iterable[Finding]]
"""Looks at one thing. The name of the function is that of the check."""


def passed(found: str, **values: Any) -> Finding:  # noqa: ANN401 (whatever JSON holds)
    """Return what is as it should be."""
    return Finding("PASS", found, values=values)


def warned(found: str, remedy: str, **values: Any) -> Finding:  # noqa: ANN401
    """Return what may become a problem."""
    return Finding("WARN", found, remedy, values)


def failed(found: str, remedy: str, **values: Any) -> Finding:  # noqa: ANN401
    """Return what keeps runs from working."""
    return Finding("FAIL", found, remedy, values)


def examine(check: Check) -> Iterator[Finding]:
    """Carry out a check. Names of hosts, users and homes are left out of what it has found.

    A check that raises has failed: what it would have looked at is not as it should be, either.
    """
    name = check.__name__.replace("_", " ")
    for finding in _guarded(check):
        yield replace(
            finding,
            found=_line(finding.found),
            remedy=_line(finding.remedy),
            name=finding.name or name,
        )


def _guarded(check: Check) -> Iterator[Finding]:
    try:
        yield from check()
    except UserError as error:
        found, _, remedy = str(error).rpartition("; ")
        yield failed(found or remedy, remedy if found else "")
    except Exception as error:  # whatever is broken here
        found = f"the check ended with {type_and_line(error)}"
        yield failed(found, "paste the block below into an issue if this does not say what to do")


def _line(text: str) -> str:
    return anonymous(" ".join(text.split()))
