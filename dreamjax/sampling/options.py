"""Options of generated documents and images, checked where they are set."""

import dataclasses

from dreamjax.config.validation import require, require_number
from dreamjax.diffusion.samplers import SAMPLERS, SPACINGS
from dreamjax.document import Document
from dreamjax.document.templates import TEMPLATES

PADDINGS = ("left", "right")
MANY = 2**20  # tokens, pictures, positions: more than any model has
RANGES = {  # whole numbers where the bounds are
    "max_tokens": (0, MANY),
    "max_images": (0, MANY),
    "min_images": (0, MANY),
    "context": (0, 2**31 - 1),
    "top_k": (0, 2**31 - 1),
    "beams": (1, 1024),
    "num_steps": (1, MANY),
    "height": (0, MANY),
    "width": (0, MANY),
    "temperature": (0.0, 1e4),
    "top_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
    "length_penalty": (-10.0, 10.0),
    "eta": (0.0, 1.0),
    "guidance_scale": (1.0, 1e4),
    "guidance_rescale": (0.0, 1.0),
}
COLDEST = 1e-10  # of temperatures above 0: logits divided by less leave float32


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of text and images. Each is a keyword of the methods of `DreamLLM`."""

    # The document
    max_tokens: int = 256  # <dream_start> and </s> count
    max_images: int = 8  # 0 forbids pictures; above it, the wish for one more ends the document
    min_images: int = 0  # </s> is not written before, and the last tokens of max_tokens become pictures where they must
    context: int = 0  # positions of a document with its prompt; 0: all that the model has
    template: str = "plain"  # templates.TEMPLATES, for prompts with roles
    unmasked: bool = (
        False  # control tokens that make no sense may be written too; they are counted in the document's notes
    )

    # Words
    temperature: float = 0.0  # 0 takes the likeliest token
    top_k: int = 0  # draw from this many likeliest tokens; 0: all
    top_p: float = 1.0  # draw from the likeliest tokens that together have this probability
    repetition_penalty: float = 1.0  # above 1, what is there already becomes less likely
    stop: tuple[str, ...] = ()  # writing ends before the first of these strings
    beams: int = 1  # beams of a beam search; text alone, without drawing lots
    length_penalty: float = 1.0  # of beams: scores are divided by length to this power

    # Pictures
    # ddpm | ddim | dpm_solver (DPM-Solver++ 2M, in 20 steps as good as DDIM in 50: benchmarks/trained_model.py)
    sampler: str = "dpm_solver"
    num_steps: int = 20
    spacing: str = "trailing"  # leading | trailing | linspace
    eta: float = 0.0  # of DDIM: 0 is deterministic, 1 has DDPM's variance
    guidance_scale: float = 3.0  # 1 is no guidance
    guidance_rescale: float = 0.0  # in [0, 1], against overexposure
    negative: Document | None = None  # what pictures are guided away from; nothing: from what has no context
    height: int = 0  # pixels; 0: the size that the model was trained on
    width: int = 0
    # where shorter prompts are filled up when pictures are asked for: left, which changes nothing, or right, as the
    # official code
    padding: str = "left"

    def __post_init__(self):
        for name, (low, high) in RANGES.items():
            object.__setattr__(self, name, require_number(name, getattr(self, name), low, high))
        require(
            self.temperature == 0 or self.temperature >= COLDEST,
            "temperature",
            f"{self.temperature} is too close to 0, which takes the likeliest token",
        )
        require(self.top_p > 0, "top_p", f"{self.top_p} is not in (0, 1]")
        require(
            self.min_images <= self.max_images,
            "min_images",
            f"{self.min_images} is above max_images = {self.max_images}",
        )
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        require(
            isinstance(stop, (list, tuple)) and all(isinstance(string, str) for string in stop),
            "stop",
            "must be a text or a list of texts",
        )
        require(all(stop), "stop", "an empty string would end every document at once")
        object.__setattr__(self, "stop", tuple(stop))
        require(isinstance(self.unmasked, bool), "unmasked", "must be True or False")
        require(self.negative is None or isinstance(self.negative, Document), "negative", "must be a Document or None")
        for name, known in (
            ("sampler", SAMPLERS),
            ("spacing", SPACINGS),
            ("padding", PADDINGS),
            ("template", tuple(TEMPLATES)),
        ):
            require(isinstance(getattr(self, name), str), name, f"must be one of {', '.join(known)}")
            require(getattr(self, name) in known, name, f"{getattr(self, name)!r:.80} is none of {', '.join(known)}")
        if self.beams > 1:
            require(self.max_images == 0, "beams", f"{self.beams} beams write text alone: set max_images = 0")
            require(
                self.temperature == 0, "beams", f"a search by {self.beams} beams draws no lots: set temperature = 0"
            )
