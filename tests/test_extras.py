"""Optional packages: missing, broken, or interrupted while they load; and what the system refuses."""

import errno

import pytest

from losa_cache.errors import UserError
from losa_cache.extras import extra
from losa_cache.files import reason, remedy


def load(code, tmp_path, monkeypatch):
    """Import a package of this code as the extra that it is."""
    (tmp_path / "someplot.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with extra("someplot", "figures need someplot", "plots"):
        __import__("someplot")


def test_a_missing_package_is_one_to_install():
    with (
        pytest.raises(UserError, match=r"^figures need someplot: pip install 'losa-cache\[plots\]'\.$"),
        extra("someplot", "figures need someplot", "plots"),
    ):
        __import__("someplot.figure")


def test_a_broken_package_tells_its_own_reason(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"although it is installed \(libplot\.so\.3: cannot open shared object file\)"):
        load("raise ImportError('libplot.so.3: cannot open shared object file')", tmp_path, monkeypatch)


def test_a_package_that_lacks_another_is_not_taken_for_missing(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"although it is installed \(No module named 'its_own_need'\)"):
        load("import its_own_need", tmp_path, monkeypatch)


def test_ctrl_c_while_a_package_loads_is_no_missing_package(tmp_path, monkeypatch):
    code = (
        "try:\n    raise KeyboardInterrupt\nexcept BaseException as error:\n    raise ImportError('failed') from error"
    )
    with pytest.raises(KeyboardInterrupt):
        load(code, tmp_path, monkeypatch)


def test_room_is_only_asked_for_where_there_is_none():
    assert remedy(OSError(errno.ENOSPC, "No space left on device")) == "make room"
    assert remedy(OSError(errno.EACCES, "Permission denied")) == "allow writing there"
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory", "x")
    assert "room" not in remedy(missing)
    assert reason(missing) == "No such file or directory: 'x'"
    assert reason(OSError("told otherwise")) == "told otherwise"
