"""What version 0.1.0 wrote is read as it was meant: a run, a model folder, a prepared set, a finished document.

tests/stored/version_0_1_0.tar.xz holds a run of three steps on the built-in shapes, its export as params, two
conversations that `prepare` wrote, and a document of `sample` (--seed=3, 12 tokens, one image in two steps).
"""

import json
import pathlib
import tarfile

import jax
import numpy as np
import pytest
from etils import epath

from dreamjax import DreamLLM
from dreamjax.config import SourceConfig
from dreamjax.data.pipeline.loader import Loader
from dreamjax.data.registry import open_source
from dreamjax.document import Image, Text
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.parallel.mesh import make_mesh
from dreamjax.sampling import output_folder
from dreamjax.training import checkpoint
from dreamjax.training.initialize import begin, prepare_workdir
from dreamjax.training.state import init, shardings

STORED = pathlib.Path(__file__).parent / "stored" / "version_0_1_0.tar.xz"


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("stored")
    with tarfile.open(STORED) as archive_:
        archive_.extractall(folder, filter="data")
    return folder


def test_a_run_and_its_export_hold_the_same_weights(stored):
    run, exported = (DreamLLM.load(stored / name).params for name in ("run", "model"))
    jax.tree.map(np.testing.assert_array_equal, run, exported)


def test_a_document_is_written_once_more_from_its_story(stored):
    asked = output_folder.asked(epath.Path(stored / "story"))
    record = json.loads((stored / "story" / "story.json").read_text())
    made = DreamLLM.load(stored / "run").generate(asked.prompt, asked.seed, **record["options"])
    assert asked.prompt.text + made.text == "".join(part.get("text", "") for part in record["parts"])
    drawn = np.asarray(Image(stored / "story" / "image_0.png").pil(), int)
    assert np.abs(np.asarray(made.images[0], int) - drawn).max() <= 1  # one level, for other processors' rounding
    assert output_folder.read(epath.Path(stored / "story"), asked.prompt, asked.seed, asked.options) == record


def test_a_prepared_set_is_read(stored):
    source = open_source(SourceConfig("array_record", str(stored / "prepared")))
    first, second = source[0], source[1]
    assert [part.text.strip() for part in first.parts if isinstance(part, Text)] == ["What is it?", "Noise."]
    assert [part.text.strip() for part in second.parts if isinstance(part, Text)] == ["And this?", "More noise."]
    image = next(part for part in first.parts if isinstance(part, Image))
    assert (image.is_input, image.is_target, image.role, image.pil().size) == (True, False, "user", (16, 16))
    assert [part.role for part in first.parts if isinstance(part, Text)] == ["user", "assistant"]


def test_a_run_goes_on(stored):
    folder = epath.Path(stored / "run")
    config = checkpoint.read_config(folder)
    prepare_workdir(folder, config)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    shapes = jax.eval_shape(lambda: init(config))
    manager = checkpoint.open_manager(folder, config.checkpoints_kept)
    state, _, meta = begin(config, folder, manager, shapes, shardings(*shapes, mesh))
    loader = Loader(config, config.data.train, Tokenizer.load(folder / "tokenizer"), folder / "lengths")
    assert int(state.step) == 3
    assert meta["data"] == loader.fingerprint
    manager.close()
