"""DreamJAX: DreamLLM in JAX. A Document of text and pictures goes in, a Document comes out."""

from dreamjax.document import Document, Image, Text

__all__ = ["Document", "DreamLLM", "Image", "Text"]
__version__ = "0.2.0"  # setup.cfg reads it from here


def __getattr__(name: str):
    if name == "DreamLLM":  # brings jax and flax with it: only for those who ask
        from dreamjax.api import DreamLLM

        return DreamLLM
    raise AttributeError(f"module 'dreamjax' has no attribute {name!r}")
