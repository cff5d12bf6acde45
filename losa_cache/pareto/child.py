"""A process of a comparison: a command of losa-cache that ends with the process that started it.

Its arguments are those of the command. At the end it tells its peak memory in bytes (``peak``).
"""

from losa_cache.__main__ import command
from losa_cache.children import begin_child


def main() -> None:
    """Run the command."""
    command(_run)


def _run() -> None:
    tell = begin_child()
    from losa_cache.cli import app

    try:
        app()
    except SystemExit as end:  # as every command ends
        if end.code:
            raise
    tell({"peak": _peak()})


def _peak() -> int:
    """Give the bytes that it took of a GPU, if it used one, else its largest resident memory."""
    import torch

    from losa_cache.machine.memory import peak_memory

    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    return max((peak_memory(torch.device("cuda", gpu)) for gpu in gpus), default=0) or peak_memory(torch.device("cpu"))


if __name__ == "__main__":
    main()
