"""Weights in and out: python -m dreamjax.convert import | export | info | verify

    import --source=PATH [--source=PATH ...] [--tokenizer=FILE] --out=DIR     foreign weights into one model folder
    export --model=DIR --format=official|huggingface|params --out=DIR         a model out of a workdir or model folder
    info   --model=DIR                                                        its parts, bytes and chain of origins
    verify --model=DIR --source=PATH                                          outputs against torch's, part by part

A source is a folder of LLaMA, CLIP (transformers) or Stable Diffusion (diffusers), an official DreamLLM release, a
llama2.c .bin, or a name on the Hugging Face hub; several make one model, and what joins them is initialised. Its layout
is recognised by its content; .bin files of torch need torch (pip install torch). The last line of stdout is JSON.

verify needs torch, transformers and diffusers, and memory for the largest part: 14 GB for an LLM of 7 billion
parameters in half precision. It ends with status 1 where outputs of a part differ from torch's: by more than 1e-4 in
float32 (norm of the difference over norm), or in bfloat16 by more than 3 times torch's own error in bfloat16 + 1e-3.
"""

import json
import math
import sys

from absl import flags
from etils import epath

from dreamjax import cli
from dreamjax.config.validation import require_present, require_seed
from dreamjax.convert import exporter, finite, importer
from dreamjax.convert import verify as verification
from dreamjax.errors import ConfigError
from dreamjax.training import checkpoint, model_folder, weight_transfer

SOURCE = flags.DEFINE_multi_string(
    "source", [], "import, verify: folder, file or hub name that weights come from; may be given several times."
)
TOKENIZER = flags.DEFINE_string(
    "tokenizer",
    None,
    "import: sentencepiece model, folder with one, or llama2.c vocabulary, for an LLM without a tokenizer.",
)
PARTS = flags.DEFINE_list(
    "parts", [], f"import: take only these of {', '.join(importer.PARTS)}; all where it is left out."
)
NEW_ROWS = flags.DEFINE_string(
    "new_rows", "official", "import: rows of added tokens: official (N(0, 0.02)) | mean (of the old rows)."
)
VISUAL_PROJECTOR = flags.DEFINE_string(
    "visual_projector", None, "import: kind of a fresh visual projector: linear | mlp."
)
DREAM_QUERIES = flags.DEFINE_integer(
    "dream_queries", None, "import: number of fresh dream queries; 64 where it is left out."
)
ALLOW_NONFINITE = flags.DEFINE_bool(
    "allow_nonfinite", False, "import: accept weights that are NaN or infinite; refused where it is left out."
)
SEED = flags.DEFINE_integer("seed", 0, "import: of new parameters; verify: of the inputs.")
MODEL = flags.DEFINE_string("model", None, "export, info, verify: training workdir or model folder.")
FORMAT = flags.DEFINE_string("format", "params", f"export: {' | '.join(exporter.FORMATS)}.")
OUT = flags.DEFINE_string("out", None, "import, export: folder to write; must not hold a model yet.")
WHICH = flags.DEFINE_string("which", "last", "Checkpoint of a workdir: last | best (by held-out loss).")


def open_model_flag() -> epath.Path:
    """The folder of --model."""
    return checkpoint.open_folder(require_present(MODEL.value, "--model"))


def require_flags(*required: flags.FlagHolder) -> None:
    """ConfigError for the first flag without a value."""
    for flag in required:
        if not flag.value:
            raise ConfigError(f"--{flag.name}: is missing")


def import_() -> int:
    """Writes a model folder from foreign weights."""
    require_flags(SOURCE, OUT)
    require_seed("--seed", SEED.value)
    unknown = sorted(set(PARTS.value) - set(importer.PARTS))
    if unknown:
        raise ConfigError(f"--parts: {unknown[0]!r} is none of {', '.join(importer.PARTS)}")
    changes = {"visual_projector": VISUAL_PROJECTOR.value, "dream_queries": DREAM_QUERIES.value}
    changes = {name: value for name, value in changes.items() if value is not None}
    plan = importer.make_plan(SOURCE.value, TOKENIZER.value, PARTS.value, NEW_ROWS.value, changes, SEED.value)
    out = checkpoint.open_folder(require_present(OUT.value, "--out"))
    for source in plan.sources:
        print(f"{source.location}: {source.format}, {len(source.leaves)} parameters", *source.notes, sep="; ")
    print("".join(f"{note}\n" for note in plan.notes), end="")
    counts = importer.write(plan, out, ALLOW_NONFINITE.value)
    if counts:
        print(f"taken as they are: {finite.format_summary(counts)}")
    for path in plan.fresh:
        print(f"made afresh   {path}")
    facts = facts_of(out)
    print(format_summary(facts))
    print(json.dumps({"model": str(out), "not_finite": counts, **facts}))
    return 0


def export() -> int:
    """Writes the parameters, averaged ones where the run keeps them, with configuration and tokenizers."""
    require_flags(MODEL, OUT)
    source, out = open_model_flag(), checkpoint.open_folder(require_present(OUT.value, "--out"))
    unsupported = exporter.export(source, FORMAT.value, out, WHICH.value)
    print("".join(f"left out      {part}: the format has no place for it\n" for part in unsupported), end="")
    print(json.dumps({"model": str(out), "format": FORMAT.value, "left_out": unsupported}))
    return 0


def info() -> int:
    """Prints the parts of a model, their sizes and its chain of origins."""
    require_flags(MODEL)
    facts = facts_of(open_model_flag())
    print(format_summary(facts))
    print(json.dumps(facts))
    return 0


def facts_of(folder: epath.Path) -> dict:
    """Counts and bytes of the parts of a model folder or workdir, from metadata alone, and its chain of origins."""
    card, leaves = model_folder.read_card(folder), exporter.open_model(folder, WHICH.value).leaves
    parts: dict[str, list] = {}
    for path, leaf in leaves.items():
        parts.setdefault(path.split("/")[0], []).append(leaf)

    def count(part_leaves):
        return sum(math.prod(leaf.shape) for leaf in part_leaves)

    def size(part_leaves):
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in part_leaves)

    return {
        "parameters": {name: count(part_leaves) for name, part_leaves in parts.items()},
        "bytes_of": {name: size(part_leaves) for name, part_leaves in parts.items()},
        "dtypes": {name: sorted({str(leaf.dtype) for leaf in part_leaves}) for name, part_leaves in parts.items()},
        "bytes": size(leaves.values()),
        "template": card.template,
        **weight_transfer.origins_of(folder, WHICH.value),
    }


def format_summary(facts: dict) -> str:
    """The facts as text."""
    lines = [
        f"{name:20s} {count:15,d}  {facts['bytes_of'][name] / 2**20:10,.1f} MiB  {', '.join(facts['dtypes'][name])}"
        for name, count in facts["parameters"].items()
    ]
    return "\n".join([*lines, weight_transfer.format_summary(facts)])


def verify() -> int:
    """Compares outputs with torch's; returns 1 where they differ."""
    require_flags(MODEL, SOURCE)
    require_seed("--seed", SEED.value)
    rows = verification.verify(open_model_flag(), SOURCE.value, SEED.value)
    print(verification.format_summary(rows))
    print(json.dumps({"verified": rows}))
    return 0 if all(row["ok"] for row in rows) else 1


COMMANDS = {"import": import_, "export": export, "info": info, "verify": verify}

if __name__ == "__main__":
    name = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else ""
    if name not in COMMANDS and not {"--help", "--helpfull", "-h"} & set(sys.argv):
        print(
            f"dreamjax.convert: the command is one of {', '.join(COMMANDS)}, not {name!r}; see --help", file=sys.stderr
        )
        sys.exit(2)
    cli.run("dreamjax.convert", COMMANDS.get(name, info))
