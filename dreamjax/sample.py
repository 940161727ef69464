"""Writes illustrated documents.

    python -m dreamjax.sample --model=DIR --prompt=TEXT [--image=FILE ...] --out=DIR    one document
    python -m dreamjax.sample --model=DIR --prompts=FILE.jsonl --out=DIR                many, in batches; goes on where
        it was
    python -m dreamjax.sample --model=DIR --chat --out=DIR                              a conversation in the terminal
    python -m dreamjax.sample --model=DIR --again=FOLDER --out=DIR                      an earlier document once more,
        to the byte

Pictures given with --image come before the text. A line of --prompts is a Document as `Document.to_json` writes it,
with picture files in the folder of FILE.jsonl (or anywhere, with --allow_outside), or just a string; its seed is --seed
plus its number, or its own "seed". The folder gets story.html (self-contained; it grows while the model writes),
story.json and the pictures as PNG, in a folder per document where there are many. The last line of stdout is a JSON
object that names them.
"""

import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags
from etils import epath

from dreamjax import cli
from dreamjax.api import DreamLLM
from dreamjax.config.validation import require_seed
from dreamjax.document import Document, Image, Text, image_io
from dreamjax.document.templates import TEMPLATES
from dreamjax.errors import BadImage, ConfigError
from dreamjax.filesystem import atomic
from dreamjax.sampling import denoise, finite, memory, output_folder, stream
from dreamjax.sampling.interleave import GenerationRequest
from dreamjax.sampling.options import Options
from dreamjax.sampling.prompt_file import read_prompts
from dreamjax.sampling.write_documents import Prompts, Writer, write_again, write_many, write_one

DEFAULTS = Options()
MODEL = flags.DEFINE_string("model", None, "Training workdir or model folder.")
WHICH = flags.DEFINE_string("which", "last", "Checkpoint of a workdir: last | best (by held-out loss).")
flags.declare_key_flag("verify_checksums")
PROMPT = flags.DEFINE_string("prompt", "", "What the document goes on from; empty: the model begins by itself.")
IMAGE = flags.DEFINE_multi_string(
    "image", [], "A picture that the model sees before the prompt; may be given several times."
)
PROMPTS = flags.DEFINE_string(
    "prompts", None, "A file with a prompt on each line, as JSON. What is written already is skipped."
)
OUTSIDE = flags.DEFINE_bool(
    "allow_outside", False, "Pictures of --prompts may lie outside its folder: absolute names, '..', links, URLs."
)
CHAT = flags.DEFINE_bool(
    "chat", False, "Talk with the model in the terminal; /image FILE shows it a picture, /quit ends."
)
AGAIN = flags.DEFINE_string(
    "again",
    None,
    "A folder with a story.json: its document is written once more, with its own prompt, seed and options.",
)
OUT = flags.DEFINE_string("out", None, "Folder for the result.")
SEED = flags.DEFINE_integer("seed", 0, "Same seed, same document; 0 to 4294967295.")
BATCH = flags.DEFINE_integer("batch_size", 8, "Documents of --prompts that are written at once.", lower_bound=1)
TEMPLATE = flags.DEFINE_string("template", "none", f"Chat template around the prompt: none, or {', '.join(TEMPLATES)}.")
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "0 always takes the likeliest token.", lower_bound=0)
TOP_K = flags.DEFINE_integer("top_k", DEFAULTS.top_k, "Draw from this many likeliest tokens; 0: all.")
TOP_P = flags.DEFINE_float(
    "top_p", DEFAULTS.top_p, "Draw from the likeliest tokens that together have this probability."
)
PENALTY = flags.DEFINE_float(
    "repetition_penalty", DEFAULTS.repetition_penalty, "Above 1, what is there already becomes less likely."
)
BEAMS = flags.DEFINE_integer(
    "beams", DEFAULTS.beams, "Beams of a search for the likeliest text; needs --temperature=0 and --max_images=0."
)
STOP = flags.DEFINE_multi_string("stop", [], "The document ends before this string; may be given several times.")
MAX_TOKENS = flags.DEFINE_integer("max_tokens", DEFAULTS.max_tokens, "Most tokens written.", lower_bound=0)
MAX_IMAGES = flags.DEFINE_integer(
    "max_images", DEFAULTS.max_images, "Most pictures drawn; 0 forbids them.", lower_bound=0
)
MIN_IMAGES = flags.DEFINE_integer(
    "min_images", DEFAULTS.min_images, "Pictures that are drawn in any case.", lower_bound=0
)
SAMPLER = flags.DEFINE_string("sampler", DEFAULTS.sampler, "ddpm | ddim | dpm_solver.")
STEPS = flags.DEFINE_integer("num_steps", DEFAULTS.num_steps, "Denoising steps per picture.")
SPACING = flags.DEFINE_string("spacing", DEFAULTS.spacing, "Where the steps lie: leading | trailing | linspace.")
GUIDANCE = flags.DEFINE_float("guidance_scale", DEFAULTS.guidance_scale, "Classifier-free guidance; 1 is none.")
RESCALE = flags.DEFINE_float(
    "guidance_rescale", DEFAULTS.guidance_rescale, "In [0, 1], against the overexposure that guidance brings."
)
ETA = flags.DEFINE_float("eta", DEFAULTS.eta, "Of ddim: 0 is deterministic, 1 has the variance of ddpm.")
HEIGHT = flags.DEFINE_integer(
    "height", DEFAULTS.height, "Pixels of drawn pictures; 0: the size that the model was trained on."
)
WIDTH = flags.DEFINE_integer("width", DEFAULTS.width, "As --height.")
NEGATIVE = flags.DEFINE_string("negative", None, "A text that pictures are guided away from.")


def main() -> int:
    for flag in (MODEL, OUT):
        if flag.value is None:
            raise ConfigError(f"--{flag.name}: is missing")
    require_seed("--seed", SEED.value)
    if sum(map(bool, (CHAT.value, PROMPTS.value, AGAIN.value))) > 1:
        raise ConfigError("--chat, --prompts, --again: exclude each other")
    prompts, options, write = read_request()
    model = DreamLLM.load(MODEL.value or "", WHICH.value, verify=cli.VERIFY.value)
    if not AGAIN.value and TEMPLATE.value == "none":
        options = dataclasses.replace(options, template=model.template)
    if model.config.unet is not None:
        denoise.check(model.config, options, 1)  # sizes and steps that cannot be, before a word is written
    began = time.monotonic()
    with memory.exhausted_is_said():
        facts = write(Writer(model.model, model.tokenizer, options), prompts, epath.Path(OUT.value))
    print(json.dumps(facts | {"seconds": round(time.monotonic() - began, 1)}))
    finite.require_none(facts["not_finite"], model.model)
    return 0


def read_request() -> tuple[Prompts, Options, Callable[[Writer, Prompts, epath.Path], dict]]:
    """Prompts with their seeds, the options, and the function that writes, as the flags ask."""
    if AGAIN.value:
        request = output_folder.asked(epath.Path(AGAIN.value))
        again = functools.partial(write_again, size=request.batch_size)
        return [(request.prompt, request.seed)], request.options, again
    if PROMPTS.value:
        many = functools.partial(write_many, size=BATCH.value)
        return read_prompts(epath.Path(PROMPTS.value), SEED.value, OUTSIDE.value), read_options(), many
    return [(read_prompt(), SEED.value)], read_options(), chat if CHAT.value else write_one


def read_options() -> Options:
    """The options of the flags; ConfigError, before the model loads, where they cannot be."""
    settings: dict[str, Any] = {
        "temperature": TEMPERATURE.value,
        "top_k": TOP_K.value,
        "top_p": TOP_P.value,
        "repetition_penalty": PENALTY.value,
        "beams": BEAMS.value,
        "stop": tuple(STOP.value),
        "max_tokens": MAX_TOKENS.value,
        "max_images": MAX_IMAGES.value,
        "min_images": MIN_IMAGES.value,
        "sampler": SAMPLER.value,
        "num_steps": STEPS.value,
        "spacing": SPACING.value,
        "eta": ETA.value,
        "guidance_scale": GUIDANCE.value,
        "guidance_rescale": RESCALE.value,
        "height": HEIGHT.value,
        "width": WIDTH.value,
        "negative": None if NEGATIVE.value is None else Document.of(NEGATIVE.value),
    }
    return Options(**settings | ({} if TEMPLATE.value == "none" else {"template": TEMPLATE.value}))


# ----------------------------------------------------------------------------------------------------------------------
# Prompts


def read_prompt() -> Document:
    """The prompt of the flags as a Document, opened so that a picture that is none fails before the model loads."""
    role = None if TEMPLATE.value == "none" else "user"
    images = [Image(epath.Path(file), is_target=False, role=role) for file in IMAGE.value]
    for image in images:
        image.pil()
    return Document((*images, *((Text(PROMPT.value, role=role),) if PROMPT.value else ())))


# ----------------------------------------------------------------------------------------------------------------------
# Ways to write


def chat(writer: Writer, prompts: Prompts, out: epath.Path) -> dict:
    """Turns from the terminal until its end; --prompt is the first one. Turn k samples by the seed --seed + k."""
    out.mkdir(parents=True, exist_ok=True)
    seed = prompts[0][1]
    parts: list[Text | Image] = [Image(epath.Path(file), is_target=False, role="user") for file in IMAGE.value]
    turns, images = 0, 0
    notes: tuple[str, ...] = ()
    for line in lines_said():
        if line.startswith("/image "):
            parts += look_up(line.removeprefix("/image ").strip())
            continue
        prompt = Document((*parts, Text(line, role="user")))
        request = GenerationRequest(prompts=[prompt], seeds=[seed + turns], options=writer.options)
        events = stream.stream(writer.model, writer.tokenizer, request)
        for event in stream.save_while(events, prompt, out / "story.html"):
            match event:
                case stream.TextPiece(text=piece):
                    print(piece, end="", flush=True)
                case stream.ImageDone(image=image):
                    atomic.write_bytes(out / f"image_{images}.png", image_io.to_png(image))
                    print(f"\n[{out / f'image_{images}.png'}]", flush=True)
                    images += 1
                case stream.Finished(document=document):
                    parts, notes = [*prompt.parts, *document.parts], document.notes
        print(flush=True)
        turns += 1
        if finite.broken([notes]):  # and so would be any later turn
            break
    output_folder.write(out, Document(tuple(parts)), Document((), notes=notes), seed, writer.options)
    return {
        "html": str(out / "story.html"),
        "json": str(out / "story.json"),
        "turns": turns,
        "seed": seed,
        "not_finite": finite.broken([notes]),
    }


def lines_said() -> Iterator[str]:
    """--prompt, where it is given, and then what is typed, until the end of the input or /quit."""
    if PROMPT.value:
        yield PROMPT.value
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if line == "/quit":
            return
        if line:
            yield line


def look_up(file: str) -> list[Image]:
    """The picture of a file for the next turn; none, and a line that says why, where it does not open."""
    image = Image(epath.Path(file), is_target=False, role="user")
    try:
        image.pil()
    except BadImage as error:
        print(error, file=sys.stderr)
        return []
    return [image]


if __name__ == "__main__":
    cli.run("dreamjax.sample", main)
