"""Documents as self-contained HTML pages for people."""

import collections.abc
import html
import itertools
import re

import PIL.Image

from dreamjax.document.parts import Image, Part, Text, data_uri

_SMALL = 128  # pixels; a picture with a shorter side below it is shown enlarged, each pixel a crisp square
_ENLARGED = 288

_STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf7; --ink: #23211d; --quiet: #6f6a61; --line: #e4dfd5; --card: #fff;
    --accent: #8a4b2a; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #171614; --ink: #e9e5dc; --quiet: #a09a8e; --line: #34312c; --card: #1f1e1b; --accent: #e0a37e; }
}
* { box-sizing: border-box; }
body { margin: 0; padding: clamp(1.5rem, 6vw, 5rem) clamp(1rem, 4vw, 2rem); background: var(--paper); color: var(--ink);
  font: 1.1875rem/1.65 Charter, "Bitstream Charter", "Iowan Old Style", "Source Serif 4", Cambria, Georgia, serif;
  text-rendering: optimizeLegibility; }
main { max-width: 40rem; margin: 0 auto; }
h1, h2 { font-weight: 600; line-height: 1.2; letter-spacing: -0.01em; text-wrap: balance; overflow-wrap: anywhere; }
h1 { margin: 0 0 2.5rem; font-size: clamp(1.6rem, 5vw, 2.3rem); }
h2 { margin: 0 0 1.5rem; font-size: 1.25rem; color: var(--quiet); }
article + article { margin-top: 4rem; padding-top: 3rem; border-top: 1px solid var(--line); }
p { margin: 0 0 1.1em; white-space: pre-line; hyphens: auto; overflow-wrap: break-word; }
.pictures { display: flex; flex-wrap: wrap; justify-content: center; gap: 1rem; margin: 2rem 0; }
figure { margin: 0; min-width: 0; break-inside: avoid; }
img { display: block; max-width: 100%; height: auto; max-height: 85vh; border-radius: 10px;
  box-shadow: 0 1px 2px rgb(0 0 0 / .12), 0 12px 32px -12px rgb(0 0 0 / .28); }
img.small { image-rendering: pixelated; border-radius: 4px; }
.turn { margin: 0 0 1.25rem; padding: 1.1rem 1.4rem; border: 1px solid var(--line); border-radius: 14px; background:
    var(--card); }
.turn.user { margin-left: clamp(0rem, 8vw, 4rem); }
.turn.assistant { margin-right: clamp(0rem, 8vw, 4rem); }
.turn > :last-child { margin-bottom: 0; }
.role, .notes, .empty { font-family: system-ui, sans-serif; font-size: .8125rem; color: var(--quiet); }
.role { margin: 0 0 .4rem; font-weight: 600; letter-spacing: .04em; color: var(--accent); }
.notes { margin: 2.5rem 0 0; padding: 0; list-style: none; }
@media print { body { padding: 0; background: none; } img { box-shadow: none; } }
"""


RELOAD = '<meta http-equiv="refresh" content="1">\n'


def _flow(parts: list[Part], numbers: collections.abc.Iterator[int]) -> str:
    """Parts of one role.

    Texts that follow each other are one text, pictures that follow each other stand side by side.
    """
    blocks, before = [], ""
    visible = [part for part in parts if isinstance(part, Image) or part.text.strip()]
    for is_image, run in itertools.groupby(visible, key=lambda part: isinstance(part, Image)):
        if is_image:
            figures = "".join(_figure(part.pil(), next(numbers), before) for part in run if isinstance(part, Image))
            blocks.append(f'<div class="pictures">{figures}</div>')
        else:
            before = "".join(part.text for part in run if isinstance(part, Text))
            paragraphs = [paragraph.strip() for paragraph in re.split(r"\n\s*\n", before)]
            blocks += [f'<p dir="auto">{html.escape(paragraph)}</p>' for paragraph in paragraphs if paragraph]
    return "\n".join(blocks)


def _figure(image: PIL.Image.Image, number: int, before: str) -> str:
    """A picture; its alt text says which one it is and what the text before it ends with."""
    words = " ".join(before.split())
    context = f", after the words: {words if len(words) <= 120 else '…' + words[-119:]}" if words else ""
    alt = html.escape(f"Picture {number}{context}")
    width, height = image.size
    small = min(width, height) < _SMALL
    if small:
        factor = max(2, round(_ENLARGED / max(width, height)))
        width, height = width * factor, height * factor
    kind = ' class="small"' if small else ""
    return f'<figure><img{kind} src="{data_uri(image)}" alt="{alt}" width="{width}" height="{height}"></figure>'


def html_page(title: str, body: str, head: str = "") -> str:
    """A whole page around a body of HTML, in the house's style; `head` is HTML for its head."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" '
        'content="width=device-width, initial-scale=1">\n'
        f"{head}<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def article(parts: collections.abc.Sequence[Part], notes: collections.abc.Sequence[str], heading: str = "") -> str:
    """A document's parts as an HTML article that needs no other file; `heading` is HTML that goes before them."""
    numbers = itertools.count(1)
    blocks = [heading] if heading else []
    for role, turn in itertools.groupby(parts, key=lambda part: part.role):
        content = _flow(list(turn), numbers)
        label = f'<p class="role">{role.capitalize()}</p>' if role else ""
        blocks.append(f'<section class="turn {role}">\n{label}\n{content}\n</section>' if role else content)
    if not parts:
        blocks.append('<p class="empty">An empty document.</p>')
    if notes:
        items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
        blocks.append(f'<ul class="notes">{items}</ul>')
    return "<article>\n" + "\n".join(blocks) + "\n</article>"
