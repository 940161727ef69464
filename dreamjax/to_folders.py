"""Documents written to folders: one whose page grows, one once more, many of which those that are there are skipped."""

import json
import sys
import time
from collections.abc import Callable

import numpy as np
import tqdm
from etils import epath

from dreamjax import progress
from dreamjax.api import DreamLLM
from dreamjax.document import Document
from dreamjax.errors import ConfigError
from dreamjax.filesystem import atomic
from dreamjax.sampling import finite, interleave, output_folder, stream
from dreamjax.sampling.options import Options
from dreamjax.sampling.prefill import context_of
from dreamjax.sampling.prompts import check_row, prompt_row


def write_one(model: DreamLLM, prompts: list[tuple[Document, int]], options: Options, out: epath.Path) -> dict:
    """One document, whose page grows while it is written."""
    prompt, seed = prompts[0]
    out.mkdir(parents=True, exist_ok=True)
    with progress.bar(None, "document", "writing", bar_format="{desc} {elapsed} {postfix}") as bar:
        events = stream.stream(
            model.model,
            model.tokenizer,
            prompt,
            seed,
            options,
            every=4,
            preview_every=5,
            watch=meter(bar),
        )
        *_, last = stream.save_while(events, prompt, out / "story.html")
    record = output_folder.write(out, prompt, last.document, seed, options)
    print(Document(prompt.parts + last.document.parts).text)
    return files_of(out, record)


def write_again(
    model: DreamLLM, prompts: list[tuple[Document, int]], options: Options, out: epath.Path, size: int
) -> dict:
    """One document in a batch of `size` rows, in whose shapes it was written before."""
    prompt, seed = prompts[0]
    with progress.bar(None, "document", "writing", bar_format="{desc} {elapsed} {postfix}") as bar:
        made = interleave.generate(model.model, model.tokenizer, [prompt], [seed], options, meter(bar), size)[0]
    return files_of(out, output_folder.write(out, prompt, made, seed, options, size))


def files_of(out: epath.Path, record: dict) -> dict:
    """What the last line of stdout says of a document."""
    files = {
        "html": str(out / "story.html"),
        "json": str(out / "story.json"),
        "pictures": [str(out / name) for name in record["pictures"]],
    }
    return files | {"seed": record["seed"], "notes": record["notes"], "not_finite": finite.broken([record["notes"]])}


def write_many(
    model: DreamLLM, prompts: list[tuple[Document, int]], options: Options, out: epath.Path, size: int
) -> dict:
    """A folder per document and index.jsonl, `size` documents at once; those whose story.json is there are skipped."""
    folders = [out / f"{number:05d}" for number in range(len(prompts))]
    records = [
        output_folder.read(folder, prompt, seed, options)
        for folder, (prompt, seed) in zip(folders, prompts, strict=True)
    ]
    missing = [number for number, record in enumerate(records) if record is None]
    check_prompts(model, {number: prompts[number][0] for number in missing}, options)
    with progress.bar(len(prompts), "document", "writing", len(prompts) - len(missing)) as bar:
        for start in range(0, len(missing), size):
            now = missing[start : start + size]
            documents, seeds = zip(*(prompts[number] for number in now), strict=True)
            made = interleave.generate(model.model, model.tokenizer, documents, seeds, options, meter(bar), size)
            for number, document in zip(now, made, strict=True):
                prompt, seed = prompts[number]
                records[number] = output_folder.write(folders[number], prompt, document, seed, options, size)
                bar.update()
    lines = [
        {"folder": folder.name, "id": record["id"], "seed": record["seed"], "notes": record["notes"]}
        for folder, record in zip(folders, records, strict=True)
    ]
    atomic.write_text(out / "index.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    facts = {"documents": len(prompts), "written": len(missing), "index": str(out / "index.jsonl")}
    return facts | {"not_finite": finite.broken([line["notes"] for line in lines])}


def check_prompts(model: DreamLLM, asked: dict[int, Document], options: Options):
    """Raises ConfigError, with the document's number, where a prompt does not fit the model, before anything is
    written.
    """
    context = context_of(model.model, options)
    for number, prompt in asked.items():
        try:
            check_row(model.model, prompt_row(model.model, model.tokenizer, prompt, options.template), context)
        except ConfigError as error:
            raise ConfigError(f"--prompts: document {number}: {error}") from None


def meter(bar: tqdm.tqdm) -> Callable[[interleave.Event], None]:
    """Shows the tokens and denoising steps per second of the present batch at the end of the bar."""
    began, tokens, steps, before = time.monotonic(), 0, 0, 0

    def watch(event: interleave.Event):
        nonlocal tokens, steps, before
        match event:
            case interleave.Wrote(state=state):
                tokens = int(np.sum(state.written))
            case interleave.Drawing(waiting=waiting, moment=moment):
                steps += len(waiting) * (moment.step - before)
                before = moment.step % moment.steps
        passed = max(time.monotonic() - began, 1e-9)
        bar.set_postfix_str(
            f"{tokens / passed:.0f} tokens/s, {steps / passed:.0f} steps/s", refresh=sys.stderr.isatty()
        )

    return watch
