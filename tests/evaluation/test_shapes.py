"""The measure of the shapes model, against authors that know the answers and ones that do not."""

import json

import numpy as np
import pytest
from etils import epath

from dreamjax.data.sources import shapes as data
from dreamjax.document import Document, Image, Text
from dreamjax.evaluation import report
from dreamjax.evaluation.benchmarks import shapes


class Author:
    """Stands in for a model: goes on as told by a function of the prompt."""

    def __init__(self, write):
        self.write = write

    def generate_batch(self, prompts, seeds, **options):
        return [self.write(prompt) for prompt in prompts]


class NoBar:
    def update(self, count):
        pass


def make_image(colour, shape):
    return Image(data.render(colour, shape, "middle"))


def test_a_perfect_storyteller_scores_all():
    def write(prompt):
        first = make_image(*data.named(prompt.text))
        return Document(
            (first, Text("Then a blue square rests in the middle."), make_image("blue", "square"), Text(data.ENDING))
        )

    results = shapes.story_metrics(shapes.stories(Author(write), 40, NoBar(), {}))
    assert results["image_agreement"] == results["unseen_agreement"] == results["placement"] == 1
    assert results["images"] == 80 and results["unseen_images"] == 4


def test_missing_wrong_and_misplaced_images_count_against_the_story():
    no_loss = shapes.story_metrics(
        shapes.stories(Author(lambda prompt: Document((Text(data.ENDING),))), 40, NoBar(), {})
    )
    assert no_loss["image_agreement"] == no_loss["placement"] == 0
    wrong = shapes.story_metrics(
        shapes.stories(
            Author(lambda prompt: Document((make_image("red", "cross"), Text(data.ENDING)))), 40, NoBar(), {}
        )
    )
    assert (
        wrong["image_agreement"] == 2 / 36 and wrong["placement"] == 1
    )  # 2 of 36 prompts ask for it; the 4 others are unseen
    late = shapes.stories(
        Author(lambda prompt: Document((Text(data.ENDING), make_image(*data.named(prompt.text))))), 40, NoBar(), {}
    )
    assert shapes.story_metrics(late)["placement"] == 0


def test_answers_that_ignore_the_image_fall_to_chance():
    def blind(prompt):
        return Document(
            (
                Text(
                    {"colour": "red.", "shape": "circle.", "place": "left."}[
                        next(k for k, q in data.QUESTIONS.items() if q in prompt.text)
                    ]
                ),
            )
        )

    items = shapes.questions(Author(blind), 240, NoBar(), {})
    share = np.mean([item.named == item.judged for item in items if item.task == "question"])
    assert abs(share - np.mean([1 / 5, 1 / 4, 1 / 5])) < 0.06


def test_swapped_images_are_another_documents():
    own = [prompt.parts[0].source for prompt, *_ in data.questions(60)]
    inputs = []
    shapes.questions(
        Author(lambda prompt: inputs.append(prompt.parts[0].source) or Document((Text("red."),))), 60, NoBar(), {}
    )
    assert all(a is b for a, b in zip(inputs[:60], own, strict=True)) or all(
        np.array_equal(a, b) for a, b in zip(inputs[:60], own, strict=True)
    )
    assert (
        sum(np.array_equal(a, b) for a, b in zip(inputs[60:], own, strict=True)) < 6
    )  # a few other documents show the same


def test_the_judge_knows_true_images():
    assert shapes.judge_accuracy(200) >= 0.98


def test_items_name_their_images(tmp_path):
    items = shapes.recalls(
        Author(lambda prompt: Document((make_image("red", "circle"), Text(data.ENDING)))), 20, NoBar(), {}
    )
    shapes.write_items(items, epath.Path(tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    assert len(lines) == 20
    for line in lines:
        assert line["judged"] == [["red", "circle"]] and line["right"] == [line["named"] == [["red", "circle"]]]
        assert (tmp_path / line["images"][0]).exists() and line["text"].count("<picture>") == 2


class Draughtsman(Author):
    """Draws the first thing named, or says a word; counts what it is asked, and dies when told to."""

    def __init__(self, dies_at=None):
        super().__init__(
            lambda prompt: Document(
                (make_image(*(data.named(prompt.text) or ("red", "circle"))), Text(data.ENDING)), notes=("stopped",)
            )
        )
        self.asked, self.dies_at = 0, dies_at

    def generate_batch(self, prompts, seeds, **options):
        if self.asked == self.dies_at:
            raise KeyboardInterrupt
        self.asked += 1
        return super().generate_batch(prompts, seeds, **options)


def test_what_is_made_is_kept_and_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "BATCH", 4)
    whole, cut = epath.Path(tmp_path / "whole"), epath.Path(tmp_path / "cut")
    results, items = shapes.evaluate(Draughtsman(), whole, {"model": "m"}, 6)
    with pytest.raises(KeyboardInterrupt):
        shapes.evaluate(Draughtsman(dies_at=3), cut, {"model": "m"}, 6)
    path = cut / "predictions.jsonl"
    assert len(path.read_text().splitlines()) == 6 + 4
    path.write_bytes(path.read_bytes()[:-5])  # as if it had died while it wrote
    again = Draughtsman()
    assert (
        shapes.evaluate(again, cut, {"model": "m"}, 6)[0] == results and again.asked == 1 + 5
    )  # the batch of the cut row, and the rest of eight
    names = sorted(file.name for file in (whole / "pictures").iterdir())
    assert (
        names == sorted(file.name for file in (cut / "pictures").iterdir())
        and (cut / "items.jsonl").read_text() == (whole / "items.jsonl").read_text()
    )
    assert all((cut / "pictures" / name).read_bytes() == (whole / "pictures" / name).read_bytes() for name in names)
    assert path.read_text() == (whole / "predictions.jsonl").read_text() and items[0].continuation.notes == ("stopped",)
    other = Draughtsman()
    shapes.evaluate(other, cut, {"model": "another"}, 6)
    assert other.asked == 8


def test_the_report_shows_what_was_judged(tmp_path):
    results, items = shapes.evaluate(Draughtsman(), epath.Path(tmp_path), {}, 8)
    result = shapes.result("toy", results, items, {})
    assert result.score.metrics["placement"] == 100 * results["placement"] and result.score.counts["documents"] == 8
    page = report.render("t", [result])
    assert (
        page.count("<article>") == 4 * shapes.SAMPLES_OF_A_TASK and "the judge sees: " in page and "reference: " in page
    )
    assert page.count("data:image/png") == 6 * (1 + 2 + 2 + 2)  # stories begin without a picture, the others with one
    assert f"{100 * results['image_agreement']:.2f}" in page and 'id="toy"' in page
