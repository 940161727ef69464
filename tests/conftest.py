"""What all tests stand on.

Eight fake CPU devices, the marker for slow ones, and the default run's configuration and tokenizer.
"""

import atexit
import os
import pathlib
import runpy
import shutil
import subprocess
import sys
import tempfile

import goldens
import pytest
import quick_xla

from dreamjax import cli

# Before anything makes an array. What one test compiles, the workers and the commands that tests start need not compile
# again.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="dreamjax-compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = quick_xla.flags(devices=8)
cli.patience_for_fake_devices()


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes many seconds; leave out with -m 'not slow'")
    report = os.environ.get("DREAMJAX_PARITY_REPORT")
    if report and not hasattr(config, "workerinput"):  # the session itself, not one of its worker processes
        pathlib.Path(report).unlink(missing_ok=True)


def pytest_collection_modifyitems(items):
    """Files with slow tests come first.

    Two workers end at about the same time only where what is left for the end is short.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_generate_tests(metafunc):
    if "bundle" in metafunc.fixturenames:
        metafunc.parametrize("bundle", goldens.parameters(), scope="module", indirect=True)


@pytest.fixture(scope="module")
def bundle(request, tmp_path_factory) -> pathlib.Path:
    """A folder with ckpt/ and golden/; see goldens.py."""
    if request.param != goldens.MADE:
        return request.param
    own = tmp_path_factory.getbasetemp()
    return goldens.make(
        own.parent if hasattr(request.config, "workerinput") else own
    )  # a worker's own folder lies in the session's


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Indexes of the tests' data, and of commands that tests start, are kept apart from the user's."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shapes_tokenizer():
    """The tokenizer that the default run trains: every word of the shapes is a piece or a few."""
    from dreamjax.data.sources import shapes
    from dreamjax.document.tokenizer import Tokenizer
    from dreamjax.document.tokenizer_training import train_tokenizer

    return Tokenizer.from_model(train_tokenizer(shapes.corpus(), 512))


@pytest.fixture(scope="session")
def quickstart():
    """The RunConfig of experiments/quickstart.py."""
    from dreamjax.config import RunConfig
    from dreamjax.config.validation import from_dict

    experiment = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "experiments" / "quickstart.py"))
    return from_dict(RunConfig, experiment["get_config"]())


@pytest.fixture()
def training(capsys, monkeypatch):
    """`python -m dreamjax.train` with arguments in this process, each time as if for the first time.

    A new one takes seconds for its imports.
    """
    from absl import flags

    from dreamjax import train

    def run(*arguments: str) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", ["dreamjax.train", *arguments])
        flags.FLAGS.unparse_flags()
        for name in [name for name in flags.FLAGS if name.startswith("config.")]:  # which an argument defined
            delattr(flags.FLAGS, name)
        for flag in flags.FLAGS.get_key_flags_for_module(train):
            flag.unparse()
        with pytest.raises(SystemExit) as ended:
            cli.run("dreamjax.train", train.main)
        return subprocess.CompletedProcess(arguments, ended.value.code, *capsys.readouterr())

    return run
