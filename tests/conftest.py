"""What all tests stand on: eight fake CPU devices, the marker for slow ones, and the default run's configuration and tokenizer."""

import os
import pathlib
import runpy

import pytest

# Before anything imports jax. Eight devices on few cores can be late for a collective: XLA's own patience is 40 s.
os.environ["JAX_PLATFORMS"] = "cpu"
_XLA_FLAGS = {"--xla_force_host_platform_device_count": 8, "--xla_cpu_collective_call_terminate_timeout_seconds": 600}
_set = os.environ.get("XLA_FLAGS", "")
# XLA's thread pool is as large as this says, else as the machine has cores; collectives that wait on each other fill a small one.
os.environ.setdefault("NPROC", "32")
os.environ["XLA_FLAGS"] = " ".join([_set, *(f"{flag}={value}" for flag, value in _XLA_FLAGS.items() if flag not in _set)]).strip()


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes many seconds; leave out with -m 'not slow'")


@pytest.fixture(scope="session")
def shapes_tokenizer():
    """The tokenizer that the default run trains: every word of the shapes is a piece or a few."""
    from dreamjax.data.sources import shapes
    from dreamjax.tokenizer import Tokenizer, train_tokenizer

    return Tokenizer.from_model(train_tokenizer(shapes.corpus(), 512))


@pytest.fixture(scope="session")
def quickstart():
    """The RunConfig of experiments/quickstart.py."""
    from dreamjax.config import RunConfig
    from dreamjax.schema import from_dict

    experiment = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "experiments" / "quickstart.py"))
    return from_dict(RunConfig, experiment["get_config"]())
