"""What a user may ask of a generated document or of drawn pictures, checked where it is set."""

import dataclasses

from dreamjax.diffusion.samplers import SAMPLERS, SPACINGS
from dreamjax.document import Document
from dreamjax.schema import ConfigError, require

PADDINGS = ("left", "right")
LOWEST = {
    "max_tokens": 0, "max_images": 0, "min_images": 0, "context": 0, "temperature": 0, "top_k": 0, "beams": 1, "guidance_scale": 1, "num_steps": 1,
    "eta": 0, "height": 0, "width": 0,
}


@dataclasses.dataclass(frozen=True)
class Options:
    """How to write and how to draw. Each is a keyword of the methods of `DreamLLM`."""

    # The document
    max_tokens: int = 256  # <dream_start> and </s> count
    max_images: int = 8  # 0 forbids pictures; above it, the wish for one more ends the document
    min_images: int = 0  # </s> is not written before, and the last tokens of max_tokens become pictures where they must
    context: int = 0  # positions of a document with its prompt; 0: all that the model has
    template: str = "plain"  # templates.TEMPLATES, for prompts with roles
    unmasked: bool = False  # control tokens that make no sense may be written too; they are counted in the document's notes

    # Words
    temperature: float = 0.0  # 0 takes the likeliest token
    top_k: int = 0  # draw from this many likeliest tokens; 0: all
    top_p: float = 1.0  # draw from the likeliest tokens that together have this probability
    repetition_penalty: float = 1.0  # above 1, what is there already becomes less likely
    stop: tuple[str, ...] = ()  # writing ends before the first of these strings
    beams: int = 1  # beams of a beam search; text alone, without drawing lots
    length_penalty: float = 1.0  # of beams: scores are divided by length to this power

    # Pictures
    sampler: str = "dpm_solver"  # ddpm | ddim | dpm_solver (DPM-Solver++ 2M, in 20 steps as good as DDIM in 50: benchmarks/trained_model.py)
    num_steps: int = 20
    spacing: str = "trailing"  # leading | trailing | linspace
    eta: float = 0.0  # of DDIM: 0 is deterministic, 1 has DDPM's variance
    guidance_scale: float = 3.0  # 1 is no guidance
    guidance_rescale: float = 0.0  # in [0, 1], against overexposure
    negative: Document | None = None  # what pictures are guided away from; nothing: from what has no context
    height: int = 0  # pixels; 0: the size that the model was trained on
    width: int = 0
    padding: str = "left"  # where shorter prompts are filled up when pictures are asked for: left, which changes nothing, or right, as the official code

    def __post_init__(self):
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        for name, low in LOWEST.items():
            if not getattr(self, name) >= low:
                raise ConfigError(f"{name}: {getattr(self, name)} is below {low}")
        require(self.repetition_penalty > 0, "repetition_penalty", f"must be above 0 (1 is none), is {self.repetition_penalty}")
        require(0 <= self.guidance_rescale <= 1, "guidance_rescale", f"{self.guidance_rescale} is not in [0, 1]")
        require(0 < self.top_p <= 1, "top_p", f"{self.top_p} is not in (0, 1]")
        require(self.eta <= 1, "eta", f"{self.eta} is not in [0, 1]")
        require(self.min_images <= self.max_images, "min_images", f"{self.min_images} is above max_images = {self.max_images}")
        require(all(self.stop), "stop", "an empty string would end every document at once")
        for name, known in (("sampler", SAMPLERS), ("spacing", SPACINGS), ("padding", PADDINGS)):
            require(getattr(self, name) in known, name, f"{getattr(self, name)!r} is none of {', '.join(known)}")
        if self.beams > 1:
            require(self.max_images == 0, "beams", f"{self.beams} beams write text alone: set max_images = 0")
            require(self.temperature == 0, "beams", f"a search by {self.beams} beams draws no lots: set temperature = 0")
