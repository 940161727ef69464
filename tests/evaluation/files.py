"""Files of predictions and the real evaluation data, for the tests of scorers."""

import json
import os
import pathlib

import pytest

DATA = (
    pathlib.Path(os.environ.get("DREAMJAX_DATA", pathlib.Path(__file__).parents[2].parent / "shared" / "data")) / "eval"
)


def real_data(name: str) -> pathlib.Path:
    """A folder of the real evaluation data; skips the test where it is absent."""
    if not (DATA / name).exists():
        pytest.skip(f"needs {DATA / name}; DREAMJAX_DATA names the folder above eval/")
    return DATA / name


def write_lines(path: pathlib.Path, rows: list[dict]) -> pathlib.Path:
    """A JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_json(path: pathlib.Path, content) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path
