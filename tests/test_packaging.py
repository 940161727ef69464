"""The package as it is installed: one version, one list of packages, experiments by name, the console command."""

import configparser
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

import dreamjax
from dreamjax.__main__ import COMMANDS
from dreamjax.cli import with_experiment_files
from dreamjax.config.arguments import EXPERIMENTS
from dreamjax.errors import ConfigError

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = ("dreamjax", "experiments", "setup.cfg", "pyproject.toml", "requirements.txt", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> pathlib.Path:
    """A folder with the package, installed as a wheel, and bin/dreamjax; the packages that it needs are the tests'."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in SOURCES:  # the build leaves files beside what it builds
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source / name)
    options = ["--no-deps", "--no-build-isolation", "--no-compile", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *options, f"--target={target}", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=source)
    assert done.returncode == 0, done.stderr
    return target


def run(installed: pathlib.Path, folder: pathlib.Path, *command: str) -> str:
    """What a command prints that is run in a folder outside the checkout."""
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_wheel_has_version_types_and_experiments(installed, tmp_path):
    code = (
        "import importlib.metadata, dreamjax, dreamjax.experiments; "
        "print(dreamjax.__file__, dreamjax.__version__, importlib.metadata.version('dreamjax'))"
    )
    path, *versions = run(installed, tmp_path, sys.executable, "-c", code).split()
    assert pathlib.Path(path).is_relative_to(installed) and versions == [dreamjax.__version__] * 2
    assert (installed / "dreamjax" / "py.typed").exists()
    names = sorted(str(file.relative_to(ROOT)) for file in (ROOT / "experiments").rglob("*.py"))
    experiments = (installed / "dreamjax" / "experiments").rglob("*.py")
    assert sorted(str(file.relative_to(installed / "dreamjax")) for file in experiments) == names
    assert not (installed / "experiments").exists()


def test_the_command_finds_an_experiment_anywhere(installed, tmp_path):
    command = str(installed / "bin" / "dreamjax")
    overrides = ("--config.seed=3", "--config.data.seen_slots=12")  # the second by its name before 0.2
    printed = run(installed, tmp_path, command, "train", "--config=quickstart", *overrides, "--dry_run")
    facts = json.loads(printed.splitlines()[-1])
    assert facts["parameters"]["llm"] and facts["input_slots"] == 8 * 12
    assert not list(tmp_path.iterdir())


def test_help_has_a_line_for_each_command(installed, tmp_path):
    lines = run(installed, tmp_path, str(installed / "bin" / "dreamjax"), "--help").splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(COMMANDS)
    assert all((ROOT / "dreamjax" / name).is_dir() or (ROOT / "dreamjax" / f"{name}.py").exists() for name in COMMANDS)


@pytest.mark.parametrize("argument", ["", ":a,init=runs/b"])
def test_names_of_experiments_become_paths(argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = f"{EXPERIMENTS / 'storybook.py'}{argument}"
    for words in (["--config=storybook" + argument], ["--config", "storybook" + argument]):
        assert "=".join(with_experiment_files(["train", *words])[1:]) == f"--config={file}"
    for path in ("experiments/storybook.py:stories", "storybook.py", "./storybook"):
        assert with_experiment_files(["train", f"--config={path}"]) == ["train", f"--config={path}"]
    with pytest.raises(ConfigError, match="'stories' is neither a file nor one of the experiments .* storybook"):
        with_experiment_files(["train", "--config=stories"])


def test_extras_and_requirements_are_one_list():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = {name: text.split() for name, text in setup["options.extras_require"].items()}
    assert setup["options"]["install_requires"] == "file: requirements.txt"
    for extra in ("cuda", "tpu", "dev"):
        first, *packages = (ROOT / f"requirements-{extra}.txt").read_text().splitlines()
        assert first == "-r requirements.txt" and packages == extras[extra]


def test_the_lock_meets_the_bounds():
    lock = dict(line.split("==") for line in (ROOT / "requirements-lock.txt").read_text().split("\n") if "==" in line)
    names = {name.lower().replace("_", "-"): version for name, version in lock.items()}
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, bound = line.split(">=")
            version = names[name.split("[")[0].lower().replace("_", "-")]
            assert [int(part) for part in version.split(".")[:2]] >= [int(part) for part in bound.split(".")], line
