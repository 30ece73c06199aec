"""JSON, and a block that can be pasted."""

import pytest

from pipeline_local.doctor import report
from pipeline_local.doctor.finding import failed, passed, warned

FINDINGS = [passed("a", number=1), warned("b", "do c"), failed("d", "do e")]


def test_the_block_is_fenced():
    first, head, *lines, verdict, last = report.block(FINDINGS).splitlines()
    assert (first, last) == ("```text", "```")
    assert head.startswith("pipeline-local ")
    assert lines == [str(finding) for finding in FINDINGS]
    assert verdict == "1 failure, 1 warning"


@pytest.mark.parametrize(("count", "status"), [(1, "PASS"), (2, "WARN"), (3, "FAIL")])
def test_json(count, status):
    facts = report.facts(FINDINGS[:count])
    assert facts.keys() == {"pipeline_local", "platform", "status", "findings"}
    assert facts["status"] == status
    assert len(facts["findings"]) == count
    for finding in facts["findings"]:
        assert finding.keys() == {"status", "found", "remedy", "values", "name"}
    assert facts["findings"][0]["values"] == {"number": 1}
