import pytest
import torch


def pytest_collection_modifyitems(items):
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))


@pytest.fixture
def gpu() -> torch.device:
    """The device that the tests of this folder use."""
    return torch.device("cuda")
