"""Generate documents into folders: one with a growing page, one again, or many, skipping those that are there."""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import tqdm
from etils import epath

from dreamjax import progress
from dreamjax.document import Document
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.errors import ConfigError
from dreamjax.filesystem import atomic
from dreamjax.models.dreamllm import Model
from dreamjax.sampling import finite, interleave, output_folder, stream
from dreamjax.sampling.interleave import GenerationRequest, Pace
from dreamjax.sampling.options import Options
from dreamjax.sampling.prefill import context_of
from dreamjax.sampling.prompts import check_row, prompt_row

Prompts = Sequence[tuple[Document, int]]
"""Prompts with their seeds."""


@dataclasses.dataclass(frozen=True, eq=False)
class Writer:
    """A model with its tokenizer, and the options of the documents that it writes."""

    model: Model
    tokenizer: Tokenizer
    options: Options

    def generate(self, prompts: Sequence[Document], seeds: Sequence[int], size: int, bar: tqdm.tqdm) -> list[Document]:
        """Continue prompts in a batch of `size` rows; the bar shows the speed."""
        request = GenerationRequest(prompts=prompts, seeds=seeds, options=self.options, size=size)
        return interleave.generate(self.model, self.tokenizer, request, speed_meter(bar))


def write_one(writer: Writer, prompts: Prompts, out: epath.Path) -> dict:
    """Generate one document, whose page grows meanwhile."""
    prompt, seed = prompts[0]
    out.mkdir(parents=True, exist_ok=True)
    request = GenerationRequest(prompts=[prompt], seeds=[seed], options=writer.options)
    with progress.bar(None, "document", "writing", bar_format="{desc} {elapsed} {postfix}") as bar:
        pace = Pace(tokens=4, steps=5)
        events = stream.stream(writer.model, writer.tokenizer, request, pace, speed_meter(bar))
        document = stream.last_document(stream.save_while(events, prompt, out / "story.html"))
    record = output_folder.write(out, prompt, document, seed, writer.options)
    print(Document(prompt.parts + document.parts).text)
    return files_of(out, record)


def write_again(writer: Writer, prompts: Prompts, out: epath.Path, size: int) -> dict:
    """Generate one document in a batch of `size` rows, the shapes in which it was written before."""
    prompt, seed = prompts[0]
    with progress.bar(None, "document", "writing", bar_format="{desc} {elapsed} {postfix}") as bar:
        document = writer.generate([prompt], [seed], size, bar)[0]
    return files_of(out, output_folder.write(out, prompt, document, seed, writer.options, size))


def files_of(out: epath.Path, record: dict) -> dict:
    """File names, seed and notes of a document, for the last line of stdout."""
    files = {
        "html": str(out / "story.html"),
        "json": str(out / "story.json"),
        "pictures": [str(out / name) for name in record["pictures"]],
    }
    return files | {"seed": record["seed"], "notes": record["notes"], "not_finite": finite.broken([record["notes"]])}


def write_many(writer: Writer, prompts: Prompts, out: epath.Path, size: int) -> dict:
    """Generate a folder per document and index.jsonl, `size` documents at once; those with a story.json are skipped."""
    folders = [out / f"{number:05d}" for number in range(len(prompts))]
    records: dict[int, dict] = {}
    for number, (prompt, seed) in enumerate(prompts):
        record = output_folder.read(folders[number], prompt, seed, writer.options)
        if record is not None:
            records[number] = record
    missing = [number for number in range(len(prompts)) if number not in records]
    check_prompts(writer, {number: prompts[number][0] for number in missing})
    with progress.bar(len(prompts), "document", "writing", len(records)) as bar:
        for start in range(0, len(missing), size):
            batch = missing[start : start + size]
            documents, seeds = zip(*(prompts[number] for number in batch), strict=True)
            for number, document in zip(batch, writer.generate(documents, seeds, size, bar), strict=True):
                prompt, seed = prompts[number]
                records[number] = output_folder.write(folders[number], prompt, document, seed, writer.options, size)
                bar.update()
    lines = [
        {"folder": folder.name, "id": record["id"], "seed": record["seed"], "notes": record["notes"]}
        for folder, record in ((folders[number], records[number]) for number in range(len(prompts)))
    ]
    atomic.write_text(out / "index.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    facts = {"documents": len(prompts), "written": len(missing), "index": str(out / "index.jsonl")}
    return facts | {"not_finite": finite.broken([line["notes"] for line in lines])}


def check_prompts(writer: Writer, prompts: dict[int, Document]):
    """Raise ConfigError, with the document's number, where a prompt does not fit the model."""
    model, template = writer.model, writer.options.template
    context = context_of(model, writer.options)
    for number, prompt in prompts.items():
        try:
            check_row(model, prompt_row(model, writer.tokenizer, prompt, template), context)
        except ConfigError as error:
            raise ConfigError(f"--prompts: document {number}: {error}") from None


def speed_meter(bar: tqdm.tqdm) -> Callable[[interleave.Event], None]:
    """Show the tokens and denoising steps per second of the present batch at the end of the bar."""
    began, tokens, steps, before = time.monotonic(), 0, 0, 0

    def show(event: interleave.Event):
        nonlocal tokens, steps, before
        match event:
            case interleave.TokensWritten(state=state):
                tokens = int(np.sum(state.written))
            case interleave.ImageStep(waiting=waiting, step=step):
                steps += len(waiting) * (step.step - before)
                before = step.step % step.steps
        passed = max(time.monotonic() - began, 1e-9)
        bar.set_postfix_str(
            f"{tokens / passed:.0f} tokens/s, {steps / passed:.0f} steps/s", refresh=sys.stderr.isatty()
        )

    return show
