"""Generated documents, stored as they come: an interrupted run reads those that are there and generates the rest."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from dreamjax.api import DreamLLM
from dreamjax.document import Document
from dreamjax.evaluation.run_files import append_rows, begin, read_document, read_rows


@dataclasses.dataclass(frozen=True, eq=False)
class ResumableModel:
    """Generates documents as its model does, a row each in a file; those with a row are read."""

    model: DreamLLM
    path: epath.Path
    rows: dict[str, dict]  # key of prompt, seed and options: the document

    def generate_batch(self, prompts: Sequence[Document], seeds: Sequence[int], **options: Any) -> list[Document]:
        """A document for each prompt. A batch that lacks any is generated as a whole, so that the end is the same."""
        keys = [_key(prompt, seed, options) for prompt, seed in zip(prompts, seeds, strict=True)]
        missing = [i for i, key in enumerate(keys) if key not in self.rows]
        if missing:
            documents = self.model.generate_batch(prompts, seeds, **options)
            rows: list[dict[str, Any]] = [
                {
                    "key": keys[i],
                    "prompt": prompts[i].text,
                    "text": documents[i].text,
                    "document": documents[i].to_json(),
                }
                for i in missing
            ]
            append_rows(self.path, rows)
            self.rows.update((row["key"], row["document"]) for row in rows)
        return [read_document(self.rows[key], self.path.parent, str(self.path)) for key in keys]


def open_resumable(model: DreamLLM, out: epath.Path, settings: dict) -> ResumableModel:
    """`model` with the file out/predictions.jsonl; another model's rows there are deleted."""
    begin(out, settings)
    path = out / "predictions.jsonl"
    rows = {row["key"]: row["document"] for row in read_rows(path, key=str, document=dict)}
    return ResumableModel(model, path, rows)


def _key(prompt: Document, seed: int, options: Mapping[str, Any]) -> str:
    request = json.dumps([prompt.to_earlier_json(), int(seed), options], sort_keys=True, default=str)
    return hashlib.sha256(request.encode()).hexdigest()[:32]
