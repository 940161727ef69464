"""The page on which a person judges documents: one after the other, support or not; it makes the file for the tally.

Pictures are files beside the page. What was judged stays in the browser until the file is made, so the page can be
closed.
"""

import html
from collections.abc import Sequence

from dreamjax.document.html import html_page

NAME = "judge.html"

_HEAD = """<style>
.bar { position: sticky; top: 0; padding: .8rem 0; background: var(--paper); border-bottom: 1px solid var(--line);
    font: 1rem/1.4 system-ui, sans-serif; }
.bar input { font: inherit; padding: .2rem .5rem; width: 10rem; }
button { font: 600 1rem/1 system-ui, sans-serif; padding: .7rem 1.2rem; border: 1px solid var(--line); border-radius:
    10px;
  background: var(--card); color: var(--ink); cursor: pointer; }
button.chosen { background: var(--accent); color: var(--paper); }
.answers { display: flex; gap: .8rem; margin: 1.5rem 0 0; }
</style>
"""
_INTRODUCTION = """<h1>Which documents do you support?</h1>
<p>Each answers the wish above it with text and pictures. Support a document if it makes sense as a whole, if its
pictures belong to the
text beside them, and if you would be content with it as an answer. Judge every document, in any order, then save your
file and send it back.</p>
<div class="bar"><label>Your name <input id="judge"></label> <span id="count"></span> <button id="save">Save my
file</button></div>"""
_SCRIPT = """<script>
const name = document.getElementById("judge"), articles = [...document.querySelectorAll("article")];
const kit = document.getElementById("kit").dataset.kit, kept = "study " + kit;
let state = { judge: "", kit, support: {} };
try { state = JSON.parse(localStorage.getItem(kept)) || state; } catch {}
function show() {
  name.value = state.judge;
  for (const article of articles)
    for (const button of article.querySelectorAll("button"))
      button.classList.toggle("chosen", state.support[article.dataset.code] === (button.value === "yes"));
  document.getElementById("count").textContent = `${Object.keys(state.support).length} of ${articles.length} judged`;
  try { localStorage.setItem(kept, JSON.stringify(state)); } catch {}
}
name.oninput = () => { state.judge = name.value; show(); };
for (const article of articles)
  for (const button of article.querySelectorAll("button"))
    button.onclick = () => { state.support[article.dataset.code] = button.value === "yes"; show(); };
document.getElementById("save").onclick = () => {
  if (!state.judge.trim()) { alert("Please write your name first."); return; }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(state)], { type: "application/json" }));
  link.download = `judged by ${state.judge.trim()}.json`;
  link.click();
};
show();
</script>"""


def render(pages: Sequence[tuple[str, str, Sequence[tuple[str, str]]]], kit: str) -> str:
    """The page of documents (code, wish, parts), each part (picture's file, "") or ("", text).

    `kit` is what judgements are kept under.
    """
    articles = "\n".join(_article(*page) for page in pages)
    return html_page(
        "Judging documents",
        f'{_INTRODUCTION}\n<div id="kit" data-kit="{html.escape(kit)}">\n{articles}\n</div>\n{_SCRIPT}',
        _HEAD,
    )


def _article(code: str, generation_prompt: str, parts: Sequence[tuple[str, str]]) -> str:
    def figure(name):
        return f'<div class="pictures"><figure><img src="{html.escape(name)}" alt=""></figure></div>'

    blocks = [figure(name) if name else f"<p>{html.escape(text.strip())}</p>" for name, text in parts]
    answers = '<div class="answers"><button value="yes">I support it</button><button value="no">I do not</button></div>'
    return (
        f'<article data-code="{code}"><h2>{code}</h2>\n<section class="turn '
        f'user"><p>{html.escape(generation_prompt)}</p></section>\n' + "\n".join(blocks) + f"\n{answers}</article>"
    )
