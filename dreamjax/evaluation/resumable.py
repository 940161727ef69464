"""What a model makes, written down as it comes: a run that was interrupted reads what is there and makes the rest."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence

from etils import epath

from dreamjax.api import DreamLLM
from dreamjax.document import Document
from dreamjax.evaluation import runner


@dataclasses.dataclass(frozen=True, eq=False)
class Kept:
    """Makes documents as its model does, a row each in a file; what has a row is read and not made again."""

    model: DreamLLM
    path: epath.Path
    rows: dict[str, dict]  # key of prompt, seed and options: the document

    def generate_batch(self, prompts: Sequence[Document], seeds: Sequence[int], **options) -> list[Document]:
        """A document for each prompt. A batch of which one is missing is made whole, so that the end is the same."""
        keys = [_key(*asked, options) for asked in zip(prompts, seeds, strict=True)]
        missing = [i for i, key in enumerate(keys) if key not in self.rows]
        if missing:
            made = self.model.generate_batch(prompts, seeds, **options)
            rows = [
                {"key": keys[i], "prompt": prompts[i].text, "text": made[i].text, "document": made[i].to_json()}
                for i in missing
            ]
            runner.append(self.path, rows)
            self.rows.update((row["key"], row["document"]) for row in rows)
        return [runner.document_of(self.rows[key], self.path.parent, str(self.path)) for key in keys]


def keep(model: DreamLLM, out: epath.Path, settings: dict) -> Kept:
    """`model` with the file out/predictions.jsonl; what another model left there is put away."""
    runner.begin(out, settings)
    path = out / "predictions.jsonl"
    return Kept(model, path, {row["key"]: row["document"] for row in runner.resume(path, key=str, document=dict)})


def _key(prompt: Document, seed: int, options: dict) -> str:
    asked = json.dumps([prompt.to_json(), int(seed), options], sort_keys=True, default=str)
    return hashlib.sha256(asked.encode()).hexdigest()[:32]
