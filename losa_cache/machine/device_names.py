"""Names of devices. This module imports no library, so that a command refuses an unknown one at once."""

from importlib.metadata import entry_points

from losa_cache.errors import UserError

KINDS = ("cpu", "cuda", "mps", "xpu", "hpu", "mtia", "xla", "ipu", "maia", "meta", "privateuseone")
"""Kinds of devices that torch knows by itself. A plugin of torch may add one."""
PLUGINS = "torch.backends"


def require_device_name(name: str) -> None:
    """Refuse what can name no device. Whether the device is there is known once torch is imported.

    Raises:
        UserError: saying how devices are called.
    """
    kind, colon, index = name.partition(":")
    known = kind in KINDS or bool(entry_points(group=PLUGINS))
    if not known or (colon and not index.isdecimal()):
        raise UserError(f"device {name!r} cannot be used: choose cpu, cuda or, of several GPUs, one such as cuda:1.")
