"""Files of a finished document, and the fingerprint by which a later run recognises it.

    FOLDER/story.html      the prompt and what followed, in one file
    FOLDER/image_0.png     pictures that the model drew, prompt_0.png those that it was given
    FOLDER/story.json      the document with these file names, its seed, its options, and how many of its parts are the
                           prompt; written last

So story.json says all that is needed to write the document again, to the byte (`asked`).
"""

import dataclasses
import hashlib
import json
from typing import NamedTuple

from etils import epath

from dreamjax.config.validation import from_dict, require_number, require_seed
from dreamjax.document import Document, Image, image_io
from dreamjax.errors import ConfigError, printable
from dreamjax.filesystem import atomic
from dreamjax.sampling import finite
from dreamjax.sampling.options import MANY, Options

LARGEST = 2**28  # bytes of a story.json; the images of a negative prompt lie in it
KEYS = ("parts", "id", "notes", "seed", "batch_size", "prompt_parts", "options", "pictures", "fingerprint")


def fingerprint(prompt: Document, seed: int, options: Options) -> str:
    """16 hex digits over everything that decides what a model makes of a prompt."""
    settings = dataclasses.asdict(dataclasses.replace(options, negative=None)) | {
        "negative": options.negative and options.negative.to_earlier_json(),
        "seed": seed,
    }
    asked = {name: value for name, value in prompt.to_earlier_json().items() if name in ("kind", "parts")}
    return hashlib.sha256(json.dumps([asked, settings], sort_keys=True).encode()).hexdigest()[:16]


def _json(document: Document | None) -> dict | None:
    return None if document is None else document.to_json()


def write(
    folder: epath.Path, prompt: Document, document: Document, seed: int, options: Options, batch_size: int = 1
) -> dict:
    """Writes the files of a document that was made in a batch of `batch_size` rows; returns what story.json holds."""
    folder.mkdir(parents=True, exist_ok=True)
    given, drawn = _save(folder, "prompt", prompt), _save(folder, "image", document)
    story = Document(prompt.parts + document.parts, prompt.id, document.notes, prompt.kind)
    story.save_html(folder / "story.html")
    settings = {
        field.name: getattr(options, field.name) for field in dataclasses.fields(options) if field.name != "negative"
    }
    record = story.to_json([*given, *drawn]) | {
        "seed": seed,
        "batch_size": batch_size,
        "prompt_parts": len(prompt.parts),
        "options": settings | {"negative": _json(options.negative)},
        "pictures": drawn,
        "fingerprint": fingerprint(prompt, seed, options),
    }
    atomic.write_text(folder / "story.json", json.dumps(record) + "\n")
    return record


def _save(folder: epath.Path, name: str, document: Document) -> list[str]:
    """Writes the document's pictures; their file names in order."""
    names: list[str] = []
    for part in document.parts:
        if isinstance(part, Image):
            names.append(f"{name}_{len(names)}.png")
            atomic.write_bytes(folder / names[-1], image_io.to_png(part.pil()))
    return names


def read(folder: epath.Path, prompt: Document, seed: int, options: Options) -> dict | None:
    """Read story.json; None where there is none, or one of numbers that were not finite.

    ConfigError where it is damaged or of something else.
    """
    path = folder / "story.json"
    if not path.exists():
        return None
    try:
        record = _record(path)
    except ConfigError as error:
        raise ConfigError(f"--out: {error}; delete it, and it is written anew") from None
    if record.get("fingerprint") != fingerprint(prompt, seed, options):
        raise ConfigError(f"--out: {folder} holds what another prompt, seed or option made; use another folder")
    return None if finite.broken([record["notes"]]) else record


def _record(path: epath.Path) -> dict:
    """A story.json as `write` leaves it; ConfigError where it cannot be one."""
    if path.stat().length > LARGEST:
        raise ConfigError(f"{path}: has more than {LARGEST:,} bytes, which is no document's")
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is no JSON: {printable(str(error)):.300}") from None
    missing = [key for key in KEYS if key not in record] if isinstance(record, dict) else KEYS
    if missing:
        raise ConfigError(f"{path}: does not say what its document was made of: {missing[0]} is missing")
    return record


class Asked(NamedTuple):
    """Prompt, seed and options of a document."""

    prompt: Document
    seed: int
    options: Options
    batch_size: int


def asked(folder: epath.Path) -> Asked:
    """Read prompt, seed and options of a folder's document from story.json; ConfigError names a missing key.

    The file may be from anybody: pictures are read beside it alone, and every value is checked as an option of the
    command is.
    """
    path = folder / "story.json"
    if not path.exists():
        raise ConfigError(f"{path}: is not there")
    record = _record(path)
    try:
        story, settings = Document.from_json(record, folder), record["options"]
        if not isinstance(settings, dict):
            raise ConfigError("options: is no object")
        negative = settings.get("negative")
        settings = settings | {"negative": negative and Document.from_json(negative)}
        parts = int(require_number("prompt_parts", record["prompt_parts"], 0, len(story.parts)))
        prompt = Document(story.parts[:parts], story.id, kind=story.kind)
        return Asked(
            prompt,
            require_seed("seed", record["seed"]),
            from_dict(Options, settings, "options"),
            int(require_number("batch_size", record["batch_size"], 1, MANY)),
        )
    except ValueError as error:
        raise ConfigError(f"{path}: does not say what its document was made of: {printable(str(error)):.300}") from None
