"""Formats by name: those of the table, and one of another package by its entry point."""

import importlib.metadata
import inspect

import pytest

from dreamjax.config import SourceConfig
from dreamjax.data import registry
from dreamjax.data.registry import FORMATS, find_opener, formats, open_source
from dreamjax.document import Document, Text
from dreamjax.errors import ConfigError


class Repeated:
    """One text, as often as the path says."""

    skipped = ()

    def __init__(self, text: str, count: int):
        self.text, self.count = text, count
        self.fingerprint = f"repeated-{text}-{count}"

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return Document((Text(self.text),), id=str(index))

    def key(self, index):
        return str(index)

    def texts(self):
        return [self.text]


def open_repeated(config: SourceConfig, seed: int) -> Repeated:
    return Repeated(f"seed {seed}", int(config.path))


@pytest.fixture
def installed(monkeypatch):
    """A package with a format `repeated`, and one that takes a name of ours."""
    points = [
        importlib.metadata.EntryPoint(name, f"{__name__}:open_repeated", registry.GROUP)
        for name in ("repeated", "mmc4")
    ]
    monkeypatch.setattr(importlib.metadata.EntryPoint, "load", lambda point: open_repeated)
    monkeypatch.setattr(registry, "_entry_points", lambda: importlib.metadata.EntryPoints(points))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_opened_by_config_and_seed(name):
    assert list(inspect.signature(find_opener(name)).parameters) == ["config", "seed"]


def test_a_format_of_another_package(installed):
    source = open_source(SourceConfig("repeated", "3"), seed=7)
    assert (len(source), source[2].text) == (3, "seed 7")
    assert formats() == (*FORMATS, "repeated")
    assert find_opener("mmc4") is not open_repeated  # no package takes a name of ours


def test_an_unknown_format_names_those_that_are(installed):
    with pytest.raises(ConfigError, match="data.format: 'repeted' is unknown; formats are shapes, .*, tfds, repeated"):
        open_source(SourceConfig("repeted", "3"))


def test_no_entry_point_is_installed_by_this_package():
    assert {point.name for point in registry._entry_points()}.isdisjoint(FORMATS)
