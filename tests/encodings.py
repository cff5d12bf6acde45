"""What tests of encodings share."""

import torch


def bad(blocks):
    """Three values that are not finite, one of them of the first token."""
    found = [block.clone() for block in blocks]
    found[1][0, 2, 7], found[1][0, 5, 3], found[2][0, 0, 1] = torch.inf, torch.nan, -torch.inf
    return found


def assert_same_integers(precision, width, ours, theirs):
    """Stored tokens of the same codes and scales; of NaNs there are many."""
    at = precision.code_bytes(width)
    assert torch.equal(ours[..., :at], theirs[..., :at])
    scales = [own[..., at:].contiguous().view(torch.bfloat16) for own in (ours, theirs)]
    assert torch.equal(*(own.isnan() for own in scales))
    assert torch.equal(*(own.nan_to_num(0) for own in scales))


def assert_rounded_alike(ours, theirs):
    """bfloat16 values, of which a few may have been rounded the other way: torch's own sums may be contracted."""
    assert torch.equal(ours.isnan(), theirs.isnan())
    ours, theirs = ours.nan_to_num(0), theirs.nan_to_num(0)
    assert ((ours.float() - theirs.float()).abs() <= theirs.float().abs() * 2**-7 + 1e-5).all()
    assert (ours != theirs).float().mean() < 1e-3
