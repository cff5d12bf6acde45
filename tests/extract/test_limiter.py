"""What limited an extraction: shares of its time, and a sentence."""

import pytest

from losa_cache.extract.extract import extract
from losa_cache.extract.limiter import ADVICE, limiter, shares
from losa_cache.extract.meter import Meter
from tests.conftest import tiny_backbone, tiny_samples


def test_waiting_for_images_counts_only_where_the_device_has_nothing_to_do():
    meter = Meter(images=9, seconds=10.0, waited_decode=9.0, forward=3.0, encode=1.0, copy=2.0, write=0.5)
    assert shares(meter) == pytest.approx(
        {"images": 0.6, "backbone": 0.3, "encoding": 0.1, "copy": 0.2, "writing": 0.05}
    )
    assert limiter(meter) == (
        "limited by decoding images (60% of the time; the backbone 30%, encoding 10%, copies to the "
        f"host 20%, writing 5%): {ADVICE['images']}."
    )


@pytest.mark.parametrize(
    ("spent", "named"),
    [
        ({"forward": 9.0, "waited_decode": 5.0}, "the backbone"),
        ({"forward": 3.0, "encode": 4.0}, "encoding"),
        ({"copy": 9.0, "forward": 8.0}, "copies to the host"),
        ({"write": 9.5, "forward": 8.0, "waited_write": 1.0}, "writing"),
    ],
)
def test_the_largest_part_is_named(spent, named):
    assert limiter(Meter(images=1, seconds=10.0, **spent)).startswith(f"limited by {named} (")


def test_nothing_is_named_where_nothing_was_extracted():
    assert limiter(Meter()) is None


def test_an_extraction_accounts_for_its_time(tmp_path):
    meter = Meter()
    extract(tiny_backbone(), tiny_samples(), out=tmp_path / "c.zarr", batch_size=4, device="cpu", meter=meter)
    assert meter.forward > 0
    assert meter.encode > 0
    assert meter.write > 0
    assert meter.copy == 0
    assert meter.forward + meter.encode + meter.waited_decode + meter.waited_write <= meter.seconds
