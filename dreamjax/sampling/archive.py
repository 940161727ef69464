"""What a finished document leaves on disk, and how a later run knows that it is there.

    FOLDER/story.html      the prompt and what followed, in one file
    FOLDER/image_0.png     pictures that the model drew, prompt_0.png those that it was given
    FOLDER/story.json      the document with these file names, its seed, its options, and how many of its parts are the prompt; written last

So story.json says all that is needed to write the document again, to the byte (`asked`).
"""

import dataclasses
import hashlib
import json
from typing import NamedTuple

from etils import epath

from dreamjax import images
from dreamjax.document import Document, Image
from dreamjax.sampling.options import Options
from dreamjax.schema import ConfigError


def fingerprint(prompt: Document, seed: int, options: Options) -> str:
    """16 hex digits over everything that decides what a model makes of a prompt."""
    settings = dataclasses.asdict(dataclasses.replace(options, negative=None)) | {"negative": _json(options.negative), "seed": seed}
    asked = {name: value for name, value in prompt.to_json().items() if name in ("kind", "parts")}
    return hashlib.sha256(json.dumps([asked, settings], sort_keys=True).encode()).hexdigest()[:16]


def _json(document: Document | None) -> dict | None:
    return None if document is None else document.to_json()


def write(folder: epath.Path, prompt: Document, made: Document, seed: int, options: Options, batch_size: int = 1) -> dict:
    """Writes the files of a document that was made in a batch of `batch_size` rows; returns what story.json holds."""
    folder.mkdir(parents=True, exist_ok=True)
    given, drawn = _save(folder, "prompt", prompt), _save(folder, "image", made)
    whole = Document(prompt.parts + made.parts, prompt.id, made.notes, prompt.kind)
    whole.save_html(folder / "story.html")
    settings = {field.name: getattr(options, field.name) for field in dataclasses.fields(options) if field.name != "negative"}
    record = whole.to_json([*given, *drawn]) | {
        "seed": seed, "batch_size": batch_size, "prompt_parts": len(prompt.parts), "options": settings | {"negative": _json(options.negative)}, "pictures": drawn,
        "fingerprint": fingerprint(prompt, seed, options),
    }
    partial = folder / "story.json.partial"
    partial.write_text(json.dumps(record) + "\n")
    partial.replace(folder / "story.json")
    return record


def _save(folder: epath.Path, name: str, document: Document) -> list[str]:
    """Writes the document's pictures; their file names in order."""
    names = []
    for part in document.parts:
        if isinstance(part, Image):
            names.append(f"{name}_{len(names)}.png")
            (folder / names[-1]).write_bytes(images.to_png(part.pil()))
    return names


def read(folder: epath.Path, prompt: Document, seed: int, options: Options) -> dict | None:
    """What story.json holds, None where there is none; ConfigError where it was made from something else."""
    if not (folder / "story.json").exists():
        return None
    record = json.loads((folder / "story.json").read_text())
    if record.get("fingerprint") != fingerprint(prompt, seed, options):
        raise ConfigError(f"--out: {folder} holds what another prompt, seed or option made; use another folder")
    return record


class Asked(NamedTuple):
    """What a document was made of."""

    prompt: Document
    seed: int
    options: Options
    batch_size: int


def asked(folder: epath.Path) -> Asked:
    """What the document of a folder was made of, from its story.json; ConfigError where that does not say it."""
    path = folder / "story.json"
    if not path.exists():
        raise ConfigError(f"{path}: is not there")
    try:
        record = json.loads(path.read_text())
        whole, settings = Document.from_json(record, folder), record["options"]
        negative = settings["negative"] and Document.from_json(settings["negative"])
        prompt = Document(whole.parts[: record["prompt_parts"]], whole.id, kind=whole.kind)
        return Asked(prompt, record["seed"], Options(**settings | {"negative": negative}), record["batch_size"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: does not say what its document was made of: {error!r}") from None
