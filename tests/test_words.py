"""The words of the code: what the field calls a thing, not a dialect of ours."""

import ast
import io
import pathlib
import re
import tokenize

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "dreamjax"
FILES = sorted(PACKAGE.rglob("*.py"))

# As whole identifiers, each with the word that stands in its place.
REPLACED = {
    "learned": "supervised, or loss_mask for the array",
    "seen": "input",
    "dreamed": "target",
    "picture": "image",
    "pictures": "images",
    "held_back": "heldout",
    "kept_apart": "heldout",
    "whole": "full, merged, or replicated over devices",
    "where": "shardings, or the location",
    "cut": "truncated",
    "silent": "no_loss",
    "coin": "direction",
    "deal": "chunks",
    "hands": "chunks",
    "in_words": "format_summary",
    "handover": "weight transfer",
    "Watch": "TrainLogger",
    "Row": "TokenSequence",
    "build_row": "tokenize_document",
    "agreement": "stop_consensus",
    "say": "print_on_host0",
    "together": "multihost_main",
    "stamp": "file_version",
    "Opened": "RawImage",
    "Stored": "PrecomputedImage",
    "Member": "ByteRange, PackedExample",
    "Wish": "GenerationPrompt",
    "Manner": "GenerationSettings",
    "Painter": "ImageGenerator",
    "gathered_readout": "with_replicated_head",
    "Parts": "Model",
    **dict.fromkeys(("found", "made", "now", "one", "theirs", "mine"), "the thing's own name"),
}
OF_OTHERS = {("np", "where"), ("jnp", "where"), ("datetime", "now")}  # names of libraries
RIDDLES = re.compile(r"(What|Whether|How|Where|The one that)\b")


def name_of(file: pathlib.Path) -> str:
    return str(file.relative_to(PACKAGE))


def replaced_words(source: str) -> list[str]:
    """`line: word` of each identifier that is a replaced word."""
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    uses = []
    for i, token in enumerate(tokens):
        if token.type == tokenize.NAME and token.string in REPLACED:
            owner = tokens[i - 2].string if i > 1 and tokens[i - 1].string == "." else ""
            if (owner, token.string) not in OF_OTHERS:
                uses.append(f"{token.start[0]}: {token.string} ({REPLACED[token.string]})")
    return uses


def openings(source: str) -> list[str]:
    """First lines of docstrings that ask instead of saying what there is."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    texts = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    return [text.splitlines()[0] for text in texts if RIDDLES.match(text)]


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_identifiers_are_the_fields_words(file):
    assert replaced_words(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_docstrings_begin_with_what_is_given(file):
    assert openings(file.read_text(encoding="utf-8")) == []


def test_the_words_are_recognised():
    assert replaced_words("found = np.where(x)\nwhere = 1") == [
        "1: found (the thing's own name)",
        "2: where (shardings, or the location)",
    ]
    assert openings('"""What it is."""\ndef f():\n    """The sum."""') == ["What it is."]
