"""The embedded generator: illustrated stories, questions and recalls about coloured shapes, with exact ground truth.

A scene is a coloured shape at one of five places; the place is what the shape does ("jumps up", "sleeps in the
middle"). All pictures form a finite set (`all_pictures`), so that a drawn picture can be judged exactly, and two
combinations of colour and shape (UNSEEN) never occur in training, so that composition can be told from memory.
Everything is a pure function of (seed, split, index).

Pictures are uint8 [size, size, 3], RGB; lengths are in pixels of the 16-pixel picture, x to the right and y downwards.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterable, Sequence

import numpy as np

from dreamjax.config import SourceConfig
from dreamjax.data.source import SPLITS
from dreamjax.document import Document, Image, Text
from dreamjax.errors import BadRecord, SourceError

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "green", "blue", "yellow", "purple")
COMBINATIONS = tuple(itertools.product(COLOURS, SHAPES))
# Each colour and each shape stays in at least three combinations that training sees.
UNSEEN = (("green", "triangle"), ("purple", "circle"))
SEEN = tuple(combination for combination in COMBINATIONS if combination not in UNSEEN)

ACTIONS = {
    "up": ("jumps up", "flies up"),
    "down": ("falls down", "rolls down"),
    "left": ("runs left", "walks left"),
    "right": ("runs right", "walks right"),
    "middle": ("rests in the middle", "sleeps in the middle"),
}
PLACES = tuple(ACTIONS)
QUESTIONS = {"colour": "What colour is it?", "shape": "What shape is it?", "place": "Where is it?"}
OPENINGS = ("Once", "One day")
CONTINUATIONS = ("Then", "Now")
INTRODUCTION = "Here is a shape."
ENDING = "The end."

STORY_SHARE = 0.45
QUESTION_SHARE = 0.35  # the rest are recalls
LENGTHS = {"train": 20_000, "eval": 1_000}  # documents of an epoch, unless told otherwise

PAPER = (252, 247, 232)
INKS = {
    "red": (214, 48, 49),
    "green": (46, 160, 67),
    "blue": (36, 92, 210),
    "yellow": (242, 194, 32),
    "purple": (142, 60, 186),
}
OFFSETS = {"up": (0, -3), "down": (0, 3), "left": (-3, 0), "right": (3, 0), "middle": (0, 0)}
# Around the place's offset: places stay at least one pixel apart.
JITTERS = tuple((x, y) for x in (-1, 0, 1) for y in (-1, 0, 1))
RADII = (4.0, 3.5)  # half the width of a shape, by scale
SUPERSAMPLING = (
    12  # samples per pixel along each axis; a multiple of 3, so that the arms of a cross end between samples
)


@dataclasses.dataclass(frozen=True)
class Scene:
    """A picture and what is said of it.

    `action` is one of ACTIONS[place], `jitter` of JITTERS, `scale` indexes RADII.
    """

    colour: str
    shape: str
    place: str
    action: str
    jitter: tuple[int, int] = (0, 0)
    scale: int = 0

    def sentence(self, opening: str) -> str:
        """A story's sentence of the image, such as "Once a red circle jumps up." for the opening "Once"."""
        return f"{opening} a {self.colour} {self.shape} {self.action}."

    def image(self) -> np.ndarray:
        """uint8 [16, 16, 3]."""
        return render(self.colour, self.shape, self.place, self.jitter, self.scale)


# ----------------------------------------------------------------------------------------------------------------------
# Pictures


def coverage(shape: str, centre: tuple[float, float], radius: float, size: int) -> np.ndarray:
    """uint8 [size, size, 1].

    How much of each pixel a shape covers, 255 for all; centre and radius in 16ths of the side.
    """
    samples = (np.arange(size * SUPERSAMPLING) + 0.5) * 16 / (size * SUPERSAMPLING)
    x, y = (samples[None, :] - centre[0]) / radius, (samples[:, None] - centre[1]) / radius  # the shape spans -1..1
    match shape:
        case "circle":
            inside = x**2 + y**2 <= 1
        case "square":
            inside = np.maximum(abs(x), abs(y)) <= 1
        case "triangle":
            inside = (abs(y) <= 1) & (abs(x) <= (y + 1) / 2)
        case "cross":
            inside = (np.maximum(abs(x), abs(y)) <= 1) & (np.minimum(abs(x), abs(y)) <= 1 / 3)
    share = inside.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING).mean((1, 3))
    return np.rint(255 * share).astype(np.uint8)[..., None]


@functools.lru_cache(maxsize=512)  # all of one size: 4 shapes x 5 places x 9 jitters x 2 scales = 360
def _coverage(shape: str, place: str, jitter: tuple[int, int], scale: int, size: int) -> np.ndarray:
    x, y = (8 + offset + shift for offset, shift in zip(OFFSETS[place], jitter, strict=True))
    return coverage(shape, (x, y), RADII[scale], size)


def render(
    colour: str, shape: str, place: str, jitter: tuple[int, int] = (0, 0), scale: int = 0, size: int = 16
) -> np.ndarray:
    """The picture of one shape, uint8 [size, size, 3]; the geometry grows with `size`."""
    paper, ink = np.asarray(PAPER, np.float32), np.asarray(INKS[colour], np.float32)
    return np.rint(paper + (ink - paper) * (_coverage(shape, place, jitter, scale, size) / np.float32(255))).astype(
        np.uint8
    )


@functools.cache
def all_images() -> tuple[np.ndarray, tuple[tuple[str, str, str], ...]]:
    """Every picture there is, UNSEEN included: uint8 [n, 16, 16, 3], read-only, and n labels (colour, shape, place)."""
    cases = list(itertools.product(COLOURS, SHAPES, PLACES, JITTERS, range(len(RADII))))
    images = np.stack([render(*case) for case in cases])
    images.flags.writeable = False
    return images, tuple(case[:3] for case in cases)


# ----------------------------------------------------------------------------------------------------------------------
# Documents


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Generated documents. The train split leaves UNSEEN out everywhere; the eval split holds all combinations."""

    split: str = "train"
    seed: int = 0
    length: int = LENGTHS["train"]

    @property
    def skipped(self) -> tuple[BadRecord, ...]:
        """None: every document is generated."""
        return ()

    def __post_init__(self):
        if self.split not in SPLITS:
            raise SourceError(f"shapes: split {self.split!r} is none of {', '.join(SPLITS)}")

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Document:
        if not 0 <= index < self.length:
            raise IndexError(f"shapes has documents 0 to {self.length - 1}, not {index}")
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), index])
        combinations = SEEN if self.split == "train" else COMBINATIONS
        kind = rng.random()
        if kind < STORY_SHARE:
            parts = _story(rng, combinations)
        elif kind < STORY_SHARE + QUESTION_SHARE:
            parts = _conversation(_scene(rng, _choice(rng, combinations)), rng.permutation(tuple(QUESTIONS)).tolist())
        else:
            first, asked = _recall_scenes(rng, _choice(rng, combinations), combinations)
            parts = _recall(first, asked) + (Image(asked.image()), Text(ENDING))
        return Document(parts, id=f"shapes-{self.split}-{self.seed}-{index}")

    @property
    def fingerprint(self) -> str:
        """All that the documents depend on."""
        return f"shapes-{self.split}-{self.seed}-{self.length}"

    def key(self, index: int) -> str:
        """Each document by itself."""
        return str(index)

    def texts(self) -> Iterable[str]:
        """The sentences of the train split, whichever split this is."""
        return corpus()


def open_shapes(config: SourceConfig, seed: int = 0) -> Shapes:
    """The generated documents of a split."""
    return Shapes(config.split, seed, LENGTHS[config.split])


def _choice(rng: np.random.Generator, items):
    return items[rng.integers(len(items))]


def _scene(rng: np.random.Generator, combination: tuple[str, str], place: str | None = None) -> Scene:
    place = place or _choice(rng, PLACES)
    return Scene(
        *combination, place, _choice(rng, ACTIONS[place]), _choice(rng, JITTERS), int(rng.integers(len(RADII)))
    )


def _recall_scenes(
    rng: np.random.Generator, asked: tuple[str, str], combinations, place: str | None = None
) -> tuple[Scene, Scene]:
    """The scene shown first and the wanted one: the same shape at the same place, in another colour."""
    colour, shape = asked
    others = [combination for combination in combinations if combination[1] == shape and combination[0] != colour]
    first = _scene(rng, _choice(rng, others), place)
    return first, dataclasses.replace(first, colour=colour)


def _story(rng: np.random.Generator, combinations) -> tuple:
    parts = []
    for page in range(rng.integers(2, 4)):
        scene = _scene(rng, _choice(rng, combinations))
        parts += [Text(scene.sentence(_choice(rng, CONTINUATIONS if page else OPENINGS))), Image(scene.image())]
    return (*parts, Text(ENDING))


def _question(scene: Scene, asked: str) -> tuple:
    return Image(scene.image(), is_target=False, role="user"), Text(QUESTIONS[asked], supervised=False, role="user")


def _conversation(scene: Scene, order: Sequence[str]) -> tuple:
    """A picture, and all questions about it with their answers, which only the picture tells."""
    turns = [(_question(scene, asked)[1], Text(f"{getattr(scene, asked)}.", role="assistant")) for asked in order]
    return _question(scene, order[0])[0], *(part for turn in turns for part in turn)


def _again(colour: str) -> str:
    return f"The same again, in {colour}."


def _recall(first: Scene, asked: Scene) -> tuple:
    return Text(INTRODUCTION), Image(first.image(), is_target=False), Text(_again(asked.colour))


@functools.cache
def corpus() -> tuple[str, ...]:
    """Every sentence of the train split, once: it covers the vocabulary of both splits."""
    actions = [(place, action) for place in PLACES for action in ACTIONS[place]]
    scenes = [Scene(*combination, place, action) for combination in SEEN for place, action in actions]
    stories = [scene.sentence(opening) for scene in scenes for opening in OPENINGS + CONTINUATIONS]
    answers = [f"{answer}." for answer in COLOURS + SHAPES + PLACES]
    return (*stories, *QUESTIONS.values(), *answers, INTRODUCTION, *map(_again, COLOURS), ENDING)


# ----------------------------------------------------------------------------------------------------------------------
# Evaluation


def story_prompts(n: int, seed: int = 0) -> list[tuple[Document, Scene]]:
    """n first sentences of stories, and the scene each names; combinations and places occur evenly, UNSEEN too."""
    prompts = []
    for rng, combination, place in _even_cases(n, seed, COMBINATIONS, "story"):
        scene = _scene(rng, combination, place)
        prompts.append((Document((Text(scene.sentence(_choice(rng, OPENINGS))),)), scene))
    return prompts


def questions(n: int, seed: int = 0) -> list[tuple[Document, str, str, Scene]]:
    """n (prompt, answer without full stop, kind, scene).

    Combinations, places and kinds (of QUESTIONS) occur evenly, UNSEEN too.
    """
    asked = []
    for i, (rng, combination, place) in enumerate(_even_cases(n, seed, COMBINATIONS, "question")):
        scene, kind = _scene(rng, combination, place), tuple(QUESTIONS)[i % len(QUESTIONS)]
        asked.append((Document(_question(scene, kind)), getattr(scene, kind), kind, scene))
    return asked


def recalls(n: int, seed: int = 0) -> list[tuple[Document, Scene]]:
    """n (prompt that ends in "The same again, in blue.", wanted scene).

    Both its scenes are of SEEN, the wanted ones evenly.
    """
    prompts = []
    for rng, combination, place in _even_cases(n, seed, SEEN, "recall"):
        first, asked = _recall_scenes(rng, combination, SEEN, place)
        prompts.append((Document(_recall(first, asked)), asked))
    return prompts


def _even_cases(n: int, seed: int, combinations, kind: str):
    """n times (generator, combination, place), each combination and each place as often as any other, up to a
    remainder.

    The generator's second key is none of those of the sources, which are the first len(SPLITS) numbers.
    """
    rng = np.random.default_rng([seed, len(SPLITS) + ("story", "question", "recall").index(kind)])
    order = rng.permutation(len(combinations))
    for i in range(n):
        turn, k = divmod(i, len(combinations))
        yield rng, combinations[order[k]], PLACES[(k + turn) % len(PLACES)]


def named(text: str) -> tuple[str, str] | None:
    """(colour, shape) of the last sentence of `text` that names both; where it names several, its last of each."""
    for sentence in reversed(re.split(r"[.!?\n]", text.lower())):
        words = re.findall(r"[a-z]+", sentence)
        colours, shapes = [w for w in words if w in COLOURS], [w for w in words if w in SHAPES]
        if colours and shapes:
            return colours[-1], shapes[-1]
    return None
