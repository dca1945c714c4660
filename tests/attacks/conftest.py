"""The subject of an audit whose models are tiny and random."""

import pytest
from audit_runs import make_runs, subject_of


@pytest.fixture(scope="session")
def audit_runs(once):
    """A folder of `make_runs`; not to be written to."""
    return once("audit-runs", make_runs)


@pytest.fixture
def subject(audit_runs):
    return subject_of(audit_runs)
