"""DreamLLM: a trained model in a user's hands.

    model = DreamLLM.load("runs/quickstart")
    story = model.generate("Once a red circle jumps up.", seed=0)
    story.save_html("story.html")
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import PIL.Image

from dreamjax.document import Document, Image, Text
from dreamjax.models import dreamllm
from dreamjax.sampling import interleave
from dreamjax.sampling.interleave import Options
from dreamjax.schema import ConfigError
from dreamjax.tokenizer import Tokenizer
from dreamjax.training import checkpoint, model_folder


@dataclasses.dataclass(frozen=True, eq=False)
class DreamLLM:
    """A model with its parameters and its tokenizer. Every method takes the fields of `interleave.Options` as keywords."""

    parts: dreamllm.Parts
    params: dict
    tokenizer: Tokenizer
    template: str = "plain"

    @classmethod
    def load(cls, folder: str | os.PathLike, which: str = "last") -> "DreamLLM":
        """Opens a training workdir, a model folder or an official release; `which` checkpoint of a workdir is last or best.

        Other folders that `convert import` knows open too, if they hold an LLM with its tokenizer. Raises ConfigError, in
        one line, where the folder holds no model.
        """
        folder = checkpoint.open_folder(folder)
        if not model_folder.is_ours(folder):
            return cls._from_foreign(folder)
        card = model_folder.read_card(folder)
        if card.model.llm is None:
            raise ConfigError(f"{folder}: holds no LLM, which generating goes through")
        return cls(dreamllm.build(card.model), checkpoint.load_params(folder, which), Tokenizer.load(folder / "tokenizer"), card.template)

    @classmethod
    def _from_foreign(cls, folder: os.PathLike) -> "DreamLLM":
        from dreamjax.convert import assemble, importing  # may need torch

        plan = importing.make_plan([os.fspath(folder)])
        if plan.model.llm is None:
            raise ConfigError(f"{folder}: holds no LLM, which generating goes through")
        return cls(dreamllm.build(plan.model), assemble.materialise(plan.leaves), plan.tokenizer, plan.template)

    def generate(self, content, seed: int = 0, **options) -> Document:
        """What the model writes and draws after `content` (a Document, a text, a picture or a list of texts and pictures).

        The result holds the new parts alone; its notes say where a limit ended it. The same seed gives the same document.
        """
        return self.generate_batch([content], [seed], **options)[0]

    def generate_batch(self, contents: Sequence, seeds: Sequence[int] | None = None, **options) -> list[Document]:
        """`generate` for many at once; seeds are 0, 1, 2 ... where none are given."""
        prompts = [as_prompt(content) for content in contents]
        seeds = range(len(prompts)) if seeds is None else seeds
        return interleave.generate(self.parts, self.params, self.tokenizer, prompts, list(seeds), self._options(options))

    def text_to_image(self, content, num_images: int = 1, seed: int = 0, **options) -> list[PIL.Image.Image]:
        """`num_images` pictures that come right after `content`, a text or texts and pictures; seeds count up from `seed`."""
        if self.parts.unet is None:
            raise ValueError("text_to_image: this model has no picture decoder")
        prompts = [as_prompt(content)] * num_images
        drawn = interleave.draw_after(self.parts, self.params, self.tokenizer, prompts, range(seed, seed + num_images), self._options(options))
        return [PIL.Image.fromarray(picture) for picture in drawn]

    def answer(self, images, question: str, seed: int = 0, **options) -> str:
        """The model's answer, in words alone, to a question about a picture or several."""
        pictures = images if isinstance(images, (list, tuple)) else [images]
        prompt = Document((*(Image(picture, dreamed=False, role="user") for picture in pictures), Text(question, role="user")))
        return self.generate(prompt, seed, **{"max_images": 0, **options}).text.strip()

    def caption(self, images: Sequence, question: str = "Describe the picture.", **options) -> list[str]:
        """One caption for each picture: the answer to `question`."""
        prompts = [Document((Image(picture, dreamed=False, role="user"), Text(question, role="user"))) for picture in images]
        return [document.text.strip() for document in self.generate_batch(prompts, **{"max_images": 0, **options})]

    def _options(self, options: dict[str, Any]) -> Options:
        unknown = sorted(set(options) - {field.name for field in dataclasses.fields(Options)})
        if unknown:
            raise TypeError(f"{unknown[0]} is not an option; there are {', '.join(field.name for field in dataclasses.fields(Options))}")
        return Options(**{"template": self.template, **options})


def as_prompt(content) -> Document:
    """A Document whose pictures are seen; one that is given as a Document keeps its own marks."""
    if isinstance(content, Document):
        return content
    parts = Document.of(content).parts
    given = content if isinstance(content, (list, tuple)) else [content]
    return Document(tuple(part if isinstance(item, (Text, Image)) else _seen(part) for part, item in zip(parts, given, strict=True)))


def _seen(part: Text | Image) -> Text | Image:
    return dataclasses.replace(part, dreamed=False) if isinstance(part, Image) else part
