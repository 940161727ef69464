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
        folder = checkpoint.open_folder(folder)
        if not model_folder.is_ours(folder):
            foreign = cls._from_foreign(folder)
            if mesh is None:
                return foreign
            params = jax.device_put(foreign.params, parameter_shardings(foreign.params, mesh))
            return dataclasses.replace(foreign, model=Model(foreign.config, params))
        card = model_folder.read_card(folder)
        if card.model.llm is None:
            raise ConfigError(f"{folder}: holds no LLM, which generating goes through")
        tokenizer = Tokenizer.load(folder / "tokenizer")
        if tokenizer.size > card.model.llm.vocab_size:  # their ids would read other rows
            raise ConfigError(
                f"{folder / 'tokenizer'}: has {tokenizer.size} ids, and the LLM beside it "
                f"{card.model.llm.vocab_size} rows: it is another model's"
            )
        shardings = mesh and parameter_shardings(checkpoint.parameter_shapes(card.model), mesh)
        params = checkpoint.load_params(folder, which, shardings, verify)
        return cls(Model(card.model, params), tokenizer, card.template, _ranking_tokenizer(folder))

    @classmethod
    def _from_foreign(cls, folder: os.PathLike) -> "DreamLLM":
        from dreamjax.convert import assemble, importer  # may need torch

        plan = importer.make_plan([os.fspath(folder)])
        if plan.model.llm is None:
            raise ConfigError(f"{folder}: holds no LLM, which generating goes through")
        return cls(Model(plan.model, assemble.materialise(plan.leaves)), plan.tokenizer, plan.template)

    def generate(self, content, seed: int = 0, **options) -> Document:
        """What the model writes and draws after `content` (a Document, a text, a picture or a list of texts and
        pictures).

        The result holds the new parts alone; its notes say where a limit ended it. The same seed gives the same
        document.
        """
        return self.generate_batch([content], [require_seed("seed", seed)], **options)[0]

    def generate_batch(
        self,
        contents: Sequence,
        seeds: Sequence[int] | None = None,
        batch_size: int = 0,
        watch: Callable | None = None,
        **options,
    ) -> list[Document]:
        """`generate` for many: `batch_size` at once, the last batch filled up with nothing, or all at once where it is
        0.

        Seeds are 0, 1, 2 ... where none are given. A document is what it would be beside any others of a batch of the
        same size. `watch` is called with the events of `interleave.run` on the way. Raises NotFinite, after the last
        one, where the model's numbers were not finite for some: its `made` has all documents.
        """
        batch_size = require_number("batch_size", batch_size, 0, MANY)
        prompts, chosen = [as_prompt(content) for content in contents], self.options(options)
        seeds = [
            require_seed(f"seeds[{i}]", seed) for i, seed in enumerate(range(len(prompts)) if seeds is None else seeds)
        ]
        require(len(seeds) == len(prompts), "seeds", f"{len(seeds)} seeds for {len(prompts)} prompts")
        made: list[Document] = []
        for start in range(0, len(prompts), batch_size or max(len(prompts), 1)):
            now = slice(start, start + (batch_size or len(prompts)))
            made += interleave.generate(self.model, self.tokenizer, prompts[now], seeds[now], chosen, watch, batch_size)
        finite.require_documents(made, self.model)
        return made

    def stream(
        self, content, seed: int = 0, every: int = 1, preview_every: int = 0, **options
    ) -> Iterator[stream.Event]:
        """The document that `generate` returns as it comes about: TextPiece, PictureStarted, Preview, PictureDone and
        at last Finished.

        Text comes after every `every` tokens, a Preview after every `preview_every` denoising steps (0: none). Raises
        NotFinite behind Finished, where `generate` does.
        """
        seed, every, preview_every = (
            require_seed("seed", seed),
            require_number("every", every, 1, MANY),
            require_number("preview_every", preview_every, 0, MANY),
        )
        events = stream.stream(
            self.model,
            self.tokenizer,
            as_prompt(content),
            seed,
            self.options(options),
            every,
            preview_every,
        )
        return _checked(events, self)

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
        """`num_images` pictures right after `content`, or after each of a list of prompts, prompt by prompt.

        A list is several prompts if it holds texts, Documents and lists alone; with a picture in it, it is one prompt
        of texts and pictures. Seeds count up from `seed` through all pictures. `rank` draws `candidates` for each
        prompt and keeps those that CLIP (or `score`) finds to fit its text best, with their scores in `info`. `how`:
        the keywords of `text_to_latents`.
        """
        if not rank:
            return self.decode(self.text_to_latents(content, num_images, seed, **how))
        num_images, candidates = (
            require_number("num_images", num_images, 1, MANY),
            require_number("candidates", candidates, 1, MANY),
        )
        score = score or rerank.clip_scorer(
            self.model, self.clip_tokenizer and clip_tokenizer.load(self.clip_tokenizer)
        )
        drawn = self.decode(self.text_to_latents(content, max(candidates, num_images), seed, **how))
        return rerank.marked(rerank.rank(drawn, [prompt.text for prompt in prompts_of(content)], score), num_images)

    def text_to_latents(
        self,
        content,
        num_images: int = 1,
        seed: int = 0,
        negative=None,
        latents: np.ndarray | None = None,
        step_noise: np.ndarray | None = None,
        preview: Callable[[int, list[PIL.Image.Image]], None] | None = None,
        preview_every: int = 5,
        batch_size: int = 8,
        **options,
    ) -> np.ndarray:
        """The latents of those pictures, [n, h, w, C] float32, as the U-Net leaves them; pixels in [-1, 1] where the
        model has no VAE.

        `negative` is what guidance leads away from, for all prompts or a list of one for each. `latents` [n, h, w, C]
        is the noise to begin from, `step_noise` [steps, n, h, w, C] that of each step. `preview` gets the step and the
        pictures of the present batch, as guessed so far, after every `preview_every` steps. `batch_size` pictures are
        drawn at once. Raises NotFinite, which has all latents in `made`, where some are not finite.
        """
        num_images, batch_size = (
            require_number("num_images", num_images, 1, MANY),
            require_number("batch_size", batch_size, 1, MANY),
        )

        def repeat(documents):
            return [document for document in documents for _ in range(num_images)]

        prompts, chosen = prompts_of(content), self.options(options)
        negatives = [] if negative is None else prompts_of(negative)
        negatives = negatives * len(prompts) if len(negatives) == 1 else negatives
        if negatives and len(negatives) != len(prompts):
            raise ConfigError(f"negative: {len(negatives)} negative prompts for {len(prompts)} prompts")
        prompts, negatives = repeat(prompts), repeat(negatives)
        seed, preview_every = (
            require_seed("seed", seed),
            require_number("preview_every", preview_every, 1, MANY),
        )  # plain ints: sums of NumPy's own wrap around
        require(
            seed + len(prompts) - 1 <= MAX_SEED,
            "seed",
            f"{seed} leaves no seeds for {len(prompts)} pictures below 2^32",
        )
        for name, given in (("latents", latents), ("step_noise", step_noise)):
            require(
                given is None or bool(np.isfinite(np.asarray(given, np.float32)).all()),
                name,
                "has numbers that are not finite",
            )

        def shown(latents):
            return [PIL.Image.fromarray(image) for image in np.asarray(denoise.decode(self.model, latents).images)]

        watch = (lambda moment: preview(moment.step, shown(moment.progress.estimate))) if preview else None
        drawn = []
        for start in range(0, len(prompts), batch_size):
            now = slice(start, start + batch_size)
            seeds = range(seed + start, seed + start + len(prompts[now]))
            noise = (
                latents if latents is None else latents[now],
                step_noise if step_noise is None else step_noise[:, now],
            )
            drawn.append(
                text_to_image.draw_after(
                    self.model,
                    self.tokenizer,
                    prompts[now],
                    seeds,
                    chosen,
                    negatives[now],
                    *noise,
                    watch,
                    preview_every,
                )
            )
        drawn = np.concatenate(drawn)
        finite.require_rows(drawn, "picture", self.model, drawn)
        return drawn

    def attention_maps(self, content, seed: int = 0, **options) -> attention_maps.Watched:
        """The picture that `text_to_image` draws after `content`, and where each dream query looked.

        `.maps`, `.save(FOLDER)`.
        """
        seed, chosen = require_seed("seed", seed), self.options(options)
        if self.config.unet is not None:
            denoise.check(self.config, chosen, 1)
        negatives = [] if chosen.negative is None else [chosen.negative]
        hidden, empty = text_to_image.conditions(self.model, self.tokenizer, [as_prompt(content)], negatives, chosen)
        latents, maps = attention_maps.attention_maps(
            self.model, hidden, empty, text_to_image.image_keys([seed]), chosen
        )
        finite.require_rows(np.asarray(latents), "picture", self.model)
        return attention_maps.Watched(self.decode(latents)[0], {side: values[0] for side, values in maps.items()})

    def decode(self, latents: np.ndarray | jax.Array, batch_size: int = 8) -> list[PIL.Image.Image]:
        """Latents [n, h, w, C] as pictures, `batch_size` at once.

        Raises NotFinite where a picture would be of NaN, which is black.
        """
        drawn, sound, batch_size = [], [], require_number("batch_size", batch_size, 1, MANY)
        for start in range(0, len(latents), batch_size):
            decoded = denoise.decode(self.model, jnp.asarray(latents[start : start + batch_size]))
            drawn += map(PIL.Image.fromarray, np.asarray(decoded.images))
            sound += np.asarray(decoded.finite).tolist()
        finite.require_flags(sound, "picture", self.model, drawn)
        return drawn

    def log_probabilities(
        self, pairs: Sequence[tuple], batch_size: int = 8, template: str | None = None
    ) -> list[np.ndarray]:
        """For each (content, continuation) the log-probability of every token of the continuation, float32; their sum
        ranks answers.

        A continuation is a text; after running text it usually begins with a space. White space at the prompt's end
        counts to it, as in lm-evaluation-harness: ("a ", "goat") is scored as ("a", " goat") is.
        """
        batch_size = require_number("batch_size", batch_size, 1, MANY)
        pairs, found = [(as_prompt(content), continuation) for content, continuation in pairs], []
        for start in range(0, len(pairs), batch_size):
            found += likelihood.log_probabilities(
                self.model, self.tokenizer, pairs[start : start + batch_size], template or self.template
            )
        finite.require_rows(found, "pair", self.model, found)
        return found

    def answer(self, images, question: str, seed: int = 0, **options) -> str:
        """The model's answer, in words alone, to a question about a picture or several."""
        shown = images if isinstance(images, (list, tuple)) else [images]
        prompt = Document(
            (*(Image(image, is_target=False, role="user") for image in shown), Text(question, role="user"))
        )
        return self.generate(prompt, seed, **{"max_images": 0, **options}).text.strip()

    def caption(self, images: Sequence, question: str = "Describe the picture.", **options) -> list[str]:
        """One caption for each picture: the answer to `question`."""
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
    """A Document whose pictures are seen; one that is given as a Document keeps its own marks."""
    if isinstance(content, Document):
        return content
    parts = Document.of(content).parts
    given = content if isinstance(content, (list, tuple)) else [content]
    return Document(
        tuple(part if isinstance(item, (Text, Image)) else _seen(part) for part, item in zip(parts, given, strict=True))
    )


def _seen(part: Text | Image) -> Text | Image:
    return dataclasses.replace(part, is_target=False) if isinstance(part, Image) else part
