"""The registry of data sets: their names, and what must be known of them before a library is imported.

A kind of data set is one file of ``losa_cache/data/sources``; the file's name is the data set's. The file holds

* ``SPEC``, a :class:`SourceSpec` of literals, which is read without running the file;
* ``load(request)``, which gives the :class:`~losa_cache.data.samples.Samples` of a
  :class:`~losa_cache.data.request.Request`;
* if the splits of a data set are known only from its files, ``other_splits(request)``: the splits that the data set has
  besides that of the request, and that should have no image in common with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, cast

from losa_cache.literals import read_literals

if TYPE_CHECKING:
    from losa_cache.data.request import Request
    from losa_cache.data.samples import Samples

FOLDER = Path(__file__).with_name("sources")


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """What is known of a kind of data set before it is opened.

    Attributes:
        names: that it answers to, if not to that of its file.
        prefix: whether its name is followed by a colon and by what is opened: ``table:labels.csv``. Otherwise
            ``--data-dir`` names its folder.
        suffixes: of files that it opens; such a file needs no prefix.
        remote: whether what stands behind the prefix may be no file or folder of this machine.
        patterns: whether what stands behind the prefix is a pattern of tar files or URLs (``losa_cache.data.shards``).
        whole: whether it holds its images itself, so that ``--data-dir`` says nothing.
        needs_folder: whether ``--data-dir`` must be given.
        embedded: whether it comes with a package, so that nothing else is opened for it.
        splits: that it always has; none: its files say which.
        columns: whether it is a table, whose columns can be chosen.
    """

    names: tuple[str, ...] = ()
    prefix: bool = False
    suffixes: tuple[str, ...] = ()
    remote: bool = False
    patterns: bool = False
    whole: bool = False
    needs_folder: bool = False
    embedded: bool = False
    splits: tuple[str, ...] = ()
    columns: bool = False


class Source(Protocol):
    """What the file of a data set holds beside ``SPEC``."""

    def load(self, request: "Request") -> "Samples":
        """Open a split.

        Raises:
            UserError: for a split that it does not have, or files that are not as expected.
        """
        ...


def _read_all() -> dict[str, SourceSpec]:
    paths = sorted(path for path in FOLDER.glob("*.py") if path.stem != "__init__")
    return {path.stem: SourceSpec(**read_literals(path, "SPEC")) for path in paths}


SPECS: Mapping[str, SourceSpec] = MappingProxyType(_read_all())
"""All kinds of data sets, by the names of their files."""


def other_splits(kind: str, request: "Request") -> Sequence[str]:
    """List the splits that should have no image in common with that of a request; none: it is not known.

    Raises:
        UserError: for files that are not as expected.
    """
    listed = getattr(load_source(kind), "other_splits", None)
    return [split for split in SPECS[kind].splits if split != request.split] if listed is None else listed(request)


def load_source(kind: str) -> Source:
    """Import the file of a kind of data set, and the libraries that it needs."""
    return cast("Source", import_module(f"losa_cache.data.sources.{kind}"))
