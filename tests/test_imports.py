"""The order of the house, read from the source.

Who may import whom, which library belongs where, how long a file may be.
"""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "dreamjax"
FILES = sorted(PACKAGE.rglob("*.py"))

# What may import what: folders and files right below dreamjax, and those of data by themselves. A new one needs its
# place here.
LEAVES = {"errors", "progress"}
DOCUMENTS = LEAVES | {"filesystem", "config", "document"}  # none needs more than numpy
DATA = {"data", "data.storage", "data.sources", "data.features", "data.pipeline", "data.prepare"}
MODELS = DOCUMENTS | {"diffusion", "parallel", "models"}
PRODUCT = MODELS | {"training", "sampling", "convert", "api"}
ALLOWED = {
    "__init__": {"document", "api"},  # api only when asked for, see below
    "errors": set(),
    "progress": set(),
    "filesystem": {"errors"},
    "config": {"errors"},
    "document": {"errors", "filesystem", "config"},
    "data.storage": {"errors", "filesystem"},
    "data": DOCUMENTS | {"data.storage", "data.sources"},  # source, registry
    "data.sources": DOCUMENTS | {"data", "data.storage"},
    "data.features": MODELS | {"training", "data", "data.storage", "data.sources"},
    "data.pipeline": DOCUMENTS | DATA - {"data.prepare"},
    "data.prepare": DOCUMENTS | {"data", "data.storage", "data.sources"},
    "diffusion": {"errors", "config"},
    "parallel": {"errors", "config", "cli"},
    "models": MODELS,
    "training": MODELS,
    "sampling": MODELS,
    "convert": MODELS | {"training"},
    "api": PRODUCT,
    "evaluation": PRODUCT | DATA,
    "compile_tpu": MODELS | {"training", "sampling"},
    "__main__": {"__init__"},  # starts the commands by name
    "cli": LEAVES | {"config"},
}
COMMANDS = ("train", "sample", "prepare", "precompute", "evaluate", "compile")
ALLOWED |= {command: PRODUCT | DATA | {"evaluation", "cli", "compile_tpu"} for command in COMMANDS}
ALLOWED["convert.__main__"] = PRODUCT | {"cli"}

# Libraries and the only folders and files that may import them.
ONLY_IN = {
    "flax.linen": {"models"},
    "torch": {"convert"},
    "diffusers": {"convert"},
    "safetensors": {"convert"},
    "sentencepiece": {"document"},
    "grain": {"data.pipeline", "data.features"},
    "openpyxl": {"evaluation"},
    "pycocoevalcap": {"evaluation"},
    "lm_eval": {"evaluation"},
    "optax": {"training"},
    "orbax": {"training", "parallel"},
    "ml_collections": set(COMMANDS),
}
WITHOUT_JAX = DOCUMENTS | DATA - {"data.features"} | {"cli"}
NOWHERE = ("flax.nnx", "jax.experimental.pjit", "tensorflow")
AT_THE_TOP = 14  # modules right below dreamjax, each a command or what all share


def unit_of(module: str) -> str:
    """The unit of ALLOWED that a module, named without `dreamjax.`, belongs to."""
    parts = module.split(".")
    if module in ALLOWED:
        return module
    return ".".join(parts[:2]) if ".".join(parts[:2]) in ALLOWED else parts[0]


def module_of(file: pathlib.Path) -> str:
    """`data.storage.files`; a package is its `__init__`, which goes by the package's name."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def unit(file: pathlib.Path) -> str:
    return unit_of(module_of(file))


def modules(file: pathlib.Path) -> set[str]:
    """Every module that a file imports, anywhere in it, by its full name; of `from a import b` both a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                found |= {name.name for name in names}
            case ast.ImportFrom(module=module, names=names, level=level):
                assert level == 0, f"{file}:{node.lineno}: imports are absolute"
                found |= {module, *(f"{module}.{name.name}" for name in names)}
    return found


def uses(file: pathlib.Path, library: str) -> bool:
    return any(name == library or name.startswith(library + ".") for name in modules(file))


def name_of(file: pathlib.Path) -> str:
    return str(file.relative_to(PACKAGE))


MODULES = {module_of(file): file for file in FILES}


def dependencies(file: pathlib.Path) -> set[str]:
    """The modules of ours that a file imports, at its top or within a function.

    Of `from package import module` the module alone: what a package's own file imports is no matter of those who ask
    for one of its modules.
    """
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                found |= {name.name for name in names}
            case ast.ImportFrom(module=module, names=names):
                full = {name.name: f"{module}.{name.name}".removeprefix("dreamjax.") for name in names}
                found |= {f"dreamjax.{name}" if name in MODULES else module for name in full.values()}
    found = {
        name.removeprefix("dreamjax.") if "." in name else "__init__"
        for name in found
        if f"{name}.".startswith("dreamjax.")
    }
    return found & set(MODULES)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_point_one_way(file):
    assert unit(file) in ALLOWED, f"say in {__file__} what {name_of(file)} may import"
    upwards = {module for module in dependencies(file) if unit_of(module) not in ALLOWED[unit(file)] | {unit(file)}}
    assert not upwards, f"{name_of(file)} imports {', '.join(sorted(upwards))}"


def test_no_module_imports_itself_by_way_of_others():
    graphlib.TopologicalSorter({name: dependencies(file) for name, file in MODULES.items()}).prepare()


def test_the_top_is_a_list_of_commands():
    top = sorted(file.name for file in PACKAGE.glob("*.py"))
    assert len(top) <= AT_THE_TOP, f"{len(top)} modules: {', '.join(top)}"


@pytest.mark.parametrize("library", ONLY_IN)
def test_libraries_in_their_places(library):
    strangers = [
        name_of(file)
        for file in FILES
        if uses(file, library)
        and unit(file) not in ONLY_IN[library]
        and unit(file).split(".")[0] not in ONLY_IN[library]
    ]
    assert not strangers, f"{library} is imported by {', '.join(strangers)}"


def test_libraries_that_have_no_place():
    assert not [(name_of(file), library) for file in FILES for library in NOWHERE if uses(file, library)]


def test_documents_and_data_know_nothing_of_jax():
    assert not [
        name_of(file) for file in FILES if unit(file) in WITHOUT_JAX and (uses(file, "jax") or uses(file, "flax"))
    ]


def test_the_package_alone_is_light():
    code = (
        "import sys, dreamjax; heavy = {'jax', 'flax', 'torch', 'transformers', 'sentencepiece'} & "
        "set(sys.modules); assert not heavy, heavy; "
        "dreamjax.Document.of('a goat'); assert 'jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_files_are_short(file):
    lines = file.read_text(encoding="utf-8").count("\n")
    assert lines <= 400, f"{name_of(file)} has {lines} lines"
