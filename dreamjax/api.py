"""DreamLLM: a trained model in a user's hands.

model = DreamLLM.load("runs/quickstart")
story = model.generate("Once a red circle jumps up.", seed=0)
story.save_html("story.html")
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from jax.sharding import Mesh

from dreamjax.config import ModelConfig
from dreamjax.config.validation import MAX_SEED, require, require_number, require_seed
from dreamjax.document import Document, Image, Text, clip_tokenizer
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.errors import ConfigError
from dreamjax.models.dreamllm import Model
from dreamjax.parallel.param_sharding import parameter_shardings
from dreamjax.sampling import attention_maps, denoise, finite, interleave, likelihood, rerank, stream, text_to_image
from dreamjax.sampling.options import MANY, Options
from dreamjax.training import checkpoint, model_folder


@dataclasses.dataclass(frozen=True, eq=False)
class DreamLLM:
    """A model with its parameters and its tokenizer.

    Every method takes the fields of `sampling.options.Options` as keywords.
    """

    model: Model
    tokenizer: Tokenizer
    template: str = "plain"
    clip_tokenizer: str | None = None  # folder of the tokenizer of CLIP's text tower, for ranking

    def __repr__(self) -> str:
        return f"DreamLLM({self.model!r}, {self.tokenizer.size} token ids, template {self.template!r})"

    @property
    def config(self) -> ModelConfig:
        """The settings of the model, part by part."""
        return self.model.config

    @property
    def params(self) -> dict:
        """The parameters, one nested dict with an entry per part."""
        return self.model.params

    @classmethod
    def load(
        cls, folder: str | os.PathLike, which: str = "last", mesh: Mesh | None = None, verify: bool = True
    ) -> "DreamLLM":
        """Opens a training workdir, a model folder or an official release; `which` checkpoint of a workdir is last or
        best.

        Other folders that `convert import` knows open too, if they hold an LLM with its tokenizer. With a `mesh` the
        parameters are spread over it, and `jax.set_mesh(mesh)` has to hold where the model is used. `verify` compares
        each array with its checksum, for which it passes through the host's memory once more. Raises ConfigError, in
        one line, where the folder holds no model, or one that cannot be read or is not as it was written.
        """
        path = checkpoint.open_folder(folder)
        if not model_folder.is_ours(path):
            foreign = cls._from_foreign(path)
            if mesh is None:
                return foreign
            params = jax.device_put(foreign.params, parameter_shardings(foreign.params, mesh))
            return dataclasses.replace(foreign, model=Model(foreign.config, params))
        card = model_folder.read_card(path)
        if card.model.llm is None:
            raise ConfigError(f"{path}: holds no LLM, which generating goes through")
        tokenizer = Tokenizer.load(path / "tokenizer")
        if tokenizer.size > card.model.llm.vocab_size:  # their ids would read other rows
            raise ConfigError(
                f"{path / 'tokenizer'}: has {tokenizer.size} ids, and the LLM beside it "
                f"{card.model.llm.vocab_size} rows: it is another model's"
            )
        shardings = mesh and parameter_shardings(checkpoint.parameter_shapes(card.model), mesh)
        params = checkpoint.load_params(path, which, shardings, verify)
        return cls(Model(card.model, params), tokenizer, card.template, _ranking_tokenizer(path))

    @classmethod
    def _from_foreign(cls, folder: os.PathLike) -> "DreamLLM":
        from dreamjax.convert import assemble, importer  # may need torch

        plan = importer.make_plan([os.fspath(folder)])
        if plan.model.llm is None:
            raise ConfigError(f"{folder}: holds no LLM, which generating goes through")
        if plan.tokenizer is None:
            raise ConfigError(f"{folder}: holds an LLM without its tokenizer")
        return cls(Model(plan.model, assemble.materialise(plan.leaves)), plan.tokenizer, plan.template)

    def generate(self, content, seed: int = 0, keep_prompt: bool = False, **options) -> Document:
        """Continue `content` (a Document, a text, an image or a list of texts and images) with text and images.

        The result holds the new parts alone, or all with `keep_prompt`; its notes say where a limit ended it. The same
        seed gives the same document.
        """
        return self.generate_batch([content], [require_seed("seed", seed)], keep_prompt=keep_prompt, **options)[0]

    def generate_batch(
        self,
        contents: Sequence,
        seeds: Sequence[int] | None = None,
        batch_size: int = 0,
        watch: Callable[[interleave.Event], None] | None = None,
        keep_prompt: bool = False,
        **options,
    ) -> list[Document]:
        """`generate` for many: `batch_size` at once, the last batch padded, or all at once where it is 0.

        Seeds are 0, 1, 2 ... where none are given. A document does not depend on the others of its batch, only on the
        batch's size. `watch` is called with the events of `interleave.run`. Raises NotFinite, after the last batch,
        where the model's numbers were not finite for some: its `results` are all documents.
        """
        batch_size = whole_number("batch_size", batch_size, 0)
        prompts, chosen = [as_prompt(content) for content in contents], self.options(options)
        seeds = [
            require_seed(f"seeds[{i}]", seed) for i, seed in enumerate(range(len(prompts)) if seeds is None else seeds)
        ]
        require(len(seeds) == len(prompts), "seeds", f"{len(seeds)} seeds for {len(prompts)} prompts")
        documents: list[Document] = []
        for start in range(0, len(prompts), batch_size or max(len(prompts), 1)):
            batch = slice(start, start + (batch_size or len(prompts)))
            request = interleave.GenerationRequest(
                prompts=prompts[batch], seeds=seeds[batch], options=chosen, size=batch_size
            )
            documents += interleave.generate(self.model, self.tokenizer, request, watch)
        if keep_prompt:
            pairs = zip(prompts, documents, strict=True)
            documents = [Document(prompt.parts + new.parts, prompt.id, new.notes) for prompt, new in pairs]
        finite.require_documents(documents, self.model)
        return documents

    def stream(
        self, content, seed: int = 0, every: int = 1, preview_every: int = 0, **options
    ) -> Iterator[stream.Event]:
        """The document that `generate` returns, as it is written: TextPiece, ImageStarted, Preview, ImageDone and at
        last Finished.

        Text comes after every `every` tokens, a Preview after every `preview_every` denoising steps (0: none). Raises
        NotFinite behind Finished, where `generate` does.
        """
        pace = interleave.Pace(whole_number("every", every, 1), whole_number("preview_every", preview_every, 0))
        request = interleave.GenerationRequest(
            prompts=[as_prompt(content)], seeds=[require_seed("seed", seed)], options=self.options(options)
        )
        return _checked(stream.stream(self.model, self.tokenizer, request, pace), self)

    def text_to_image(
        self,
        content,
        num_images: int = 1,
        seed: int = 0,
        rank: bool = False,
        candidates: int = 8,
        score: rerank.Scorer | None = None,
        **how,
    ) -> list[PIL.Image.Image]:
        """`num_images` images right after `content`, or after each of a list of prompts, prompt by prompt.

        A list is several prompts if it holds texts, Documents and lists alone; with an image in it, it is one prompt
        of texts and images. Seeds count up from `seed` through all images. `rank` samples `candidates` for each
        prompt and keeps those with the best score of CLIP (or `score`) for its text, their scores in `info`. `how`:
        the keywords of `text_to_latents`.
        """
        if not rank:
            return self.decode(self.text_to_latents(content, num_images, seed, **how))
        num_images, candidates = whole_number("num_images", num_images, 1), whole_number("candidates", candidates, 1)
        score = score or rerank.clip_scorer(
            self.model, self.clip_tokenizer and clip_tokenizer.load(self.clip_tokenizer)
        )
        images = self.decode(self.text_to_latents(content, max(candidates, num_images), seed, **how))
        return rerank.marked(rerank.rank(images, [prompt.text for prompt in prompts_of(content)], score), num_images)

    def text_to_latents(self, content, num_images: int = 1, seed: int = 0, **how) -> np.ndarray:
        """The latents of those images, [n, h, w, C] float32, as the U-Net leaves them; pixels in [-1, 1] where the
        model has no VAE.

        `how`: the fields of `LatentSettings` and of Options. Raises NotFinite, with all latents as its `results`, where
        some are not finite.
        """
        names = {field.name for field in dataclasses.fields(LatentSettings)}
        settings = LatentSettings(**{name: value for name, value in how.items() if name in names})
        options = self.options({name: value for name, value in how.items() if name not in names})
        num_images, seed = whole_number("num_images", num_images, 1), require_seed("seed", seed)
        prompts = prompts_of(content)
        negatives = settings.negatives_of(prompts)
        prompts, negatives = ([item for item in items for _ in range(num_images)] for items in (prompts, negatives))
        require(
            seed + len(prompts) - 1 <= MAX_SEED,
            "seed",
            f"{seed} leaves no seeds for {len(prompts)} pictures below 2^32",
        )
        results = []
        for start in range(0, len(prompts), settings.batch_size):
            batch = slice(start, start + settings.batch_size)
            request = text_to_image.ImageRequest(
                prompts=prompts[batch],
                seeds=range(seed + start, seed + start + len(prompts[batch])),
                options=options,
                negatives=negatives[batch],
                latents=None if settings.latents is None else settings.latents[batch],
                step_noise=None if settings.step_noise is None else settings.step_noise[:, batch],
            )
            every = settings.preview_every if settings.preview else 0
            for step in text_to_image.image_steps(self.model, self.tokenizer, request, every):
                if settings.preview and step.step < step.steps:
                    settings.preview(step.step, self._images(step.progress.estimate))
            results.append(np.asarray(step.progress.x))
        latents = np.concatenate(results)
        finite.require_rows(list(latents), "picture", self.model, latents)
        return latents

    def _images(self, latents: jax.Array) -> list[PIL.Image.Image]:
        return [PIL.Image.fromarray(image) for image in np.asarray(denoise.decode(self.model, latents).images)]

    def attention_maps(self, content, seed: int = 0, **options) -> attention_maps.AttentionMaps:
        """The image that `text_to_image` generates after `content`, and the attention maps of each dream query.

        `.maps`, `.save(FOLDER)`.
        """
        chosen = self.options(options)
        request = text_to_image.ImageRequest(
            prompts=[as_prompt(content)],
            seeds=[require_seed("seed", seed)],
            options=chosen,
            negatives=[] if chosen.negative is None else [chosen.negative],
        )
        if self.config.unet is not None:
            denoise.check(self.config, chosen, 1)
        conditions = text_to_image.conditions(self.model, self.tokenizer, request)
        keys = text_to_image.image_keys(request.seeds)
        latents, maps = attention_maps.attention_maps(self.model, conditions, keys, chosen)
        finite.require_rows(list(np.asarray(latents)), "picture", self.model)
        image = self.decode(np.asarray(latents))[0]
        return attention_maps.AttentionMaps(image, {side: values[0] for side, values in maps.items()})

    def decode(self, latents: np.ndarray | jax.Array, batch_size: int = 8) -> list[PIL.Image.Image]:
        """Latents [n, h, w, C] as images, `batch_size` at once.

        Raises NotFinite where an image would be of NaN, which is black.
        """
        images: list[PIL.Image.Image] = []
        flags: list[bool] = []
        batch_size = whole_number("batch_size", batch_size, 1)
        for start in range(0, len(latents), batch_size):
            decoded = denoise.decode(self.model, jnp.asarray(latents[start : start + batch_size]))
            images += map(PIL.Image.fromarray, np.asarray(decoded.images))
            flags += np.asarray(decoded.finite).tolist()
        finite.require_flags(flags, "picture", self.model, images)
        return images

    def log_probabilities(
        self, pairs: Sequence[tuple], batch_size: int = 8, template: str | None = None
    ) -> list[np.ndarray]:
        """For each (content, continuation) the log-probability of every token of the continuation, float32; their sum
        ranks answers.

        A continuation is a text; after running text it usually begins with a space. White space at the prompt's end
        counts to it, as in lm-evaluation-harness: ("a ", "goat") is scored as ("a", " goat") is.
        """
        batch_size = whole_number("batch_size", batch_size, 1)
        pairs = [(as_prompt(content), continuation) for content, continuation in pairs]
        results: list[np.ndarray] = []
        for start in range(0, len(pairs), batch_size):
            results += likelihood.log_probabilities(
                self.model, self.tokenizer, pairs[start : start + batch_size], template or self.template
            )
        finite.require_rows(results, "pair", self.model, results)
        return results

    def answer(self, images, question: str, seed: int = 0, **options) -> str:
        """The model's answer, in words alone, to a question about an image or several."""
        images = images if isinstance(images, (list, tuple)) else [images]
        prompt = Document(
            (*(Image(image, is_target=False, role="user") for image in images), Text(question, role="user"))
        )
        return self.generate(prompt, seed, **{"max_images": 0, **options}).text.strip()

    def caption(self, images: Sequence, question: str = "Describe the picture.", **options) -> list[str]:
        """One caption for each image: the answer to `question`."""
        prompts = [
            Document((Image(image, is_target=False, role="user"), Text(question, role="user"))) for image in images
        ]
        return [document.text.strip() for document in self.generate_batch(prompts, **{"max_images": 0, **options})]

    def options(self, options: dict[str, Any]) -> Options:
        """Options by their names.

        What is not given is the default, for the template the model's. Raises TypeError and ConfigError.
        """
        unknown = sorted(set(options) - {field.name for field in dataclasses.fields(Options)})
        if unknown:
            raise TypeError(
                f"{unknown[0]} is not an option; there are "
                f"{', '.join(field.name for field in dataclasses.fields(Options))}"
            )
        if options.get("negative") is not None:
            options = options | {"negative": as_prompt(options["negative"])}
        return Options(**{"template": self.template, **options})


def _ranking_tokenizer(folder) -> str | None:
    """The folder of CLIP's own tokenizer in a model folder, where it has one."""
    path = folder / "tokenizer" / "clip_text"
    return os.fspath(path) if path.exists() else None


def _checked(events: Iterator[stream.Event], model: DreamLLM) -> Iterator[stream.Event]:
    """The events, and behind the last one NotFinite, where the model's numbers were not finite."""
    for event in events:
        yield event
        if isinstance(event, stream.Finished):
            finite.require_documents([event.document], model.model)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentSettings:
    """Keywords of `DreamLLM.text_to_latents` beside Options."""

    negative: Any = None  # negative prompt, for all prompts, or a list of one for each
    latents: np.ndarray | None = None  # [n, h, w, C]: initial noise
    step_noise: np.ndarray | None = None  # [steps, n, h, w, C]: noise of each step
    # called with the step and the present batch's estimated images, after every `preview_every` steps
    preview: Callable[[int, list[PIL.Image.Image]], None] | None = None
    preview_every: int = 5
    batch_size: int = 8  # images at once

    def __post_init__(self):
        for name in ("preview_every", "batch_size"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), 1))
        for name in ("latents", "step_noise"):
            array = getattr(self, name)
            finite_numbers = array is None or bool(np.isfinite(np.asarray(array, np.float32)).all())
            require(finite_numbers, name, "has numbers that are not finite")

    def negatives_of(self, prompts: Sequence[Document]) -> list[Document]:
        """Negative prompts, one for each prompt, or none."""
        negatives = [] if self.negative is None else prompts_of(self.negative)
        negatives = negatives * len(prompts) if len(negatives) == 1 else negatives
        if negatives and len(negatives) != len(prompts):
            raise ConfigError(f"negative: {len(negatives)} negative prompts for {len(prompts)} prompts")
        return negatives


def whole_number(name: str, value, least: int) -> int:
    """An int between `least` and MANY: plain, because sums of NumPy's own wrap around."""
    return int(require_number(name, value, least, MANY))


def prompts_of(content) -> list[Document]:
    """One prompt, or several: a list of texts, Documents and lists alone."""
    if (
        isinstance(content, (list, tuple))
        and content
        and all(isinstance(item, (str, Document, list, tuple)) for item in content)
    ):
        return [as_prompt(item) for item in content]
    return [as_prompt(content)]


def as_prompt(content) -> Document:
    """A Document whose images are input alone; one that is given as a Document keeps its own marks."""
    if isinstance(content, Document):
        return content
    parts = Document.of(content).parts
    given = content if isinstance(content, (list, tuple)) else [content]
    return Document(
        tuple(
            part if isinstance(item, (Text, Image)) else _as_input(part)
            for part, item in zip(parts, given, strict=True)
        )
    )


def _as_input(part: Text | Image) -> Text | Image:
    return dataclasses.replace(part, is_target=False) if isinstance(part, Image) else part
