"""Documents of text and images, and their parts."""

from dreamjax.document.document import KINDS, Document, html_article, render_html
from dreamjax.document.parts import ROLES, Image, Part, Text

__all__ = ["KINDS", "ROLES", "Document", "Image", "Part", "Text", "html_article", "render_html"]
