"""Facts that a file of code states as literals, read without running the file, as setuptools reads a version.

So names, help texts and refusals need none of the libraries that the file imports.
"""

import ast
import re
from pathlib import Path
from typing import Any


def read_literals(path: Path, name: str) -> dict[str, Any]:
    """Read the keyword arguments of ``NAME = Anything(...)`` in a file.

    Raises:
        ValueError: if it has none, or one that is not made of literals.
    """
    statement = re.search(rf"^{name} = .*(?:\n[ )].*)*", path.read_text(encoding="utf-8"), re.MULTILINE)
    if statement is None:
        raise ValueError(f"{path} has no {name}")
    (assigned,) = ast.parse(statement[0]).body  # of the whole file it would take longer than to import the command line
    assert isinstance(assigned, ast.Assign), f"{name} of {path} is no assignment"
    assert isinstance(assigned.value, ast.Call), f"{name} of {path} is not made by a call"
    return {str(fact.arg): ast.literal_eval(fact.value) for fact in assigned.value.keywords}
