"""What the pages say runs."""

import ast
import re
import runpy
import shlex
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import torch
from typer.main import get_command
from typer.testing import CliRunner

import losa_cache as lc
from losa_cache.cli import app
from losa_cache.data.columns import NAMES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCS = ROOT / "docs"
PAGES = {path: path.read_text() for path in (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))}
VERBS = get_command(app).commands
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def fenced(language, *paths):
    """Fenced blocks of these pages, or of all."""
    text = "\n".join(PAGES[path] for path in paths or PAGES)
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def spans():
    """Code in backticks, with the page it stands on."""
    for path, text in PAGES.items():
        for span in re.findall(r"`([^`\n]+)`", FENCED.sub("", text)):
            yield path, span


def options(verb):
    return {name for own in verb.params for name in (*own.opts, *own.secondary_opts)} | {"--help"}


@pytest.mark.slow  # CI has a limit of time
def test_the_library_guides_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = fenced("python", DOCS / "guides" / "library.md")
    names: dict = {}
    exec(block, names)
    assert float(capsys.readouterr().out) > 80
    blocks = [torch.zeros(2, 197, 768)] * 12
    assert names["side"](blocks).shape == (2, 197, 768)


def test_the_adapters_guides_python_runs(digits_home):
    names: dict = {}
    for block in fenced("python", DOCS / "guides" / "adapters.md"):
        exec(block, names)
    assert names["logits"].keys() == {"first", "second"}
    assert names["vectors"]["first"].shape == (4, 2 * 96)
    assert names["model"].adapters.keys() == {"first", "birds"}


def test_the_targets_guides_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = fenced("python", DOCS / "guides" / "targets.md")
    exec(block, {})
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_the_protocols_python_runs(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cache.zarr").symlink_to(digits["train"])
    plain, int8 = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "protocol.md").read_text(), flags=re.DOTALL)
    names: dict = {}
    exec(plain, names)
    assert names["blocks"].shape == (8, 8, 65, 96)
    expected = names["blocks"].float()
    (tmp_path / "cache.zarr").unlink()
    lc.extract("vit_digits", "digits", precision="int8", limit=8, out="cache.zarr")
    exec(plain.splitlines()[3] + "\n" + int8, names)
    assert names["blocks"].shape == (8, 8, 65, 96)
    for layer in range(8):
        assert (names["blocks"] - expected)[:, layer].norm() < 0.015 * expected[:, layer].norm()


def test_the_tutorial_runs(tmp_path, monkeypatch, capsys):
    """But for what only measures (plan) or chooses (probe, --auto, sweep), which has tests of its own."""
    monkeypatch.chdir(tmp_path)
    page = PAGES[DOCS / "tutorial.md"]
    scans, result = fenced("python", DOCS / "tutorial.md")
    exec(scans, {})
    assert len(list((tmp_path / "scans").rglob("*.png"))) == 150
    for number in (2, 4):
        section = page.split(f"\n## {number}. ")[1].split("\n## ")[0]
        for line in re.search(r"```sh\n(.*?)```", section, flags=re.DOTALL)[1].splitlines():
            done = CliRunner().invoke(app, shlex.split(line)[1:], catch_exceptions=False)
            assert done.exit_code == 0, done.output
    capsys.readouterr()
    exec(result, {})
    top1, count = capsys.readouterr().out.split()
    assert int(count) == 50
    assert float(top1) > 50  # of five classes


def commands():
    """Lines of shell blocks, and what the quickstart recommends."""
    for block in fenced("sh"):
        yield from (part.strip() for line in block.splitlines() for part in line.split("#")[0].split("&&"))
    quickstart = (ROOT / "scripts" / "quickstart.py").read_text()
    for line in re.findall(r"^ *(losa-cache [^\n`]*)", quickstart, flags=re.MULTILINE):
        for part in line.split(" && "):
            yield part.split("#")[0].split("\\n")[0].strip()


@pytest.mark.parametrize("command", sorted(set(commands()) - {""}))
def test_every_command_shown_is_one_that_parses(command, tmp_path, monkeypatch):
    (tmp_path / "path" / "to" / "cache.zarr").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(command)
    if program == "losa-cache":
        verb, *arguments = arguments
        if verb in ("eval", "compare", "vtab"):  # runs and folders that are not there are refused at once
            for word in arguments:
                Path(word).mkdir(parents=True, exist_ok=True)
        VERBS[verb].make_context(verb, arguments, resilient_parsing=False)
    elif program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    else:
        assert [program, arguments[0]] == ["pip", "install"]
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = re.fullmatch(r"losa-cache(?:\[(\w+)\])?", arguments[1])
        assert named[1] is None or named[1] in extras


def test_every_option_named_in_the_readme_exists():
    known = {name for verb in get_command(app).commands.values() for name in options(verb)}
    for path, text in PAGES.items():
        named = set(re.findall(r"`(--[\w-]+)", text))
        assert named <= known | {"--help"}, path
    assert re.findall(r"`(--[\w-]+)", README)


def test_options_named_with_a_command_are_its_own():
    seen = 0
    for path, span in spans():
        verb, *words = span.removeprefix("losa-cache ").split()
        if verb in VERBS:
            named = {word for word in words if word.startswith("--")}
            assert named <= options(VERBS[verb]), (path, span)
            seen += len(named)
    assert seen > 10


def test_every_script_named_is_there():
    named = {word for _, span in spans() for word in re.findall(r"\b(?:benchmarks|scripts)/\w+\.py", span)}
    assert named
    assert all((ROOT / name).is_file() for name in named)


@pytest.mark.parametrize("block", fenced("python"))
def test_python_shown_names_what_exists(block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Import):
            for name in node.names:
                import_module(name.name)
        elif isinstance(node, ast.ImportFrom):
            assert all(hasattr(import_module(node.module), name.name) for name in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "lc":
            assert node.attr in lc.__all__


def messages():
    """Every text in the package, with ``...`` where a value stands."""
    for path in (ROOT / "losa_cache").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_the_messages_explained_are_messages():
    page = PAGES[DOCS / "guides" / "troubleshooting.md"]
    wanted = [[part.strip() for part in title.split("...")] for title in re.findall(r"^### (.*)", page, re.MULTILINE)]
    patterns = [re.compile(".*".join(map(re.escape, parts)), re.DOTALL) for parts in wanted]
    every = list(messages())
    assert len(patterns) > 30
    missing = [
        pattern.pattern
        for parts, pattern in zip(wanted, patterns, strict=True)
        if not any(all(part in text for part in parts) and pattern.search(text) for text in every)
    ]
    assert missing == []


def test_the_guide_lists_every_name_that_gives_a_column_its_role():
    rows = [line.split("|") for line in PAGES[DOCS / "guides" / "data.md"].splitlines() if line.startswith("| `")]
    listed = {cells[1].strip(" `"): re.findall(r"`(\w+)`", cells[2]) for cells in rows}
    assert {role: listed[role] for role in NAMES} == {role: list(names) for role, names in NAMES.items()}


def anchors(text):
    """The anchors of a page's headings, as GitHub and MkDocs make them, and those that are given."""
    titles = re.findall(r"^#+ (.*)", FENCED.sub("", text), flags=re.MULTILINE)
    made = {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}
    return made | set(re.findall(r"^\{: #([\w-]+) \}", text, flags=re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", PAGES[page])):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        assert found.is_file(), target
        assert not anchor or anchor in anchors(found.read_text()), target


def test_the_readme_is_short_and_has_its_two_commands():
    assert len(README.splitlines()) <= 150
    lines = [line.split("#")[0].strip() for block in re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
             for line in block.splitlines()]  # fmt: skip
    assert lines[:2] == ["make quickstart", "make test"]


def test_the_reference_has_every_command_option_and_name():
    hook = runpy.run_path(str(ROOT / "scripts" / "docs_hook.py"))
    sections = dict(zip(VERBS, hook["commands"]().split("\n## "), strict=True))
    for name, verb in VERBS.items():
        assert set(re.findall(r"`(--[\w-]+)`", sections[name])) >= options(verb) - {"--help"} - {
            opt for p in verb.params if p.param_type_name == "argument" for opt in p.opts
        }
    named = [line.removeprefix("::: ") for line in hook["names"]().splitlines() if line]
    for name, public in zip(named, lc.__all__, strict=True):
        module, _, own = name.rpartition(".")
        assert getattr(import_module(module), own) is getattr(lc, public)


def test_every_public_name_is_there_and_documented():
    for name in lc.__all__:
        assert getattr(lc, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        lc.nonsense  # noqa: B018


def test_rooms_do_not_hide_the_functions_of_their_names():
    import losa_cache.extract.plan
    import losa_cache.train.loop  # noqa: F401

    assert callable(lc.extract)
    assert callable(lc.train)
