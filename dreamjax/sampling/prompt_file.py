"""A file of prompts, one on each line.

A Document as `Document.to_json` writes it, with picture files beside the file, or just a string.
"""

import json

from etils import epath

from dreamjax.config.validation import require_seed
from dreamjax.document import Document
from dreamjax.errors import ConfigError, OutsideFolder, printable


def read_prompts(path: epath.Path, seed: int = 0, allow_outside: bool = False) -> list[tuple[Document, int]]:
    """(prompt, seed) of each line; ConfigError names the line that makes no sense.

    `seed` is that of the first line, those behind count on; `allow_outside` takes names of pictures that lead out of
    the file's folder.
    """
    try:
        lines = (
            path.read_bytes().decode("utf-8-sig").split("\n")
        )  # JSON may hold what else Python takes for the end of a line
    except UnicodeDecodeError as error:
        raise ConfigError(f"--prompts: {path}: is no UTF-8: {error}") from None
    prompts = []
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            document = (
                Document.of(record)
                if isinstance(record, str)
                else Document.from_json(record, path.parent, allow_outside)
            )
            own = require_seed("seed", seed + number if isinstance(record, str) else record.get("seed", seed + number))
        except (ValueError, RecursionError) as error:
            hint = "; --allow_outside takes it" if isinstance(error.__cause__, OutsideFolder) else ""
            raise ConfigError(f"--prompts: line {number + 1} of {path}: {printable(str(error)):.300}{hint}") from None
        prompts.append((document, own))
    if not prompts:
        raise ConfigError(f"--prompts: {path} has no line")
    return prompts
