"""The layouts that load, compared with torch: python -m benchmarks.what_loads [--only=TEXT] [--folder=DIR]

For every layout of benchmarks/layouts: writes a small model in it with the libraries' own writers, imports it, compares
the numbers of each part with torch's as `convert verify` does, in float32 and in bfloat16, and compares what was read,
bit by bit, with what was read from the first layout of the same weights. Then what export writes is imported again, and
one folder goes through the real commands. Prints a table in Markdown; the last line of stdout is JSON. Ends with 1
where anything differs.
"""

import argparse
import datetime
import functools
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath
from tqdm import tqdm

from benchmarks.layouts import clip, llm, official, stable_diffusion
from benchmarks.layouts.common import Layout, Written
from dreamjax.convert import assemble, exporter, huggingface_export, importer, verify
from dreamjax.convert.assemble import ImportPlan

LAYOUTS = (*llm.LAYOUTS, *clip.LAYOUTS, *stable_diffusion.LAYOUTS, *official.LAYOUTS)
ROOT = pathlib.Path(__file__).parents[1]
DATA = pathlib.Path(os.environ.get("DREAMJAX_DATA", str(ROOT / ".." / "shared" / "data"))) / "stories260K"
Bits = dict[str, tuple[str, tuple[int, ...], bytes]]


def plan_of(layout: Layout, written: Written) -> ImportPlan:
    """The import plan of a layout."""
    return importer.make_plan(
        [str(source) for source in written.sources], written.tokenizer and str(written.tokenizer), layout.parts
    )


def bits_of(plan: ImportPlan) -> Bits:
    """{path: dtype, shape and bytes} of all that the sources bring."""
    arrays = {
        path: np.asarray(leaf.read(assemble.definite_index((slice(None),) * len(leaf.shape), leaf.shape)))
        for path, leaf in plan.leaves.items()
        if path not in plan.fresh
    }
    return {path: (str(array.dtype), array.shape, array.tobytes()) for path, array in arrays.items()}


def wrong_facts(layout: Layout, plan: ImportPlan) -> list[str]:
    """Facts of the layout that the plan lacks."""
    found = {name: functools.reduce(getattr, name.split("."), plan) for name in layout.facts}
    return [f"{name} is {found[name]!r}, not {value!r}" for name, value in layout.facts.items() if found[name] != value]


def compare(layout: Layout, written: Written, plan: ImportPlan, folder: pathlib.Path) -> dict[str, Any]:
    """The row of one layout: imported to disk and verified."""
    importer.write(plan, epath.Path(folder))
    rows = verify.verify(epath.Path(folder), [str(source) for source in written.against or written.sources])
    return row(layout.family, layout.name, rows)


def row(family: str, name: str, rows: list[dict]) -> dict[str, Any]:
    """The largest errors of what `verify` compared."""
    largest = {key: max(one[key] for one in rows) for key in ("float32", "bfloat16", "torch_bfloat16")}
    return {
        "family": family,
        "layout": name,
        "parts": list(dict.fromkeys(one["part"] for one in rows)),
        **largest,
        "ok": all(one["ok"] for one in rows),
    }


def layouts(only: str, home: pathlib.Path) -> Iterator[dict[str, Any]]:
    """A row for each layout."""
    first: dict[str, Bits] = {}
    for number, layout in enumerate(
        tqdm([one for one in LAYOUTS if only in f"{one.family}, {one.name}"], unit="layout", disable=None)
    ):
        written = layout.write(home / str(number))
        plan = plan_of(layout, written)
        found = compare(layout, written, plan, home / f"{number}-model")
        bits = bits_of(plan)
        same = bits == first.setdefault(layout.weights, bits)
        wrong = wrong_facts(layout, plan) + (
            [] if same else ["what was read is not what the first layout of these weights gives"]
        )
        yield {**found, "wrong": wrong, "ok": found["ok"] and not wrong}


def stories(home: pathlib.Path) -> Iterator[dict[str, Any]]:
    """The real checkpoint of llama2.c, where it is."""
    if DATA.exists():
        layout = Layout("llama2.c", "stories260K, a trained model", "", None)
        written = Written((DATA / "stories260K.bin",), DATA / "tok512.bin")
        yield compare(layout, written, plan_of(layout, written), home / "stories")


def round_trips(home: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Three folders make a DreamLLM, which is exported in every format and read again."""
    written = [
        llm.as_today(home / "trip"),
        clip.both_today(home / "trip"),
        stable_diffusion.as_today(home / "trip", "2.1", "pndm"),
    ]
    sources = [str(source) for one in written for source in one.sources]
    importer.write(importer.make_plan(sources), epath.Path(home) / "joined")
    yield row(
        "LLaMA + CLIP + SD",
        "three folders, with fresh joints and rows for added tokens",
        verify.verify(epath.Path(home) / "joined", sources),
    )
    before = {
        path: np.asarray(leaf.read((slice(None),) * len(leaf.shape)))
        for path, leaf in exporter.open_model(epath.Path(home) / "joined").leaves.items()
    }
    for kind in exporter.FORMATS:
        out = home / f"as-{kind}"
        left = exporter.export(epath.Path(home) / "joined", kind, epath.Path(out))
        if kind == "params":
            leaves = exporter.open_model(epath.Path(out)).leaves
        else:
            leaves = importer.make_plan(
                [str(out)] if kind == "official" else [str(out / name) for name in huggingface_export.FOLDERS]
            ).leaves
        after = {
            path: np.asarray(leaf.read(assemble.definite_index((slice(None),) * len(leaf.shape), leaf.shape)))
            for path, leaf in leaves.items()
        }
        kept = {path: value for path, value in before.items() if path.split("/")[0] not in left}
        same = kept.keys() == after.keys() and all(
            value.dtype == after[path].dtype and value.tobytes() == after[path].tobytes()
            for path, value in kept.items()
        )
        parts = list(dict.fromkeys(path.split("/")[0] for path in kept))
        yield {
            "family": "Round trip",
            "layout": f"export --format={kind}, then import",
            "parts": parts,
            "bits": same,
            "ok": same,
        }


def commands(home: pathlib.Path) -> Iterator[dict[str, Any]]:
    """One folder through `import` and `verify` as processes."""
    (source,) = llm.before(home / "commands", name="vicuna-7b-v1.5", buffers=True).sources

    def call(*arguments: str) -> dict:
        environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
        done = subprocess.run(
            [sys.executable, "-m", "dreamjax.convert", *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(
                f"{arguments[0]} ended with {done.returncode}: {done.stderr[-1000:]}{done.stdout[-1000:]}"
            )
        return json.loads(done.stdout.splitlines()[-1])

    call("import", f"--source={source}", f"--out={home / 'by-command'}")
    rows = call("verify", f"--model={home / 'by-command'}", f"--source={source}")["verified"]
    yield row("LLaMA", "Vicuna v1.5 by the commands `import` and `verify`", rows)


def table(rows: list[Mapping[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| model | layout | compared with torch | float32 | bfloat16 | torch in bfloat16 |",
        "|---|---|---|---|---|---|",
    ]
    for one in rows:
        errors = (
            [f"{one[key]:.1e}" for key in ("float32", "bfloat16", "torch_bfloat16")]
            if "float32" in one
            else ["0, every bit" if one["bits"] else "differs", "", ""]
        )
        wrong = "" if one["ok"] else f" WRONG {'; '.join(one.get('wrong', []))}"
        lines.append(f"| {' | '.join([one['family'], one['layout'], ', '.join(one['parts']), *errors])} |{wrong}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="layouts whose model and name hold this text")
    parser.add_argument(
        "--folder", help="where models are written, and removed again; a temporary folder where it is left out"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        home = pathlib.Path(folder)
        rows = list(layouts(arguments.only, home))
        if not arguments.only:
            rows += [*stories(home), *round_trips(home), *commands(home)]
    where = f"{datetime.date.today()}, {os.cpu_count()} cores, {platform.processor() or platform.machine()}"
    print(f"{where}\n{table(rows)}")
    print(json.dumps({"where": where, "rows": rows}))
    return 0 if all(one["ok"] for one in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
