"""What must be there before a backbone is worth loading: an address that is free, and the packages of a server."""

import errno
import ipaddress
import socket
from importlib import import_module

from losa_cache.errors import UserError
from losa_cache.extras import extra

PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
BACKLOG = 1024  # connections that the system holds until they are accepted


def require_packages() -> None:
    """Import what the extra ``serve`` brings.

    Raises:
        UserError: if a package is missing.
    """
    for name in PACKAGES:
        with extra(name, f"serve needs {name}", "serve"):
            import_module(name)


def bind(host: str, port: int) -> socket.socket:
    """Take an address. Nobody can connect yet: :func:`start` lets them.

    Args:
        host: a name or number of this machine.
        port: 0 takes a free one.

    Raises:
        UserError: if it is in use, or cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )[0]
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"host {host!r} cannot be found ({_reason(error)}): give an address of this machine."
        ) from error
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _refused(host, port, error) from error
    return listener


def start(listener: socket.socket) -> None:
    """Let clients connect.

    Raises:
        UserError: if another program has begun to listen at the same address meanwhile.
    """
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        host, port = listener.getsockname()[:2]
        raise _refused(host, port, error) from error


def url_of(listener: socket.socket) -> str:
    """Give the address that a browser takes."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def is_local(listener: socket.socket) -> bool:
    """Tell whether only this machine can connect."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def _refused(host: str, port: int, error: OSError) -> UserError:
    if error.errno == errno.EADDRINUSE:
        return UserError(f"port {port} of {host!r} is in use: choose another with --port, or end what uses it.")
    remedy = "choose a --port above 1023" if error.errno == errno.EACCES else "choose another --host or --port"
    return UserError(f"port {port} of {host!r} cannot be had ({_reason(error)}): {remedy}.")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
