"""What README and docs tell people to type and to open is there: commands with flags that they have, files, links."""

import functools
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = [
    (page.relative_to(ROOT), line.split(" #")[0].strip())
    for page in PAGES
    for line in page.read_text().splitlines()
    if re.match(r"(python -m (dreamjax|benchmarks)\.|dreamjax |launch/)\S", line)
]


@functools.cache
def flags_of(module: str) -> frozenset[str]:
    """The flags that the source of a command and of what it imports from the package defines."""
    file = ROOT / f"{module.replace('.', '/')}.py"
    file = file if file.exists() else file.with_suffix("") / "__main__.py"
    sources = [file, ROOT / "dreamjax" / "parallel" / "multihost.py"] if module.endswith("train") else [file]
    return frozenset(
        name
        for source in sources
        for name in re.findall(r"(?:DEFINE_\w+\(|add_argument\(\s*)\s*\"(?:--)?(\w+)\"", source.read_text())
    )


@pytest.mark.parametrize(
    ("page", "command"), COMMANDS, ids=[f"{page.stem}-{number}" for number, (page, _) in enumerate(COMMANDS)]
)
def test_commands_have_their_flags(page, command):
    if command.startswith("launch/"):
        assert (ROOT / command.split()[0]).exists()
        return
    module = f"dreamjax.{command.split()[1]}" if command.startswith("dreamjax ") else command.split()[2]
    given = {name for name in re.findall(r" --(\w+)", command) if name != "help"}
    assert given <= flags_of(module), f"{page}: {module} has no flag {', '.join(sorted(given - flags_of(module)))}"
    for experiment in re.findall(r"--config=(experiments/\w+\.py|\w+\b(?![/.]))", command):
        file = ROOT / (experiment if "/" in experiment else f"experiments/{experiment}.py")
        assert file.exists() or experiment == "experiments/X.py", f"{page}: {experiment} is no experiment"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files(page):
    for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), f"{page}: {link} is not there"


def test_paths_in_the_architecture_are_there():
    """Modules and folders that docs/architecture.md names, in its drawings and in its text."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    names = set(re.findall(r"\b(?:[a-z_]+/)*[a-z_]+\.py\b", text))
    folders = set(re.findall(r"^\| `([a-z_/]+/)` \|", text, re.M))
    siblings = [path.parent for path in map(pathlib.Path, names) if len(path.parts) > 1]
    assert len(names) > 20 and len(folders) > 10
    for name in names | folders:
        homes = [ROOT / "dreamjax", ROOT, *(ROOT / "dreamjax" / folder for folder in siblings)]
        assert any((home / name).exists() for home in homes), f"docs/architecture.md: {name} is not there"
    packages = {path.parent.name for path in (ROOT / "dreamjax").glob("*/__init__.py")}
    assert packages - {folder.rstrip("/") for folder in folders} <= {"filesystem"}


def test_every_page_is_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text()
    pages = [str(page.relative_to(ROOT / "docs")) for page in PAGES if page.parent != ROOT]
    assert not [page for page in pages if f": {page}\n" not in menu]


def test_every_slow_test_is_in_the_table():
    """docs/contributing.md says of each what shows the same by default."""
    table = (ROOT / "docs" / "contributing.md").read_text()
    files = [file for file in (ROOT / "tests").rglob("test_*.py") if file.name != pathlib.Path(__file__).name]
    slow = [file for file in files if "pytest.mark.slow" in file.read_text()]
    missing = [str(file.relative_to(ROOT)) for file in slow if f"| `{file.relative_to(ROOT)}" not in table]
    assert missing == [], missing


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_snippets_of_python_parse():
    for page in PAGES:
        for snippet in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
            compile(snippet, str(page), "exec")


def test_each_fault_names_tests_that_are_there():
    """A row of a table of faults ends with its tests: tests/FILE.py::NAME, or ::NAME for another one of that file."""
    tables = re.findall(
        r"^\| fault \| what happens \| test \|\n\|-.*\n((?:\|.*\n)+)",
        (ROOT / "docs" / "reliability.md").read_text(),
        re.M,
    )
    rows = [row for table in tables for row in table.splitlines()]
    assert len(rows) > 80
    for row in rows:
        file = ""
        for test in row.removesuffix("|").rpartition("|")[2].strip().split(", "):
            other, _, name = test.partition("::")
            file = other or file
            assert file and (ROOT / file).is_file(), f"{test!r} is no test: {row}"
            assert not name or re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.M), (
                f"{file} has no {name}: {row}"
            )
