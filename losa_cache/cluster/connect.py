"""A connection to a dask.distributed scheduler."""

from typing import TYPE_CHECKING

from losa_cache.errors import UserError
from losa_cache.extras import extra

if TYPE_CHECKING:
    from distributed import Client

SECONDS = 10  # in which a scheduler must answer


def connect(address: str) -> "Client":
    """Connect to a scheduler, which may come from dask-jobqueue, dask-kubernetes, dask-cuda or the command line.

    Args:
        address: ``tcp://HOST:PORT`` or ``tls://HOST:PORT``; keys and certificates of the latter are those of dask's own
            configuration.

    Raises:
        UserError: if no scheduler answers there, or if ``distributed`` is not installed.
    """
    with extra("distributed", "--scheduler needs dask.distributed", "cluster"):
        from distributed import Client
    try:
        return Client(address, timeout=SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:  # dask has a TypeError for tls:// without certificates
        raise UserError(f"no dask scheduler answers at {address!r} ({error}).") from error
