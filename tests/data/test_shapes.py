"""The shapes generator.

What documents hold, what training never sees, and that all follows from (seed, split, index).
"""

import collections
import itertools
import re

import numpy as np
import pytest

from dreamjax.config import SourceConfig
from dreamjax.data.registry import open_source
from dreamjax.data.sources import shapes
from dreamjax.data.sources.shapes import COLOURS, COMBINATIONS, PLACES, QUESTIONS, SEEN, SHAPES, UNSEEN, Shapes
from dreamjax.document import Image, Text
from dreamjax.errors import ConfigError, SourceError

N = 1500


@pytest.fixture(scope="module")
def labels():
    """From the bytes of every possible picture to (colour, shape, place)."""
    images, labels = shapes.all_images()
    return {image.tobytes(): label for image, label in zip(images, labels, strict=True)}


@pytest.fixture(scope="module", params=["train", "eval"])
def documents(request):
    return request.param, [Shapes(request.param, seed=3)[i] for i in range(N)]


def words(document):
    return [part.text for part in document.parts if isinstance(part, Text)]


def make_images(document):
    return [part.source for part in document.parts if isinstance(part, Image)]


def kind(document):
    if any(part.role for part in document.parts):
        return "question"
    return "recall" if words(document)[0] == shapes.INTRODUCTION else "story"


def test_every_image_is_distinct_and_has_its_colour_and_place():
    images, labels = shapes.all_images()
    assert images.dtype == np.uint8 and images.shape[1:] == (16, 16, 3)
    assert len({image.tobytes() for image in images}) == len(images) == len(COMBINATIONS) * len(PLACES) * 9 * 2
    for image, (colour, _, place) in zip(images, labels, strict=True):
        ink = np.abs(image.astype(int) - shapes.PAPER).sum(-1)
        assert (image == shapes.INKS[colour]).all(-1).any()
        assert (ink[0, 0], ink[0, -1]) == (0, 0)
        y, x = np.argwhere(ink > ink.max() / 2).mean(0) + 0.5
        dx, dy = shapes.OFFSETS[place]
        assert abs(x - 8 - dx) <= 1.1 and abs(y - 8 - dy) <= 2.4  # a triangle's mass lies below its middle


@pytest.mark.parametrize(
    "shape, area", [("circle", np.pi * 16), ("square", 64), ("triangle", 32), ("cross", 64 * 5 / 9)]
)
def test_areas_are_exact_and_grow_with_the_size(shape, area):
    for size in (16, 40):
        image = shapes.render("red", shape, "middle", size=size).astype(float)
        covered = (shapes.PAPER[2] - image[..., 2]).sum() / (shapes.PAPER[2] - shapes.INKS["red"][2])
        assert image.shape == (size, size, 3)
        assert covered == pytest.approx(area * (size / 16) ** 2, rel=0.02)


def test_shares_of_the_kinds(documents):
    counts = collections.Counter(kind(document) for document in documents[1])
    for name, share in (("story", 0.45), ("question", 0.35), ("recall", 0.2)):
        assert counts[name] / N == pytest.approx(share, abs=0.04)


def test_every_image_shows_what_its_sentence_says(documents, labels):
    for document in documents[1]:
        if kind(document) != "story":
            continue
        *pages, ending = document.parts
        assert 2 <= len(pages) / 2 <= 3 and ending == Text("The end.")
        for sentence, image in zip(pages[::2], pages[1::2], strict=True):
            colour, shape, place = labels[image.source.tobytes()]
            action = next(action for action in shapes.ACTIONS[place] if sentence.text.endswith(f" {action}."))
            assert sentence.supervised and f" a {colour} {shape} {action}." in sentence.text
            assert image.is_input and image.is_target and image.role is None
        assert pages[0].text.startswith(shapes.OPENINGS) and pages[2].text.startswith(shapes.CONTINUATIONS)


def test_questions_are_answered_by_the_image_alone(documents, labels):
    asked = collections.Counter()
    for document in documents[1]:
        if kind(document) != "question":
            continue
        image, *turns = document.parts
        truth = dict(zip(("colour", "shape", "place"), labels[image.source.tobytes()], strict=True))
        assert image.is_input and not image.is_target and image.role == "user"
        order = []
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            (about,) = [key for key, text in QUESTIONS.items() if text == question.text]
            order.append(about)
            assert answer.text == f"{truth[about]}."
            assert (question.role, answer.role) == ("user", "assistant")
            assert not question.supervised and answer.supervised
        assert sorted(order) == sorted(QUESTIONS)
        asked[order[0]] += 1  # each comes first as often as the others, as it stands alone when a user asks
    assert set(asked) == set(QUESTIONS) and min(asked.values()) > 0.2 * asked.total()


def test_a_recall_changes_the_colour_and_nothing_else(documents, labels):
    for document in documents[1]:
        if kind(document) != "recall":
            continue
        (_, shown, request, wanted, _) = document.parts
        before, after = labels[shown.source.tobytes()], labels[wanted.source.tobytes()]
        assert before[1:] == after[1:] and before[0] != after[0]
        assert request.text == f"The same again, in {after[0]}." and not any(shape in request.text for shape in SHAPES)
        assert (shown.is_input, shown.is_target, wanted.is_input, wanted.is_target) == (True, False, True, True)


def test_unseen_combinations_are_in_eval_only(documents, labels):
    split, made = documents
    found = {labels[image.tobytes()][:2] for document in made for image in make_images(document)}
    found |= {named for document in made for text in words(document) if (named := shapes.named(text))}
    assert found == set(SEEN if split == "train" else COMBINATIONS)
    assert not set(UNSEEN) & {shapes.named(text) for text in shapes.corpus()}


def test_each_colour_and_shape_of_unseen_stays_known():
    for colour, shape in UNSEEN:
        assert sum(c == colour for c, _ in SEEN) >= 3 and sum(s == shape for _, s in SEEN) >= 3


def test_the_corpus_covers_every_text(documents):
    vocabulary = set(re.findall(r"[a-z]+", " ".join(shapes.corpus()).lower()))
    assert 30 <= len(vocabulary) <= 50
    for document in documents[1]:
        assert set(re.findall(r"[a-z]+", " ".join(words(document)).lower())) <= vocabulary
        if documents[0] == "train":
            assert set(words(document)) <= set(shapes.corpus())


def test_documents_are_a_pure_function_of_seed_split_and_index():
    def content(split, seed, index):
        document = Shapes(split, seed)[index]
        return tuple(words(document)), tuple(image.tobytes() for image in make_images(document))

    assert content("train", 0, 7) == content("train", 0, 7)
    runs = [[content(split, seed, i) for i in range(20)] for split, seed in (("train", 0), ("train", 1), ("eval", 0))]
    assert all(a != b for a, b in itertools.combinations(runs, 2))
    assert len(set(runs[0])) > 15
    ids = [Shapes(split, seed)[i].id for split in ("train", "eval") for seed in (0, 1) for i in (0, 1)]
    assert len(set(ids)) == len(ids)


def test_length_and_bounds():
    source = Shapes("train", length=5)
    assert len(source) == len(list(source)) == 5 and source.skipped == ()
    for index in (5, -1):
        with pytest.raises(IndexError, match="0 to 4"):
            source[index]


def test_story_prompts_are_even_and_name_their_scene():
    prompts = shapes.story_prompts(47, seed=1)
    counts = collections.Counter((scene.colour, scene.shape) for _, scene in prompts)
    assert set(counts) == set(COMBINATIONS) and set(counts.values()) == {2, 3}
    assert set(collections.Counter(scene.place for _, scene in prompts).values()) == {9, 10}
    for document, scene in prompts:
        (part,) = document.parts
        assert shapes.named(part.text) == (scene.colour, scene.shape) and part.text.endswith(f"{scene.action}.")
        assert part.text.startswith(shapes.OPENINGS)


def test_questions_for_evaluation(labels):
    asked = shapes.questions(60, seed=1)
    assert set(collections.Counter(kind for _, _, kind, _ in asked).values()) == {20}
    assert {(scene.colour, scene.shape) for *_, scene in asked} == set(COMBINATIONS)
    for document, answer, about, scene in asked:
        image, question = document.parts
        truth = labels[image.source.tobytes()]
        assert truth == (scene.colour, scene.shape, scene.place)
        assert answer == truth[("colour", "shape", "place").index(about)] and question.text == QUESTIONS[about]


def test_recalls_for_evaluation(labels):
    wanted = shapes.recalls(40, seed=1)
    counts = collections.Counter((scene.colour, scene.shape) for _, scene in wanted)
    assert set(counts) == set(SEEN) and set(counts.values()) == {2, 3}
    for document, scene in wanted:
        _, image, request = document.parts
        shown = labels[image.source.tobytes()]
        assert shown[:2] not in UNSEEN and shown[1:] == (scene.shape, scene.place) and shown[0] != scene.colour
        assert request.text == f"The same again, in {scene.colour}."


def test_evaluation_lists_follow_the_seed_and_are_not_of_the_sources():
    def scenes(seed):
        return [scene for _, scene in shapes.story_prompts(40, seed)]

    assert scenes(1) == scenes(1) != scenes(2)
    assert shapes.story_prompts(0) == shapes.questions(0) == shapes.recalls(0) == []


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Once a red circle jumps up. Then a blue square runs left. The end.", ("blue", "square")),
        ("Here is a shape. The same again, in blue.", None),
        ("once a Green  TRIANGLE falls down", ("green", "triangle")),
        ("A red circle rests.\nThe same again, in blue.", ("red", "circle")),
        ("a red circlet", None),
        ("", None),
    ],
)
def test_named(text, expected):
    assert shapes.named(text) == expected


def test_open_source():
    source = open_source(SourceConfig("shapes", split="eval"), seed=4)
    assert source == Shapes("eval", 4, shapes.LENGTHS["eval"])
    assert tuple(source.texts()) == shapes.corpus() and set(COLOURS) <= set(
        " ".join(shapes.corpus()).replace(".", "").split()
    )
    with pytest.raises(ConfigError, match="'shape' is unknown.*shapes, storybook"):
        open_source(SourceConfig("shape"))
    with pytest.raises(ConfigError, match="'test' is none of train, eval"):
        open_source(SourceConfig("shapes", split="test"))
    with pytest.raises(SourceError, match="'test'"):
        Shapes("test")
