"""A call that is killed at one of its steps, again and again, until it comes through: in processes forked from one."""

import json
import textwrap

from tests.forked import Forked

# Steps on the file system (opening, renaming, removing, making folders) as Python itself reports them.
CODE = """
import json, os, signal, sys
import tests.conftest  # nothing is synced
{prepare}

FILES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "shutil.copyfile", "shutil.rmtree")

def child(at=None):
    pid = os.fork()
    if pid:
        return pid
    count = 0
    def step(event, values):
        nonlocal count
        if event in FILES and any({below!r} in str(value) for value in values):
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(step)
    try:
        call()
        with open({below!r} + "/steps", "w") as file:
            file.write(str(count))
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(3)

again()
_, status = os.waitpid(child(), 0)
assert status == 0
steps = int(open({below!r} + "/steps").read())
killed = 0
apart = max(1, steps // ({kills} or steps))
for at in range(1 + apart // 2, steps + 1, apart):
    again()
    _, status = os.waitpid(child(at), 0)
    killed += os.WIFSIGNALED(status)
    _, status = os.waitpid(child(), 0)
    assert status == 0, at
    check()
print(json.dumps(killed))
"""


def made_anew(base, call: str) -> str:
    """Give what :func:`killed_at_steps` needs of a call that makes ``base / "at" / "new.zarr"`` as ``wanted.zarr`` is.

    Args:
        base: a folder with the whole result, ``wanted.zarr``, and an empty folder ``at``.
        call: code that makes ``new`` of caches in ``base``.
    """
    return f"""
        import losa_cache as lc
        from losa_cache.cache.stores.local import LocalPath
        from losa_cache.files import clear
        from tests.relocate.test_relocate import files_at
        base = LocalPath({str(base)!r})
        new = base / "at" / "new.zarr"
        wanted = files_at(base / "wanted.zarr")
        def again():
            for left in new.parent.glob("new*"):
                clear(left)
        def call():
            {call}
        def check():
            assert files_at(new) == wanted
    """


def killed_at_steps(prepare: str, below, *, kills: int | None = None) -> int:
    """Kill a call at each of its steps on files of a folder, or at some, and call it again; give how many kills fell.

    Args:
        prepare: code that starts no threads, which no fork would take along, and defines ``again()``, which makes
            everything as before; ``call()``; and ``check()``, which holds what a call that was killed, and one that
            came through, have left.
        below: the folder.
        kills: how many, evenly spaced; by default one at each step.
    """
    code = CODE.format(prepare=textwrap.dedent(prepare), below=str(below), kills=kills)
    done = Forked("-c", code).wait()
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
