"""Facts that a file of code states as literals, read without running the file, as setuptools reads a version.

So names, help texts and refusals need none of the libraries that the file imports.
"""

import ast
from pathlib import Path
from typing import Any


def read_literals(path: Path, name: str) -> dict[str, Any]:
    """Read the keyword arguments of ``NAME = Anything(...)`` in a file.

    Raises:
        ValueError: if it has none, or one that is not made of literals.
    """
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name:
            assert isinstance(statement.value, ast.Call), f"{name} of {path} is not made by a call"
            return {str(fact.arg): ast.literal_eval(fact.value) for fact in statement.value.keywords}
    raise ValueError(f"{path} has no {name}")
