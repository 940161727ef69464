"""Converts training data to ArrayRecord: python -m dreamjax.prepare --source=FORMAT:PATH --out=DIR

Formats: webdataset (tars), pairs, mmc4, obelics, llava, instruct (JSON, with --images=FOLDER), parquet, tfds,
array_record, storybook. PATH may be a folder, or hold stars and ranges such as shard-{00000..00099}.tar; it and DIR may
be in a bucket (gs://). The result is read as the format array_record. Runs in parallel and may be interrupted: called
again with the same flags it goes on; after the source was mended, --overwrite begins anew. What is dropped is counted
by reason and listed in DIR/dropped.jsonl. It ends with an error where more records are broken than --max_bad_share, or
none can be used. The last line of stdout is the statistics as JSON.
"""

import json
import os
import shlex
import sys

from absl import flags
from etils import epath

from dreamjax import cli
from dreamjax.config import SourceConfig
from dreamjax.data.prepare import writer
from dreamjax.data.prepare.filters import Filters, read_words
from dreamjax.data.registry import FORMATS, formats, open_source
from dreamjax.data.storage import files
from dreamjax.document.templates import TEMPLATES
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.errors import ConfigError

SOURCE = flags.DEFINE_string("source", None, f"FORMAT:PATH of what to read; formats: {', '.join(FORMATS)}.")
OUT = flags.DEFINE_string("out", None, "Folder to write to, on disk or in a bucket.")
SPLIT = flags.DEFINE_enum(
    "split",
    "train",
    ("train", "eval"),
    "Which part, of formats that hold one back themselves (storybook, storybook_pages).",
)
IMAGES = flags.DEFINE_string("images", "", "Folder of the pictures that JSON names; by default where the JSON lies.")
ALLOW_OUTSIDE = flags.DEFINE_bool(
    "allow_outside", False, "Records may name pictures outside that folder: by absolute names, '..', or links."
)
TEXT_KEY = flags.DEFINE_string("text_key", "", "Key or column of the text, where it is not the usual one.")
IMAGE_KEY = flags.DEFINE_string("image_key", "", "Key or column of the picture, where it is not the usual one.")
SIMILARITY = flags.DEFINE_float(
    "min_similarity", None, "Least CLIP similarity of a picture to its text; by default 0.25 for mmc4, else none."
)
DROP_FIRST_ANSWER = flags.DEFINE_bool(
    "drop_first_answer", False, "Leave out what an assistant says before any user, as LLaVA's code does."
)
CACHE = flags.DEFINE_string(
    "cache",
    "",
    "Folder for indexes of the files; by default the user's cache (~/.cache/dreamjax), never the files' own folder.",
)
MAX_GROWTH = flags.DEFINE_float(
    "max_growth", 200.0, "Times its size that a compressed file may unpack to; more is taken for an attack."
)
MAX_UNPACKED = flags.DEFINE_float("max_unpacked", 256.0, "GiB that a compressed file may unpack to.")
TOKENIZER = flags.DEFINE_string(
    "tokenizer", "", "Tokenizer (a file or folder) to count tokens with; their numbers are stored for packing."
)
TEMPLATE = flags.DEFINE_string("template", "plain", "Chat template of the token counts.")
WORKERS = flags.DEFINE_integer("workers", os.cpu_count() or 1, "Processes.")
PER_FILE = flags.DEFINE_integer("per_file", 1000, "Records of the source per file.")
MAX_BAD_SHARE = flags.DEFINE_float(
    "max_bad_share",
    0.01,
    "Share of broken records above which it stops; those that a filter leaves out are not broken.",
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Remove what an earlier run has written to --out and begin anew.")
MIN_SIDE = flags.DEFINE_integer("min_side", 0, "Least shorter side of a picture, in pixels.")
MAX_ASPECT = flags.DEFINE_float(
    "max_aspect", 0.0, "Most that a picture's longer side may be of its shorter one; 0: any."
)
DECODE = flags.DEFINE_bool("decode", True, "Decode every picture, so that none that is broken is kept.")
MIN_IMAGES = flags.DEFINE_integer("min_images", 0, "Least number of images per document.")
flags.DEFINE_alias("min_pictures", "min_images")  # its name before 0.2
MIN_CHARACTERS = flags.DEFINE_integer("min_characters", 0, "Least length of a caption.")
MAX_CHARACTERS = flags.DEFINE_integer("max_characters", 0, "Greatest length of a caption; 0: any.")
URLS = flags.DEFINE_bool("urls", True, "Keep captions with addresses in them.")
NON_ASCII = flags.DEFINE_bool("non_ascii", True, "Keep captions with other than ASCII characters.")
WORDS = flags.DEFINE_string("words", "", "File of words, one a line; documents that hold one are dropped.")


def main() -> int:
    source_path, out = _given(SOURCE), _given(OUT)
    form, _, path = source_path.partition(":")
    if form not in formats():
        raise ConfigError(f"--source: {SOURCE.value!r} is not FORMAT:PATH with a format of {', '.join(formats())}")
    if TEMPLATE.value not in TEMPLATES:
        raise ConfigError(f"--template: {TEMPLATE.value!r} is none of {', '.join(TEMPLATES)}")
    if not 0 <= MAX_BAD_SHARE.value <= 1:
        raise ConfigError(f"--max_bad_share: is a share between 0 and 1, is {MAX_BAD_SHARE.value}")
    for count in (WORKERS, PER_FILE):
        if count.value < 1:
            raise ConfigError(f"--{count.name}: must be at least 1, is {count.value}")
    writer.check_out(out, path)
    filters = Filters(
        MIN_SIDE.value, MAX_ASPECT.value, DECODE.value, MIN_IMAGES.value, MIN_CHARACTERS.value, MAX_CHARACTERS.value,
        URLS.value, NON_ASCII.value, _words(),
    )  # fmt: skip
    source = open_source(
        SourceConfig(
            form,
            path,
            SPLIT.value,
            images=IMAGES.value,
            allow_outside=ALLOW_OUTSIDE.value,
            drop_first_answer=DROP_FIRST_ANSWER.value,
            text_key=TEXT_KEY.value,
            image_key=IMAGE_KEY.value,
            min_similarity=SIMILARITY.value,
            cache=CACHE.value,
            max_growth=MAX_GROWTH.value,
            max_unpacked=MAX_UNPACKED.value,
        )  # fmt: skip
    )
    command = shlex.join(
        [
            "python",
            "-m",
            "dreamjax.prepare",
            *(flag for flag in sys.argv[1:] if not flag.lstrip("-").startswith("overwrite")),
        ]
    )
    job = writer.Job(source, out, filters, _tokenizer(), TEMPLATE.value, PER_FILE.value, MAX_BAD_SHARE.value, command)
    facts = (writer.overwrite if OVERWRITE.value else writer.write)(job, WORKERS.value)
    print(writer.format_summary(facts))
    print(json.dumps(facts))
    return 0


def _given(flag: flags.FlagHolder[str | None]) -> str:
    if not flag.value:
        raise ConfigError(f"--{flag.name}: is missing")
    return flag.value


def _words() -> tuple[str, ...]:
    if not WORDS.value:
        return ()
    try:
        return read_words(files.read_bytes(WORDS.value).decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"--words: {WORDS.value} is not UTF-8 ({error.reason} at byte {error.start})") from None


def _tokenizer() -> Tokenizer | None:
    if not TOKENIZER.value:
        return None
    path = epath.Path(TOKENIZER.value)
    if not path.exists():
        raise ConfigError(f"--tokenizer: there is no {path}")
    return Tokenizer.load(path) if path.is_dir() else Tokenizer.from_model(path)


if __name__ == "__main__":
    cli.run("dreamjax.prepare", main)
