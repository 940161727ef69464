"""The measure of the shapes model, against authors that know the answers and ones that do not."""

import json

import numpy as np
from etils import epath

from dreamjax.data.sources import shapes as data
from dreamjax.document import Document, Image, Text
from dreamjax.evaluation import shapes


class Author:
    """Stands in for a model: goes on as told by a function of the prompt."""

    def __init__(self, write):
        self.write = write

    def generate_batch(self, prompts, seeds, **options):
        return [self.write(prompt) for prompt in prompts]


class NoBar:
    def update(self, count):
        pass


def picture(colour, shape):
    return Image(data.render(colour, shape, "middle"))


def test_a_perfect_storyteller_scores_all():
    def write(prompt):
        first = picture(*data.named(prompt.text))
        return Document((first, Text("Then a blue square rests in the middle."), picture("blue", "square"), Text(data.ENDING)))

    results = shapes.figures_of_stories(shapes.stories(Author(write), 40, NoBar(), {}))
    assert results["picture_agreement"] == results["unseen_agreement"] == results["placement"] == 1
    assert results["pictures"] == 80 and results["unseen_pictures"] == 4


def test_missing_wrong_and_misplaced_pictures_count_against_the_story():
    silent = shapes.figures_of_stories(shapes.stories(Author(lambda prompt: Document((Text(data.ENDING),))), 40, NoBar(), {}))
    assert silent["picture_agreement"] == silent["placement"] == 0
    wrong = shapes.figures_of_stories(shapes.stories(Author(lambda prompt: Document((picture("red", "cross"), Text(data.ENDING)))), 40, NoBar(), {}))
    assert wrong["picture_agreement"] == 2 / 36 and wrong["placement"] == 1  # 2 of 36 prompts ask for it; the 4 others are unseen
    late = shapes.stories(Author(lambda prompt: Document((Text(data.ENDING), picture(*data.named(prompt.text))))), 40, NoBar(), {})
    assert shapes.figures_of_stories(late)["placement"] == 0


def test_answers_that_ignore_the_picture_fall_to_chance():
    def blind(prompt):
        return Document((Text({"colour": "red.", "shape": "circle.", "place": "left."}[next(k for k, q in data.QUESTIONS.items() if q in prompt.text)]),))

    items = shapes.questions(Author(blind), 240, NoBar(), {})
    share = np.mean([item.named == item.judged for item in items if item.task == "question"])
    assert abs(share - np.mean([1 / 5, 1 / 4, 1 / 5])) < 0.06


def test_swapped_pictures_are_another_documents():
    own = [prompt.parts[0].source for prompt, *_ in data.questions(60)]
    seen = []
    shapes.questions(Author(lambda prompt: seen.append(prompt.parts[0].source) or Document((Text("red."),))), 60, NoBar(), {})
    assert all(a is b for a, b in zip(seen[:60], own, strict=True)) or all(np.array_equal(a, b) for a, b in zip(seen[:60], own, strict=True))
    assert sum(np.array_equal(a, b) for a, b in zip(seen[60:], own, strict=True)) < 6  # a few other documents show the same


def test_the_judge_knows_true_pictures():
    assert shapes.judge_accuracy(200) >= 0.98


def test_items_name_their_pictures(tmp_path):
    items = shapes.recalls(Author(lambda prompt: Document((picture("red", "circle"), Text(data.ENDING)))), 20, NoBar(), {})
    shapes.write_items(items, epath.Path(tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    assert len(lines) == 20
    for line in lines:
        assert line["judged"] == [["red", "circle"]] and line["right"] == [line["named"] == [["red", "circle"]]]
        assert (tmp_path / line["pictures"][0]).exists() and line["text"].count("<picture>") == 2
