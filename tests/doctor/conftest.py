"""Checks without the machine's own quirks."""

import pytest

from pipeline_local.doctor.finding import examine


@pytest.fixture
def lines():
    """What a check reports, as (status, text) of each line."""

    def carried_out(check):
        return [(f.status, f"{f.found}; {f.remedy}") for f in examine(check)]

    return carried_out
