"""Pages told after k pages: which are taken, what stands before them, their perplexity, and that a run goes on."""

import json
import types

import numpy as np
import pytest
from etils import epath
from evaluation import layouts

from dreamjax.data.sources.storybook import Storybook
from dreamjax.document import Document, Text
from dreamjax.evaluation.benchmarks import storybook_captions


@pytest.fixture()
def folder(tmp_path):
    """Twenty stories of six pages, each with a picture of its own; every page's text names it."""
    root = tmp_path / "stories"
    for i in range(20):
        for k in range(6):
            layouts.plain_image(root / "images" / f"{i}-{k}.png", (i, k, 0))

    def pages(i):
        return [{"text": f"Page {k} of {i}.", "image": f"images/{i}-{k}.png"} for k in range(6)]

    rows = [{"id": f"s{i}", "title": f"Story {i}", "pages": pages(i)} for i in range(20)]
    (root / "stories.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def with_context(length):
    """As much of a Model as has the length of its context."""
    return types.SimpleNamespace(llm=types.SimpleNamespace(config=types.SimpleNamespace(max_positions=length)))


class Teller:
    """Stands for a model: writes of a dog, and finds tokens the less likely the more pages stand before them."""

    template = "plain"
    model = with_context(100)
    tokenizer = None

    def __init__(self):
        self.asked = 0

    def log_probabilities(self, pairs, size):
        assert len(pairs) == size
        return [np.full(4, -1.0 - len(prompt.images), np.float32) for prompt, _ in pairs]

    def generate_batch(self, prompts, **options):
        self.asked += len(prompts)
        return [Document((Text("A dog."),)) for _ in prompts]


@pytest.fixture(autouse=True)
def words_as_tokens(monkeypatch):
    monkeypatch.setattr(
        storybook_captions,
        "prompt_tokens",
        lambda model, tokenizer, document, template: len(document.text.split()) + 4 * len(document.images),
    )


def test_what_stands_before_a_page(folder):
    pages, left_out = storybook_captions.collect(Teller(), Storybook(folder, "eval"))
    stories = len(Storybook(folder, "eval").stories)
    assert stories >= 1 and len(pages) == 3 * 2 * stories and left_out == 0  # the fifth and the sixth page, for each k
    none, two, four = pages[:3]
    number = none.id.split("/")[0][1:]
    assert (none.shots, two.shots, four.shots) == (
        0,
        2,
        4,
    ) and none.text == two.text == four.text == f"Page 4 of {number}."

    def kinds(document):
        return "".join("T" if isinstance(part, Text) else "I" for part in document.parts)

    assert (kinds(none.before), kinds(two.before), kinds(four.before)) == ("", "TITI", "TITITITI")
    assert (kinds(none.examples), kinds(two.examples)) == ("I", "ITITI") and not two.examples.parts[0].is_target
    assert two.before.text == f"Page 2 of {number}. Page 3 of {number}." and str(
        two.examples.parts[-1].source
    ).endswith(f"{number}-4.png")
    short = types.SimpleNamespace(**{name: getattr(Teller, name) for name in ("template", "tokenizer")})
    short.model = with_context(80)
    assert storybook_captions.collect(short, Storybook(folder, "eval")) == ([], 2 * stories)


def test_perplexity_and_cider_and_a_run_goes_on(folder, tmp_path):
    out, model = epath.Path(tmp_path), Teller()
    found = storybook_captions.evaluate(model, epath.Path(folder), out, {"model": "m"})
    assert [found[f"perplexity_k{k}"] for k in (0, 2, 4)] == pytest.approx([np.e, np.e**3, np.e**5])
    assert found["cider_k0"] == found["cider_k4"] == 0.0 and found["caption_pages_left_out"] == 0
    assert "k = 2: perplexity" in storybook_captions.format_summary(found)
    path, asked = tmp_path / "captions" / "predictions.jsonl", model.asked
    assert asked == 3 * found["caption_pages"] == len(layouts.rows_of(path))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 5])
    assert (
        storybook_captions.evaluate(model, epath.Path(folder), out, {"model": "m"}) == found
        and model.asked == asked + 1
    )
    assert path.read_bytes() == whole
    storybook_captions.evaluate(model, epath.Path(folder), out, {"model": "another"})
    assert model.asked == 2 * asked + 1


def test_right_captions_are_worth_more(folder, tmp_path, monkeypatch):
    def say(self, prompts, **options):
        return [
            Document((Text("A dog."),)) if len(p.images) == 1 else Document((Text(self.right[id(p)]),)) for p in prompts
        ]

    monkeypatch.setattr(Teller, "generate_batch", say)
    collect = storybook_captions.collect

    def remembered(model, *arguments):
        pages, left_out = collect(model, *arguments)
        model.right = {id(page.examples): page.text for page in pages}
        model.kept = pages
        return pages, left_out

    monkeypatch.setattr(storybook_captions, "collect", remembered)
    found = storybook_captions.evaluate(Teller(), epath.Path(folder), epath.Path(tmp_path), {})
    assert found["cider_k0"] == 0 and found["cider_k2"] == found["cider_k4"] > 100
