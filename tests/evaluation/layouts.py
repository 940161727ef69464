"""Small made benchmarks in their true file layouts: two or three questions each, pictures of one colour."""

import base64
import io
import json
import pathlib

import numpy as np
import PIL.Image
from evaluation.files import write_json, write_lines


def make_image(path: pathlib.Path | None, seed: int) -> bytes:
    """A noisy picture, written where a path is given; its bytes."""
    pixels = np.random.default_rng(seed).integers(0, 255, (12, 10, 3), np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG" if path is None or path.suffix == ".png" else "JPEG")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.getvalue())
    return file.getvalue()


def plain_image(path: pathlib.Path, colour: tuple[int, int, int]):
    """A PNG of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (9, 7), colour).save(path)


def answers(*texts: str) -> list[dict]:
    return [{"answer": text, "answer_confidence": "yes", "answer_id": i} for i, text in enumerate((texts * 10)[:10], 1)]


def vqav2(root: pathlib.Path, count: int = 3):
    rows = [{"image_id": 42 + i, "question": f"What colour is it, {i}?", "question_id": 420 + i} for i in range(count)]
    write_json(root / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": rows})
    marked = [
        {"question_id": row["question_id"], "image_id": row["image_id"], "answers": answers("red", "red", "blue")}
        for row in rows
    ]
    write_json(root / "v2_mscoco_val2014_annotations.json", {"annotations": marked})
    for row in rows:
        make_image(root / "val2014" / f"COCO_val2014_{row['image_id']:012d}.jpg", row["image_id"])


def okvqa(root):
    rows = [
        {"image_id": 7, "question": "Who made it?", "question_id": 70},
        {"image_id": 8, "question": "What is it for?", "question_id": 80},
    ]
    write_json(root / "OpenEnded_mscoco_val2014_questions.json", {"questions": rows})
    write_json(
        root / "mscoco_val2014_annotations.json", {"annotations": [{**row, "answers": answers("play")} for row in rows]}
    )
    for row in rows:
        make_image(root / f"{row['image_id']:012d}.jpg", row["image_id"])


def textvqa(root):
    rows = [
        {"question_id": 34602 + i, "image_id": name, "question": "what does it say?", "answers": ["one"] * 10}
        for i, name in enumerate(("003a8ae2ef43b901", "0f"))
    ]
    write_json(root / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": rows})
    for row in rows:
        make_image(root / "train_images" / f"{row['image_id']}.jpg", row["question_id"])


def vizwiz(root):
    rows = [
        {
            "image": f"VizWiz_val_{i:08d}.jpg",
            "question": "What is this?",
            "answers": answers("unanswerable"),
            "answerable": 0,
        }
        for i in range(2)
    ]
    write_json(root / "val.json", rows)
    for i, row in enumerate(rows):
        make_image(root / "val" / row["image"], i)


def gqa(root):
    rows = {
        f"20{i}": {
            "imageId": f"n16{i}",
            "question": "Is it red?",
            "answer": "yes",
            "isBalanced": True,
            "types": {"structural": "verify"},
        }
        for i in range(2)
    }
    write_json(root / "testdev_balanced_questions.json", rows)
    for i in range(2):
        make_image(root / "images" / f"n16{i}.jpg", i)


def scienceqa(root):
    problems = {
        "4": {
            "question": "Which is red?",
            "choices": ["a rose", "a sky"],
            "answer": 0,
            "hint": "Look.",
            "image": "image.png",
            "split": "test",
        },
        "11": {
            "question": "Which is blue?",
            "choices": ["a rose", "a sky", "an owl"],
            "answer": 1,
            "hint": "",
            "image": None,
            "split": "test",
        },
        "12": {
            "question": "Which is old?",
            "choices": ["a rose", "a sky"],
            "answer": 1,
            "hint": "",
            "image": "image.png",
            "split": "test",
        },
    }
    write_json(root / "problems.json", problems)
    write_json(root / "pid_splits.json", {"test": ["4", "11", "12"]})
    for name in ("4", "12"):
        make_image(root / "test" / name / "image.png", int(name))


def mme(root):
    for category, name in (("existence", "000000006040"), ("code_reasoning", "0020"), ("color", "0020")):
        folder = root / category if category == "code_reasoning" else root / category / "questions_answers_YN"
        folder.mkdir(parents=True)
        asked = [
            f"Is it {what}? Please answer yes or no.\t{answer}" for what, answer in (("red", "Yes"), ("blue", "No"))
        ]
        (folder / f"{name}.txt").write_text("\n".join(asked) + "\n")
        make_image(
            (root / category if category == "code_reasoning" else root / category / "images") / f"{name}.png",
            len(category),
        )


def mmbench(root):
    shown = base64.b64encode(make_image(None, 5)).decode()
    header = ["index", "question", "hint", "A", "B", "C", "answer", "category", "image", "l2-category"]
    rows = [
        [241, "Which is red?", "nan", "rose", "sky", "sea", "A", "color", shown, "coarse_perception"],
        [1_000_241, "Which is red?", "nan", "sky", "sea", "rose", "C", "color", "241", "coarse_perception"],
        [252, "Which is blue?", "It is far.", "rose", "sky", "", "B", "color", shown, "attribute_reasoning"],
    ]
    root.mkdir(parents=True, exist_ok=True)
    (root / "mmbench_dev.tsv").write_text("".join("\t".join(map(str, row)) + "\n" for row in [header, *rows]))


def mmvet(root):
    rows = {
        f"v1_{i}": {"imagename": f"v1_{i}.png", "question": "What is it?", "answer": "a cat", "capability": ["rec"]}
        for i in range(2)
    }
    write_json(root / "mm-vet.json", rows)
    for i in range(2):
        make_image(root / "images" / f"v1_{i}.png", i)


def pope(root):
    root.mkdir(parents=True)
    for category in ("random", "popular", "adversarial"):
        rows = [
            {
                "question_id": i + 1,
                "image": f"COCO_val2014_{9 + i:012d}.jpg",
                "text": f"Is there a {what} in the image?",
                "label": label,
            }
            for i, (what, label) in enumerate((("dog", "yes"), ("cat", "no")))
        ]
        write_lines(root / f"coco_pope_{category}.json", rows)
    for i in range(2):
        make_image(root / "val2014" / f"COCO_val2014_{9 + i:012d}.jpg", i)


def coco(root):
    images = [
        {
            "cocoid": 391895 + i,
            "filename": f"COCO_val2014_{391895 + i:012d}.jpg",
            "filepath": "val2014",
            "split": split,
            "sentences": [{"raw": "A red cat."}, {"raw": "A cat"}],
        }
        for i, split in enumerate(("test", "train", "test"))
    ]
    write_json(root / "dataset_coco.json", {"images": images, "dataset": "coco"})
    for image in images:
        make_image(root / "val2014" / image["filename"], image["cocoid"])


def nocaps(root):
    images = [{"id": i, "file_name": f"00{i}.jpg"} for i in range(2)]
    write_json(
        root / "nocaps_val_4500_captions.json",
        {"images": images, "annotations": [{"image_id": i, "id": i, "caption": "A red cat."} for i in range(2)]},
    )
    for image in images:
        make_image(root / "images" / image["file_name"], image["id"])


def image2paragraph(root):
    write_json(
        root / "paragraphs_v1.json", [{"image_id": 2356347 + i, "paragraph": "A red cat. It sits."} for i in range(3)]
    )
    write_json(root / "test_split.json", [2356347, 2356349])
    for i in (0, 2):
        make_image(root / "VG_100K" / f"{2356347 + i}.jpg", i)


def coco_fid(root):
    images = [{"id": 42 + i, "file_name": f"COCO_val2014_{42 + i:012d}.jpg"} for i in range(2)]
    said = ((42, "a red cat"), (43, "a blue sky"), (42, "one cat sits"), (43, "the sea"))
    annotations = [{"id": 770 + i, "image_id": number, "caption": f"{text}\n"} for i, (number, text) in enumerate(said)]
    write_json(root / "annotations" / "captions_val2014.json", {"images": images, "annotations": annotations})
    for image in images:
        make_image(root / "val2014" / image["file_name"], image["id"])


def lncoco_fid(root):
    root.mkdir(parents=True)
    rows = [
        {
            "dataset_id": "mscoco_val2017",
            "image_id": str(42 + i),
            "annotator_id": 93,
            "caption": f"In this picture I see {i} cats.",
        }
        for i in range(3)
    ]
    write_lines(root / "coco_val_captions.jsonl", rows)
    for i in range(3):
        make_image(root / "val2017" / f"{42 + i:012d}.jpg", i)


def instructmmc4_fid(root):
    root.mkdir(parents=True)
    told = {
        "instruction": "Tell of a cat.",
        "text_list": ["A cat sits.", "It runs."],
        "images": ["a.png", "b.png"],
        "matched_text_index": [0, 1],
    }
    broken = {**told, "images": ["a.png", "nowhere.png"]}
    write_lines(root / "instruct_mmc4.jsonl", [told, broken, {"instruction": "Draw the sea.", "image": "c.png"}])
    for i, name in enumerate("abc"):
        make_image(root / "images" / f"{name}.png", i)


def study(root):
    root.mkdir(parents=True)
    told = {"text_list": ["A cat sits.", "It runs."], "images": ["a.png", "b.png"], "matched_text_index": [0, 1]}
    write_lines(
        root / "documents.jsonl",
        [{"instruction": f"Tell of a cat, {i}.", "topic": ("cats", "dogs")[i % 2], **told} for i in range(4)],
    )
    for i, name in enumerate("ab"):
        make_image(root / "images" / f"{name}.png", i)


def piqa(root):
    root.mkdir(parents=True)
    write_lines(root / "valid.jsonl", [{"goal": "boil an egg", "sol1": "use water", "sol2": "use sand"}] * 2)
    (root / "valid-labels.lst").write_text("0\n1\n")


def siqa(root):
    root.mkdir(parents=True)
    row = {
        "context": "Tracy went home.",
        "question": "Why?",
        "answerA": "to rest",
        "answerB": "to sing",
        "answerC": "to run",
    }
    write_lines(root / "dev.jsonl", [row] * 2)
    (root / "dev-labels.lst").write_text("1\n3\n")


def winogrande(root):
    root.mkdir(parents=True)
    write_lines(
        root / "dev.jsonl",
        [{"qID": "a", "sentence": "Sarah beat Maria so _ won.", "option1": "Sarah", "option2": "Maria", "answer": "1"}],
    )


def boolq(root):
    root.mkdir(parents=True)
    write_lines(
        root / "dev.jsonl",
        [{"question": "is the sky blue", "title": "Sky", "answer": True, "passage": "The sky is blue."}],
    )


def hellaswag(root):
    root.mkdir(parents=True)
    endings = ["sings.", "runs away.", "is it.", "[title] rips up tiles."]
    row = {
        "ind": 24,
        "activity_label": "Roof shingle removal",
        "ctx": "A man sits on a roof. he",
        "endings": endings,
        "label": 3,
    }
    write_lines(root / "hellaswag_val.jsonl", [row])


def mmlu(root):
    for split, count in (("dev", 5), ("test", 2)):
        (root / split).mkdir(parents=True)
        for subject in ("anatomy", "us_history"):
            (root / split / f"{subject}_{split}.csv").write_text(
                "".join(f'"What, {i}?",one,two,three,four,{"ABCD"[i % 4]}\n' for i in range(count))
            )


ABOUT_PICTURES = (
    coco,
    nocaps,
    image2paragraph,
    vqav2,
    okvqa,
    textvqa,
    vizwiz,
    gqa,
    scienceqa,
    mme,
    mmbench,
    mmvet,
    pope,
)
DRAWN = (coco_fid, lncoco_fid, instructmmc4_fid)
LANGUAGE = (piqa, siqa, hellaswag, winogrande, boolq, mmlu)


def write_all(root: pathlib.Path) -> list[str]:
    """Every benchmark in a folder of its name; their names."""
    for make in (*ABOUT_PICTURES, *LANGUAGE):
        make(root / make.__name__)
    return [make.__name__ for make in (*ABOUT_PICTURES, *LANGUAGE)]


def rows_of(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]
