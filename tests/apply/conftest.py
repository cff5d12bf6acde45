"""What tests of several files here share."""

import pytest

from tests.apply.serving import make_adapters


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder with the adapters that servers have; nobody changes it."""
    found = tmp_path_factory.mktemp("serve")
    make_adapters(found)
    return found
