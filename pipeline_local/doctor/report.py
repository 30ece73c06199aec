"""What is reported of all findings: JSON for programs, a block of Markdown for an issue."""

import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pipeline_local import __version__
from pipeline_local.doctor.finding import Finding
from pipeline_local.errors import counted


def block(findings: Sequence[Finding]) -> str:
    """Return a fenced block with all lines, and what they were found on."""
    head = f"pipeline-local {__version__}, {platform.platform()}"
    lines = [head, *map(str, findings), verdict(findings)]
    return "\n".join(["```text", *lines, "```"])


def verdict(findings: Sequence[Finding]) -> str:
    """Return the last line: how many checks have failed or warned."""
    statuses = [finding.status for finding in findings]
    failures, warnings = statuses.count("FAIL"), statuses.count("WARN")
    return f"{counted(failures, 'failure')}, {counted(warnings, 'warning')}"


def facts(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return everything: `status` is the worst one, `findings` has an object for each line."""
    statuses = [finding.status for finding in findings]
    return {
        "pipeline_local": __version__,
        "platform": platform.platform(),
        "status": next(s for s in ("FAIL", "WARN", "PASS") if s in statuses),
        "findings": [asdict(finding) for finding in findings],
    }
