"""Checks that the product's own readers find in a folder, whatever its state, the output of an undisturbed command."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from benchmarks.faults.commands import EVALUATE, EXPORT_FOLDERS, EXPORT_MODEL, IMPORT, PREPARE
from benchmarks.faults.compare import Contents, files
from dreamjax import cli
from dreamjax.api import DreamLLM
from dreamjax.config import SourceConfig
from dreamjax.convert import assemble, exporter, importer
from dreamjax.data.registry import open_source
from dreamjax.document import Text
from dreamjax.errors import BadRecord
from dreamjax.training import checkpoint, weight_transfer

CLOCKED = ("elapsed", "tokens_per_second")  # what a line of metrics.jsonl says of time, which no run repeats


def refusal(read: Callable[[], Any]) -> str | None:
    """A reader's refusal, as a command would print it.

    None where it reads. Whatever else it raises is a crash.
    """
    try:
        read()
    except cli.MENDABLE as error:
        return " ".join(str(error).split())
    return None


# ----------------------------------------------------------------------------------------------------------------------
# Models and runs


def state(run: pathlib.Path, step: int) -> Contents:
    """Every array of a checkpoint, and of what the run keeps frozen."""
    return arrays(run / "checkpoints" / str(step) / "state") | {
        f"frozen/{name}": value for name, value in arrays(run / "frozen").items()
    }


def arrays(path: pathlib.Path) -> Contents:
    """{path: array} of what Orbax has written, as it lies there."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.metadata(epath.Path(path)).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        tree = checkpointer.restore(epath.Path(path), args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    return {
        jax.tree_util.keystr(key, simple=True, separator="/"): np.asarray(leaf)
        for key, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def model(folder: pathlib.Path) -> Contents:
    """The parameters, as `DreamLLM.load` gives them, and what `convert info` reads."""
    where = checkpoint.open_folder(folder)
    leaves, origins = exporter.open_model(where).leaves, weight_transfer.origins_of(where, "last")
    parameters = checkpoint.flatten(DreamLLM.load(folder).params)
    return {path: np.asarray(leaf) for path, leaf in parameters.items()} | {
        "names": sorted(leaves),
        "fresh": origins["fresh"],
    }


def weights(folder: pathlib.Path) -> Contents:
    """The parameters of a model folder, or the newest of a run, alone."""
    return {name: value for name, value in model(folder).items() if isinstance(value, np.ndarray)}


def metrics(run: pathlib.Path, last: int) -> list[dict]:
    """The lines of metrics.jsonl up to a step, without what a clock says."""
    path = run / "metrics.jsonl"
    whole = path.read_text().rpartition("\n")[0].split("\n") if path.exists() else []
    lines = [json.loads(line) for line in whole if line]
    return [
        {name: value for name, value in line.items() if name not in CLOCKED} for line in lines if line["step"] <= last
    ]


def last_step(run: pathlib.Path) -> int | None:
    """The newest whole checkpoint of a run; None where there is none yet."""
    folder = checkpoint.open_folder(run)
    return checkpoint.last_step(folder) if checkpoint.steps(folder) else None


def newest(run: pathlib.Path) -> int | None:
    """The same by the names of folders alone, for looking often."""
    return max((int(path.name) for path in (run / "checkpoints").glob("*") if path.name.isdecimal()), default=None)


# ----------------------------------------------------------------------------------------------------------------------
# Outputs of the other commands


def model_folder(folder: pathlib.Path) -> Contents:
    """A model folder: its files, and in place of Orbax's, which are never twice the same, its arrays."""
    found = {name: data for name, data in files(folder).items() if not name.startswith("params/")}
    return found | {f"params/{name}": value for name, value in model(folder).items()}


CONTENTS = {
    PREPARE.name: files,
    EVALUATE.name: files,
    IMPORT.name: model_folder,
    EXPORT_MODEL.name: model_folder,
    EXPORT_FOLDERS.name: files,
}


def documents(folder: pathlib.Path) -> Contents:
    """Every document of a prepared set, finished or not, by its id: its texts and the bytes of its pictures."""
    source = open_source(SourceConfig("array_record", str(folder / "*.array_record")))
    return {
        document.id: [part.text if isinstance(part, Text) else part.source for part in document.parts]
        for document in _usable(source)
    }


def _usable(source):
    for index in range(len(source)):
        try:
            yield source[index]
        except BadRecord:  # which training leaves out and counts
            continue


def folders(folder: pathlib.Path) -> Contents:
    """The weights of a Hugging Face export, as an import reads them."""
    plan = importer.make_plan([str(folder / name) for name in ("llm", "clip", "joints")])
    return {
        path: np.asarray(leaf.read(assemble.definite_index((slice(None),) * len(leaf.shape), leaf.shape)))
        for path, leaf in plan.leaves.items()
    }


def results(folder: pathlib.Path) -> Contents:
    """The JSON that an evaluation has written, entry by entry, since results.json grows in two steps.

    And the whole lines of its predictions.
    """
    found: Contents = {}
    for path in folder.rglob("*.json"):
        name, values = path.relative_to(folder), json.loads(path.read_text())
        entries = (
            {f"{task}/{key}": value for task, facts in values.items() for key, value in facts.items()}
            if path.name == "results.json"
            else {"": values}
        )
        found |= {f"{name}:{entry}": value for entry, value in entries.items()}
    for path in folder.rglob("*.jsonl"):
        whole = path.read_text().rpartition("\n")[0].split("\n")
        found |= {f"{path.relative_to(folder)}:{number}": json.loads(line) for number, line in enumerate(whole) if line}
    return found


READERS: Mapping[str, Callable[[pathlib.Path], Contents]] = {
    PREPARE.name: documents,
    EVALUATE.name: results,
    IMPORT.name: model,
    EXPORT_MODEL.name: model,
    EXPORT_FOLDERS.name: folders,
}
IN_PARTS = (
    PREPARE.name,
    EVALUATE.name,
)  # what these have written so far is of use by itself, where every part of it is whole
