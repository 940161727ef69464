"""The order of the house, read from the source.

Who may import whom, which library belongs where, how long a file may be.
"""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "dreamjax"
FILES = sorted(PACKAGE.rglob("*.py"))

# Of these none needs more than numpy.
DOCUMENTS = {
    "atomic",
    "lock",
    "paths",
    "progress",
    "schema",
    "model_config",
    "config",
    "document",
    "images",
    "tokenizer",
    "tokenizer_training",
    "templates",
    "rows",
    "rows_official",
    "batch",
}
MODELS = DOCUMENTS | {"diffusion", "sharding", "models"}
PRODUCT = MODELS | {"clip_tokenizer", "training", "sampling", "convert", "api"}

# Files and folders right below dreamjax, and the others of these that they may import; a new one needs its place here.
ALLOWED = {
    "__init__": {"document", "api"},  # api only when asked for, see below
    "arguments": {"schema"},
    "atomic": set(),
    "paths": set(),
    "progress": set(),
    "schema": set(),
    "model_config": {"schema"},
    "config": {"schema", "model_config"},
    "images": set(),
    "lock": {"schema"},
    "tokenizer": {"atomic", "schema"},
    "tokenizer_training": set(),
    "document": {"atomic", "paths", "images"},
    "templates": {"schema", "document"},
    "rows": {"config", "document", "templates", "tokenizer"},
    "rows_official": {"schema", "document", "rows", "templates", "tokenizer"},
    "batch": {"config", "rows"},
    "data": DOCUMENTS,
    "diffusion": {"schema", "model_config", "config"},
    "torus": set(),
    "sharding": {"schema", "config", "torus"},
    "models": MODELS,
    "training": MODELS,
    "sampling": MODELS | {"clip_tokenizer"},
    "convert": MODELS | {"training"},
    "api": PRODUCT,
    "evaluation": PRODUCT | {"data"},
    "cli": DOCUMENTS | {"data"},
    "relay": set(),
    "hosts": {"schema", "cli", "relay"},
    "clip_tokenizer": set(),
}
ALLOWED["to_folders"] = PRODUCT
ALLOWED["encoding"] = MODELS | {"training", "data"}
ALLOWED["pod"] = MODELS | {"training", "sampling", "torus"}
COMMANDS = ("train", "sample", "prepare", "precompute", "evaluate", "compile")
ALLOWED |= {
    command: PRODUCT | {"data", "encoding", "evaluation", "cli", "hosts", "pod", "to_folders"} for command in COMMANDS
}
ALLOWED["convert/__main__"] = PRODUCT | {"data", "cli"}

# Libraries and the only files and folders that may import them.
ONLY_IN = {
    "flax.linen": {"models"},
    "torch": {"convert"},
    "diffusers": {"convert"},
    "safetensors": {"convert"},
    "sentencepiece": {"tokenizer", "tokenizer_training"},
    "grain": {"data"},
    "openpyxl": {"evaluation"},
    "pycocoevalcap": {"evaluation"},
    "lm_eval": {"evaluation"},
    "optax": {"training"},
    "orbax": {"training", "hosts"},
    "ml_collections": set(COMMANDS),
}
WITHOUT_JAX = DOCUMENTS | {"data", "cli"}
NOWHERE = ("flax.nnx", "jax.experimental.pjit", "tensorflow")


def unit(file: pathlib.Path) -> str:
    """The file or folder right below dreamjax that a file belongs to; the command of convert is one by itself."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return "convert/__main__" if parts == ("convert", "__main__") else parts[0]


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


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_point_one_way(file):
    assert unit(file) in ALLOWED, f"say in {__file__} what dreamjax/{unit(file)} may import"
    imported = {name.split(".")[1] for name in modules(file) if name.startswith("dreamjax.")}
    imported &= {unit(other) for other in FILES}  # the rest are names in dreamjax/__init__.py
    upwards = imported - ALLOWED[unit(file)] - {unit(file)}
    assert not upwards, f"{name_of(file)} imports {', '.join(sorted(upwards))}"


@pytest.mark.parametrize("library", ONLY_IN)
def test_libraries_in_their_places(library):
    strangers = [
        name_of(file) for file in FILES if uses(file, library) and unit(file).split("/")[0] not in ONLY_IN[library]
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
