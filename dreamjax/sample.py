"""Writes an illustrated document: python -m dreamjax.sample --model=DIR --prompt=TEXT [--image=FILE ...] --out=DIR

Pictures given with --image come before the text. The folder gets story.html (self-contained), story.json and the drawn
pictures as PNG; the last line of stdout is a JSON object that names them.
"""

import json
import time

from absl import flags
from etils import epath

from dreamjax import cli
from dreamjax.api import DreamLLM
from dreamjax.document import Document, Image, Text
from dreamjax.templates import TEMPLATES
from dreamjax.sampling.interleave import Options
from dreamjax.schema import ConfigError

DEFAULTS = Options()
MODEL = flags.DEFINE_string("model", None, "Training workdir or model folder.")
PROMPT = flags.DEFINE_string("prompt", "", "What the document goes on from; empty: the model begins by itself.")
IMAGE = flags.DEFINE_multi_string("image", [], "A picture that the model sees before the prompt; may be given several times.")
OUT = flags.DEFINE_string("out", None, "Folder for the result.")
SEED = flags.DEFINE_integer("seed", 0, "Same seed, same document.", lower_bound=0)
TEMPLATE = flags.DEFINE_string("template", "none", f"Chat template around the prompt: none, or {', '.join(TEMPLATES)}.")
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "0 always takes the likeliest token.", lower_bound=0)
TOP_P = flags.DEFINE_float("top_p", 1.0, "Draw from the likeliest tokens that together have this probability.")
MAX_TOKENS = flags.DEFINE_integer("max_tokens", DEFAULTS.max_tokens, "Most tokens written.", lower_bound=0)
MAX_IMAGES = flags.DEFINE_integer("max_images", DEFAULTS.max_images, "Most pictures drawn.", lower_bound=0)
GUIDANCE = flags.DEFINE_float("guidance_scale", DEFAULTS.guidance_scale, "Classifier-free guidance; 1 is none.")
STEPS = flags.DEFINE_integer("num_steps", DEFAULTS.num_steps, "Denoising steps per picture.")
WHICH = flags.DEFINE_string("which", "last", "Checkpoint of a workdir: last | best (by held-back loss).")


def main() -> int:
    for flag in (MODEL, OUT):
        if flag.value is None:
            raise ConfigError(f"--{flag.name}: is missing")
    prompt = read_prompt()
    model = DreamLLM.load(MODEL.value, WHICH.value)
    began = time.monotonic()
    made = model.generate(
        prompt, SEED.value, temperature=TEMPERATURE.value, top_p=TOP_P.value, max_tokens=MAX_TOKENS.value, max_images=MAX_IMAGES.value,
        guidance_scale=GUIDANCE.value, num_steps=STEPS.value, **({} if TEMPLATE.value == "none" else {"template": TEMPLATE.value}),
    )
    seconds = time.monotonic() - began
    whole = Document(prompt.parts + made.parts, notes=made.notes)
    out = epath.Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    pictures = made.save_images(out)
    whole.save_html(out / "story.html")
    whole.save_json(out / "story.json")
    print(whole.text)
    files = {"html": str(out / "story.html"), "json": str(out / "story.json"), "pictures": [str(picture) for picture in pictures]}
    print(json.dumps(files | {"seed": SEED.value, "seconds": round(seconds, 1), "notes": made.notes}))
    return 0


def read_prompt() -> Document:
    """The prompt as a Document, opened so that a picture that is none fails before the model loads."""
    role = None if TEMPLATE.value == "none" else "user"
    pictures = [Image(epath.Path(file), dreamed=False, role=role) for file in IMAGE.value]
    for picture in pictures:
        picture.pil()
    return Document((*pictures, *((Text(PROMPT.value, role=role),) if PROMPT.value else ())))


if __name__ == "__main__":
    cli.run("dreamjax.sample", main)
