"""A process of a comparison: a command of losa-cache that ends with the process that started it.

Its arguments are those of the command. At the end it tells its peak memory in bytes (``peak``).
"""

from losa_cache.__main__ import command
from losa_cache.children import end_with_parent, teller


def main() -> None:
    """Run the command."""
    command(_run)


def _run() -> None:
    end_with_parent()
    tell = teller()
    from losa_cache.cli import app
    from losa_cache.terminal import prepare

    prepare()
    app(standalone_mode=False)
    from losa_cache.machine.device import choose_device
    from losa_cache.machine.memory import peak_memory

    tell({"peak": peak_memory(choose_device())})


if __name__ == "__main__":
    main()
