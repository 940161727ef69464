"""Recorded bundles of the official code: DREAMJAX_GOLDENS lists folders, each a bundle or a folder of bundles; ../shared/golden by default."""

import collections
import os
import pathlib

import pytest

DEFAULT = pathlib.Path(__file__).parents[2] / "shared" / "golden"
FOLDERS = [pathlib.Path(path).absolute() for path in os.environ.get("DREAMJAX_GOLDENS", str(DEFAULT)).split(os.pathsep) if path]


def bundles_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folder itself, or those in it, that hold ckpt/ and golden/."""
    homes = [folder, *sorted(folder.iterdir())] if folder.is_dir() else []
    return [home for home in homes if (home / "ckpt").is_dir() and (home / "golden").is_dir()]


FOUND = {folder: bundles_in(folder) for folder in FOLDERS}
BUNDLES = list({path.resolve(): path for found in FOUND.values() for path in found}.values())  # one that is listed twice is one
_TIMES = collections.Counter(path.name for path in BUNDLES)


def name_of(bundle: pathlib.Path) -> str:
    """Its folder's name, with the folder above where another bundle has the same."""
    return bundle.name if _TIMES[bundle.name] <= 1 else f"{bundle.parent.name}/{bundle.name}"


def parameters() -> list:
    """What the argument `bundle` of a test stands for: each bundle, and a skip with a message for each listed folder without one."""
    missing = [folder for folder, found in FOUND.items() if not found] if FOLDERS else [DEFAULT]
    skip = lambda folder: pytest.mark.skip(reason=f"no recorded bundle (ckpt/ and golden/) in {folder}; DREAMJAX_GOLDENS lists their folders")
    return [pytest.param(path, id=name_of(path)) for path in BUNDLES] + [pytest.param(None, marks=skip(folder), id=f"none-in-{folder.name}") for folder in missing]
