"""Takes a model out of a training run: python -m dreamjax.convert export --model=DIR --format=params --out=DIR

`export` writes a model folder that stands by itself (config.json, tokenizer/, params/ in Orbax): what `DreamLLM.load`
opens and `init_from` takes over. `info --model=DIR` prints what a folder holds and the whole chain of runs that it comes
from, the last line as JSON.
"""

import json
import sys

import jax
from absl import flags

from dreamjax import cli
from dreamjax.schema import ConfigError
from dreamjax.tokenizer import Tokenizer
from dreamjax.training import checkpoint, handover, report

MODEL = flags.DEFINE_string("model", None, "Training workdir or model folder.")
FORMAT = flags.DEFINE_string("format", "params", "params: Orbax parameters with config and tokenizer.")
OUT = flags.DEFINE_string("out", None, "Folder to write; must not hold a model yet.")
WHICH = flags.DEFINE_string("which", "last", "Checkpoint of a workdir: last | best (by held-back loss).")


def export() -> int:
    """Writes the parameters, averaged ones where the run keeps them, with all that is needed to use them."""
    if MODEL.value is None or OUT.value is None:
        raise ConfigError("export: needs --model and --out")
    if FORMAT.value != "params":
        raise ConfigError(f"--format: {FORMAT.value!r} is unknown; there is params")
    source, out = checkpoint.open_folder(MODEL.value), checkpoint.open_folder(OUT.value)
    if (out / "params").exists():
        raise ConfigError(f"--out: {out} holds a model already")
    config, params = checkpoint.read_config(source), checkpoint.load_params(source, WHICH.value)
    checkpoint.write_config(out, config)
    Tokenizer.load(source / "tokenizer").save(out / "tokenizer")
    checkpoint.save_tree(out / "params", params)
    checksum = checkpoint.checksum(params)
    handover.write_origins(out, source, WHICH.value, checksum)
    print(json.dumps({"model": str(out), "parameters": report.elements(params), "checksum": checksum}))
    return 0


def info() -> int:
    """Prints the parts of a model, their sizes and where they come from, back to the first run."""
    if MODEL.value is None:
        raise ConfigError("info: needs --model")
    folder = checkpoint.open_folder(MODEL.value)
    params, origins = checkpoint.load_params(folder, WHICH.value), handover.origins_of(folder, WHICH.value)
    facts = {
        "parameters": {name: report.elements(part) for name, part in params.items()},
        "bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
        "checksum": checkpoint.checksum(params),
        **origins,
    }
    print("\n".join(f"{name:20s} {size:15,d}" for name, size in facts["parameters"].items()))
    print(handover.in_words(origins))
    print(json.dumps(facts))
    return 0


if __name__ == "__main__":
    commands = {"export": export, "info": info}
    name = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else ""
    if name not in commands and not {"--help", "--helpfull", "-h"} & set(sys.argv):
        print(f"dreamjax.convert: the command is one of {', '.join(commands)}, not {name!r}; see --help", file=sys.stderr)
        sys.exit(2)
    cli.run("dreamjax.convert", commands.get(name, info))
