"""Bundles of what the official code computes: those in the folders that DREAMJAX_GOLDENS lists, each a bundle or a
folder of bundles.

Where it is not set, those in ../shared/golden, and one that parity/make_bundle.py makes of torch's parts, once in a
session.
"""

import collections
import fcntl
import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

DEFAULT = pathlib.Path(__file__).parents[3] / "shared" / "golden"
MADE = "made"  # stands for the bundle that is made, and is its folder's name
MAKER = pathlib.Path(__file__).parents[1] / "parity" / "make_bundle.py"
LISTED = os.environ.get("DREAMJAX_GOLDENS")
FOLDERS = [
    pathlib.Path(path).absolute() for path in (str(DEFAULT) if LISTED is None else LISTED).split(os.pathsep) if path
]


def bundles_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folder itself, or those in it, that hold ckpt/ and golden/."""
    homes = [folder, *sorted(folder.iterdir())] if folder.is_dir() else []
    return [home for home in homes if (home / "ckpt").is_dir() and (home / "golden").is_dir()]


FOUND = {folder: bundles_in(folder) for folder in FOLDERS}
BUNDLES = list(
    {path.resolve(): path for found in FOUND.values() for path in found}.values()
)  # one that is listed twice is one
_TIMES = collections.Counter(path.name for path in BUNDLES)


def name_of(bundle: pathlib.Path) -> str:
    """Its folder's name, with the folder above where another bundle has the same."""
    return bundle.name if _TIMES[bundle.name] <= 1 else f"{bundle.parent.name}/{bundle.name}"


def recorded_file(bundle: pathlib.Path, name: str) -> pathlib.Path:
    """A file of golden/. A test that asks for one that the bundle lacks is skipped."""
    file = bundle / "golden" / name
    if not file.exists():
        pytest.skip(f"{name_of(bundle)} has no {name}")
    return file


def parameters() -> list:
    """What the fixture `bundle` is asked for.

    Each bundle, and a skip with a message for each listed folder without one.
    """
    missing = [folder for folder, found in FOUND.items() if not found] if FOLDERS else [DEFAULT]

    def skip(folder):
        return pytest.mark.skip(
            reason=f"no recorded bundle (ckpt/ and golden/) in {folder}; DREAMJAX_GOLDENS lists their folders"
        )

    recorded = [pytest.param(path, id=name_of(path)) for path in BUNDLES]
    return (
        recorded
        + [pytest.param(None, marks=skip(folder), id=f"none-in-{folder.name}") for folder in missing]
        + [MADE] * (LISTED is None)
    )


def make(folder: pathlib.Path) -> pathlib.Path:
    """The made bundle in a folder that all processes of a session share; the first of them to ask makes it."""
    missing = [name for name in ("torch", "transformers", "diffusers") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"a bundle is made with {', '.join(missing)}, not installed here: requirements-dev.txt")
    home = folder / MADE
    with open(folder / f"{MADE}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "golden" / "data.json").exists():  # what is written last
            made = subprocess.run([sys.executable, MAKER, f"--out={home}"], capture_output=True, text=True)
            assert made.returncode == 0, made.stderr
    return home
