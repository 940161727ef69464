"""Predictions that version 0.1.0 stored are continued: nothing is asked again, and no row is written anew.

tests/stored/evaluation_0_1_0.tar.xz has the run.json and predictions.jsonl of a run of every task on the files of
layouts.py, by a model named m.
"""

import json
import pathlib
import tarfile

import PIL.Image
import pytest
from etils import epath
from evaluation import layouts

from dreamjax.data.sources import shapes
from dreamjax.document import Image
from dreamjax.evaluation import human_study, image_runner, likelihood_runner, runner
from dreamjax.evaluation.benchmarks import image_generation
from dreamjax.evaluation.benchmarks.image_generation import GenerationSettings
from dreamjax.evaluation.benchmarks.registry import BENCHMARKS
from dreamjax.evaluation.resumable import open_resumable

STORED = pathlib.Path(__file__).parents[1] / "stored" / "evaluation_0_1_0.tar.xz"
ASKED = [name for name, benchmark in BENCHMARKS.items() if benchmark.questions or benchmark.rankings]


@pytest.fixture()
def stored(tmp_path) -> epath.Path:
    with tarfile.open(STORED) as archive:
        archive.extractall(tmp_path, filter="data")
    return epath.Path(tmp_path / "evaluation")


def settings(folder: epath.Path) -> dict:
    return json.loads((folder / "run.json").read_text())


@pytest.mark.parametrize("name", [*ASKED, "official/vizwiz"])
def test_answers_are_continued(stored, tmp_path, name):
    folder, benchmark = stored / name, BENCHMARKS[name.rpartition("/")[2]]
    getattr(layouts, benchmark.name)(tmp_path / "data")
    rows = (folder / "predictions.jsonl").read_bytes()
    if benchmark.rankings:
        path, _ = likelihood_runner.predict(None, benchmark.rankings(tmp_path / "data"), folder, settings(folder))
    else:
        questions = benchmark.questions(tmp_path / "data")
        job = runner.Job(questions, {}, benchmark.prompt(settings(folder)["profile"]))
        path, _ = runner.predict(None, job, folder, settings(folder))  # without a model: it would fail if asked
    assert path.read_bytes() == rows and len(rows.splitlines()) >= 1


def test_documents_of_shapes_are_continued(stored):
    model = open_resumable(None, stored / "shapes", settings(stored / "shapes"))
    prompts = [prompt for prompt, *_ in shapes.questions(2)] + [prompt for prompt, _ in shapes.story_prompts(2)]
    documents = model.generate_batch(prompts, range(4), max_tokens=8, sampler="ddim", num_steps=16)
    assert [document.text for document in documents] == ["One. "] * 4
    assert [document.images[0].getpixel((0, 0))[0] for document in documents] == [0, 1, 2, 3]


def test_documents_of_the_study_are_continued(stored, tmp_path):
    layouts.study(tmp_path / "data")
    instructions, _ = human_study.load(tmp_path / "data")
    (stored / "study" / "drawn").mkdir()
    for instruction in instructions:
        PIL.Image.new("RGB", (8, 8), "red").save(stored / "study" / "drawn" / f"{instruction.id}-0.png")
    documents = human_study.write(None, instructions, stored / "study", settings(stored / "study"), 2)
    assert [document.id for document in documents] == [instruction.id for instruction in instructions]
    image = documents[0].parts[1]
    assert isinstance(image, Image) and image.is_input and image.is_target


def test_generated_images_are_continued(stored, tmp_path):
    layouts.coco_fid(tmp_path / "data")
    prompts, _ = image_generation.load_coco(tmp_path / "data")
    job = image_runner.GenerationJob(prompts=prompts, settings=GenerationSettings())
    folder = image_runner.generate(None, job, stored / "coco_fid", settings(stored / "coco_fid"))
    rows = layouts.rows_of(folder.parent / "predictions.jsonl")
    assert [row["question_id"] for row in rows] == [prompt.id for prompt in prompts]
