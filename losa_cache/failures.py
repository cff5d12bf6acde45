"""What a machine refuses, as one sentence: the last net of the command line, below the errors that know more."""

import errno
import os

ADVICE = {
    errno.ENOSPC: "make room, and run the same command again",
    errno.EDQUOT: "make room, and run the same command again",
    errno.EFBIG: "raise the limit on a file's size (ulimit -f)",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "change its permissions, or choose another place",
    errno.EPERM: "change its permissions, or choose another place",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "the whole machine has too many open files: close some",
    errno.EIO: "look at the state of that disk",
    errno.ENOMEM: "close other programs, or ask for less at a time",
    errno.EAGAIN: "raise the limit on processes and threads (ulimit -u), or give fewer --workers",
}
OUT_OF_MEMORY = ("out of memory", "allocate memory", "could not create a primitive")  # the last is of oneDNN
NO_ROOM = "failed to map segment from shared object"  # as the loader says it of a library under ulimit -v
NO_THREAD = "can't start new thread"  # as CPython says it, whether processes, threads or memory for a stack are lacking


def sentence(error: BaseException) -> str | None:
    """Say in one sentence what the machine refused; ``None`` for every other error, which is a mistake of ours."""
    if isinstance(error, OSError) and error.errno is not None:
        name = error.filename if isinstance(error.filename, str | bytes | os.PathLike) else None
        what = "a file, or the output," if name is None else repr(os.fsdecode(name))
        return f"{what} could not be used ({error.strerror}): {ADVICE.get(error.errno, 'see to it, and run it again')}."
    if isinstance(error, RuntimeError) and NO_THREAD in str(error):
        return f"the machine gives no more threads: {ADVICE[errno.EAGAIN]}."
    # torch has a class for a GPU's memory alone
    memory = isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)
    memory = memory or (isinstance(error, ImportError) and NO_ROOM in str(error))
    if memory or isinstance(error, MemoryError):
        return f"the machine ran out of memory: {ADVICE[errno.ENOMEM]}."
    return None
