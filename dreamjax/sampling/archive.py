"""What a finished document leaves on disk, and how a later run knows that it is there.

    FOLDER/story.html      the prompt and what followed, in one file
    FOLDER/image_0.png     pictures that the model drew, prompt_0.png those that it was given
    FOLDER/story.json      the document with these file names, its seed and its options; written last
"""

import dataclasses
import hashlib
import json

from etils import epath

from dreamjax import images
from dreamjax.document import Document, Image
from dreamjax.sampling.options import Options
from dreamjax.schema import ConfigError


def fingerprint(prompt: Document, seed: int, options: Options) -> str:
    """16 hex digits over everything that decides what a model makes of a prompt."""
    settings = dataclasses.asdict(dataclasses.replace(options, negative=None)) | {"negative": _json(options.negative), "seed": seed}
    return hashlib.sha256(json.dumps([prompt.to_json(), settings], sort_keys=True).encode()).hexdigest()[:16]


def _json(document: Document | None) -> dict | None:
    return None if document is None else document.to_json()


def write(folder: epath.Path, prompt: Document, made: Document, seed: int, options: Options) -> dict:
    """Writes the files; returns what story.json holds."""
    folder.mkdir(parents=True, exist_ok=True)
    given, drawn = _save(folder, "prompt", prompt), _save(folder, "image", made)
    whole = Document(prompt.parts + made.parts, prompt.id, made.notes)
    whole.save_html(folder / "story.html")
    settings = {field.name: getattr(options, field.name) for field in dataclasses.fields(options) if field.name != "negative"}
    record = whole.to_json([*given, *drawn]) | {
        "seed": seed, "options": settings | {"negative": _json(options.negative)}, "pictures": drawn, "fingerprint": fingerprint(prompt, seed, options),
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
