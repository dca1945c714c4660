"""What tests of data modules share: the folder with TOFU's real rows."""

import os

import pytest


@pytest.fixture(scope="session")
def folder():
    path = os.environ.get("DIPO_PL_TOFU")
    if not path:
        reason = "DIPO_PL_TOFU names no folder with TOFU's rows"
        # On CI the data must be there: a skip would go unseen.
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return path
