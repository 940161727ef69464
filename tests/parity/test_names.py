"""Every recorded array has its place: it is an input, or one test module compares it."""

import pathlib
import re

from parity.bundles import COMPARED, INPUTS, open_bundle


def places(file: str, name: str) -> list[str]:
    tables = [(files, "input", pattern) for files, pattern in INPUTS.items()]
    tables += [(files, module, pattern) for (files, module), pattern in COMPARED.items()]
    return [place for files, place, pattern in tables if re.fullmatch(files, file) and re.fullmatch(pattern, name)]


def test_every_recorded_array_has_one_place(bundle):
    opened = open_bundle(bundle)
    found = {f"{file}/{name}": places(file, name) for file in opened.files(".*") for name in opened.arrays(file)}
    assert found and not {name: place for name, place in found.items() if len(place) != 1}


def test_an_unknown_array_has_no_place():
    assert places("components", "unet_in") == places("grads_base", "unet.weight") == places("other", "loss") == []
    assert places("forward_joint", "loss") == ["test_forward"] and places("vmloss", "noise") == ["input"]


def test_the_modules_that_compare_are_there_and_do():
    for files, module in COMPARED:
        text, begin = (pathlib.Path(__file__).parent / f"{module}.py").read_text(), re.match(r"\w+", files)[0]
        assert re.search(rf'\.compare\((file|f?"{begin}\S*), "{module}"', text), f"{module} does not compare {files}"
