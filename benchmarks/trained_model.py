"""Quality of a trained quickstart model under each sampler, and its speed in writing documents:

    python benchmarks/trained_model.py --model=runs/quickstart [--count=256] [--documents=64]

* samplers: share of pictures, drawn right after a first sentence, that show what it names, by the judge of the shapes
  task
* documents: share that is well-formed (every picture placed, no control token astray), also with nothing masked;
  documents per
  minute one by one and in batches of eight; whether a second call gives the same bytes

The last line of stdout is JSON.
"""

import argparse
import json
import time

import numpy as np

from dreamjax.api import DreamLLM
from dreamjax.data.sources import shapes
from dreamjax.document import Document
from dreamjax.evaluation.benchmarks.shapes import is_well_placed
from dreamjax.evaluation.metrics.shapes_judge import judge

PLANS = (
    ("ddpm", 100),
    ("ddim", 50),
    ("ddim", 25),
    ("ddim", 10),
    ("dpm_solver", 20),
    ("dpm_solver", 15),
    ("dpm_solver", 10),
)
STORY = {"max_tokens": 64, "max_images": 4, "temperature": 1.0}


def samplers(model: DreamLLM, count: int) -> dict:
    """{sampler and steps: share of `count` pictures that are right}."""
    asked = shapes.story_prompts(count)
    named = [(scene.colour, scene.shape) for _, scene in asked]
    found = {}
    for sampler, steps in PLANS:
        began = time.monotonic()
        images = model.text_to_image([prompt for prompt, _ in asked], sampler=sampler, num_steps=steps, batch_size=64)
        judged = judge(np.stack([np.asarray(image) for image in images]))
        right = np.mean([(j.colour, j.shape) == name for j, name in zip(judged, named, strict=True)])
        found[f"{sampler}_{steps}"] = round(float(right), 4)
        print(f"{sampler:12s} {steps:4d} steps  {right:6.1%} right  {time.monotonic() - began:6.1f} s", flush=True)
    return found


def documents(model: DreamLLM, count: int) -> dict:
    """Well-formed shares, documents per minute alone and in batches of eight, and whether they repeat."""
    prompts, seeds = [prompt for prompt, _ in shapes.story_prompts(count)], list(range(count))
    made = {}
    for name, options in (("masked", {}), ("unmasked", {"unmasked": True})):
        written = model.generate_batch(prompts, seeds, batch_size=8, **STORY, **options)
        whole = [Document(prompt.parts + document.parts) for prompt, document in zip(prompts, written, strict=True)]
        astray = [any(note.startswith("control") for note in document.notes) for document in written]
        made[name] = written
        made[f"well_formed_{name}"] = float(
            np.mean([is_well_placed(story) and not bad for story, bad in zip(whole, astray, strict=True)])
        )
        made[f"control_tokens_astray_{name}"] = float(np.mean(astray))
    began = time.monotonic()
    again = model.generate_batch(prompts, seeds, batch_size=8, **STORY)
    eight = time.monotonic() - began
    same = all(one.to_json() == two.to_json() for one, two in zip(made.pop("masked"), again, strict=True))
    made.pop("unmasked")
    some = min(count, 16)
    alone = [
        model.generate(prompt, seed, **STORY) for prompt, seed in zip(prompts[:2], seeds, strict=False)
    ]  # compiles
    began = time.monotonic()
    alone = [model.generate(prompt, seed, **STORY) for prompt, seed in zip(prompts[:some], seeds, strict=False)]
    single = (time.monotonic() - began) / some
    agree = np.mean([one.text == two.text for one, two in zip(alone, again, strict=True)])
    rates = {
        "per_minute_alone": round(60 / single, 1),
        "per_minute_in_eights": round(60 * count / eight, 1),
        "times": round(single * count / eight, 2),
    }
    return made | rates | {"second_call_same_bytes": same, "texts_alone_as_in_eights": float(agree)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="training workdir or model folder")
    parser.add_argument("--count", type=int, default=256, help="pictures per sampler")
    parser.add_argument("--documents", type=int, default=64, help="documents written")
    arguments = parser.parse_args()
    model = DreamLLM.load(arguments.model)
    facts = documents(model, arguments.documents)
    print(facts, flush=True)
    print(json.dumps({"documents": facts, "samplers": samplers(model, arguments.count)}))


if __name__ == "__main__":
    main()
