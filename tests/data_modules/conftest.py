"""What tests of data modules share: the folder with TOFU's real rows."""

import pytest


@pytest.fixture(scope="session")
def folder(tofu_folder):
    return tofu_folder
