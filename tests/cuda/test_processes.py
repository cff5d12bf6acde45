"""One process on each GPU, started by the command, on however many GPUs there are."""

import pytest
import torch

import losa_cache as lc
from losa_cache.errors import UserError
from tests.extract.test_extract import contents

pytestmark = pytest.mark.cuda
IMAGES = {"backbone": "vit_digits", "dataset": "digits", "batch_size": 16}


def test_every_gpu_writes_its_share_of_what_one_process_writes(tmp_path):
    one = lc.extract(**IMAGES, out=tmp_path / "one.zarr", shard_bytes=1_800_000)
    for gpus in ("all", [0]):
        several = lc.extract(**IMAGES, out=tmp_path / f"{gpus}.zarr", shard_bytes=1_800_000, gpus=gpus)
        assert contents(several.path) == contents(one.path)
    with pytest.raises(UserError, match="processes is 2, which divides the CPU, and this machine has a GPU"):
        lc.extract(**IMAGES, out=tmp_path / "c.zarr", processes=2)
    count = torch.cuda.device_count()
    with pytest.raises(UserError, match=f"there is no GPU {count}"):
        lc.extract(**IMAGES, out=tmp_path / "c.zarr", gpus=[count])


def test_a_plan_says_what_several_take(tmp_path):
    plan = lc.plan_extraction(**IMAGES, out=tmp_path / "c.zarr", gpus=8)
    found, speeds = plan["gpus"], plan["images_per_second"]
    assert found["count"] == 8
    assert found["busy"]["decode"] == pytest.approx(8 * speeds["forward"], rel=1e-3)
    assert found["images_per_second"] <= found["busy"]["decode"]
    assert found["gpu_hours"] == pytest.approx(8 * found["hours"], rel=1e-2)
