"""A story.json of anybody's.

What --again reads lies beside it, every value is checked as an option is, and nothing else happens.
"""

import copy
import json

import hypothesis
import numpy as np
import pytest
from etils import epath
from hypothesis import strategies as st

from dreamjax.document import Document, Image, Text, image_io
from dreamjax.errors import ConfigError
from dreamjax.sampling import output_folder
from dreamjax.sampling.options import Options
from dreamjax.sampling.prompt_file import read_prompts

PICTURE = np.random.default_rng(0).integers(256, size=(8, 8, 3), dtype=np.uint8)
OPTIONS = Options(max_tokens=10, temperature=0.9, stop=("zq",), negative=Document.of(["a bar", PICTURE]))
PROMPT = Document((Text("Once a"), Image(PICTURE, is_target=False), Text("Then")))


@pytest.fixture
def folder(tmp_path) -> epath.Path:
    """What a run left, beside a picture that is none of its business; and no request goes out."""
    (tmp_path / "secret.png").write_bytes(image_io.to_png(PICTURE))
    folder = epath.Path(tmp_path / "story")
    output_folder.write(folder, PROMPT, Document.of(["it ends", PICTURE]), 7, OPTIONS, 2)
    (tmp_path / "story" / "link.png").symlink_to(tmp_path / "secret.png")
    return folder


@pytest.fixture(autouse=True)
def no_requests(monkeypatch):
    import fsspec

    monkeypatch.setattr(fsspec, "filesystem", lambda *_, **__: pytest.exit("a request went out"))


def edited(folder: epath.Path, *path, value):
    record = json.loads((folder / "story.json").read_text())
    inner = record
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (folder / "story.json").write_text(json.dumps(record))


def test_what_a_run_left_is_read_back(folder):
    found = output_folder.asked(folder)
    assert (found.prompt.to_json(), found.seed, found.batch_size) == (PROMPT.to_json(), 7, 2)
    assert found.options.negative.to_json() == OPTIONS.negative.to_json() and output_folder.fingerprint(
        *found[:3]
    ) == output_folder.fingerprint(PROMPT, 7, OPTIONS)


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "link.png",
        "ABSOLUTE",
        "http://127.0.0.1/a.png",
        "gs://bucket/a.png",
        "file:///etc/passwd",
        "memory://a",
        "",
    ],
)
def test_images_beside_it_alone(folder, name, tmp_path):
    edited(folder, "parts", 1, "image", value=name.replace("ABSOLUTE", str(tmp_path / "secret.png")))
    with pytest.raises(
        ConfigError,
        match=r"story.json: does not say what its document was made of: parts\[1\]: .* is outside the folder: it",
    ):
        output_folder.asked(folder)


@pytest.mark.parametrize("name", ["prompt_0.png", "/etc/passwd", "http://127.0.0.1/a.png"])
def test_no_file_is_read_for_the_negative_prompt(folder, name):
    edited(folder, "options", "negative", "parts", 1, "image", value=name)
    with pytest.raises(ConfigError, match="names the file .*, and no folder is given in which it may lie"):
        output_folder.asked(folder)


@pytest.mark.parametrize(
    "path, value, words",
    [
        (["seed"], -1, "seed: -1"),
        (["seed"], 2**32, "seed: 4294967296"),
        (["seed"], "7", "seed: must"),
        (["batch_size"], 0, "batch_size: 0"),
        (["batch_size"], 10**30, "batch_size: a number beyond"),
        (["prompt_parts"], -1, "prompt_parts: -1"),
        (["prompt_parts"], 99, "prompt_parts: 99"),
        (["prompt_parts"], True, "prompt_parts: must"),
        (["options"], [], "options: is no object"),
        (["options", "temperature"], float("nan"), "options.temperature: nan"),
        (["options", "height"], 10**9, "options.height: 1000000000 is above"),
        (["options", "eta"], 10**4000, "options.eta: "),
        (["options", "steps"], 3, "options.steps: unknown"),
        (["options", "negative"], "a bar", "a document is an object"),
        (["parts"], {}, "a document is an object"),
        (["notes"], 5, "notes: 5"),
        (["id"], [1], "id: "),
        (["parts", 0, "role"], ["user"], r"parts\[0\]: role"),
        (["parts", 1, "is_input"], "no", r"parts\[1\]: is_input: 'no'"),
        (["kind"], 3, "kind: 3"),
        (["kind"], "a" * 100_000, "kind: 'aaa"),
        (["options", "\0\x1b[2J\ud800"], 1, r"options.\\x00\\x1b\[2J\\ud800: unknown"),
        (["parts", 0, "role"], "\n" * 9, "role: "),
    ],
)
def test_every_value_is_checked(folder, path, value, words):
    edited(folder, *path, value=value)
    with pytest.raises(ConfigError, match=words) as caught:
        output_folder.asked(folder)
    assert (
        str(caught.value).startswith(str(folder / "story.json"))
        and len(str(caught.value)) < 600
        and str(caught.value).isprintable()
    )


DAMAGED = [
    "",
    "{",
    "[1]",
    "\xff",
    "[" * 100_000,
    '{"a":' * 100_000,
    '{"parts": ' + "9" * 5000 + "}",
    '{"parts": [' + "[" * 900 + "]" * 900 + "]}",
]


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_is_one_line_to_both_readers(folder, text):
    (folder / "story.json").write_bytes(text.encode("latin-1"))
    for reader in (lambda: output_folder.asked(folder), lambda: output_folder.read(folder, PROMPT, 7, OPTIONS)):
        with pytest.raises(ConfigError, match="story.json: ") as caught:
            reader()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_a_file_that_is_no_record_is_not_loaded(folder, monkeypatch):
    monkeypatch.setattr(output_folder, "LARGEST", 100)
    with pytest.raises(ConfigError, match="more than 100 bytes"):
        output_folder.asked(folder)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "text", "image", "../secret.png", "/etc/passwd", "http://127.0.0.1/", "data:,"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "text", "image", "parts", "role"]), inner, max_size=3)
    ),
    max_leaves=5,
)


def places(value, path=()) -> list[tuple]:
    """Paths to all that is in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [where for key, inner in items for where in [(*path, key), *places(inner, (*path, key))]]


@hypothesis.settings(
    max_examples=150, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(data=st.data())
def test_any_change_is_read_or_one_error(folder, data):
    record = json.loads((folder / "story.json").read_text())
    kept = copy.deepcopy(record)
    for _ in range(data.draw(st.integers(1, 3))):
        *path, key = data.draw(st.sampled_from(places(record)))
        inner = record
        for step in path:
            inner = inner[step]
        if data.draw(st.booleans()):
            inner[key] = data.draw(JSON)
        else:
            del inner[key]
        if not places(record):
            break
    (folder / "story.json").write_text(json.dumps(record))
    try:
        found = output_folder.asked(folder)
        assert isinstance(found.options, Options) and 0 <= found.seed < 2**32
        assert all(
            not isinstance(part.source, str) or part.source.startswith(f"{folder}/")
            for part in found.prompt.parts
            if isinstance(part, Image)
        )
    except ConfigError as error:
        assert "story.json: " in str(error) and str(error).isprintable()
    finally:
        (folder / "story.json").write_text(json.dumps(kept))


# ----------------------------------------------------------------------------------------------------------------------
# --prompts


def prompts_of(path, *lines: str, **how):
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    return read_prompts(epath.Path(path), **how)


def line(image: str, **more) -> str:
    return json.dumps({"parts": [{"type": "image", "image": image}], **more})


def test_prompts_name_images_beside_them_or_anywhere_when_asked(tmp_path):
    (tmp_path / "a.png").write_bytes(image_io.to_png(PICTURE))
    path = tmp_path / "sub" / "prompts.jsonl"
    path.parent.mkdir()
    (path.parent / "b.png").write_bytes(image_io.to_png(PICTURE))
    [(document, seed)] = prompts_of(path, line("b.png", seed=5))
    assert document.images[0].size == (8, 8) and seed == 5
    for name in ("../a.png", str(tmp_path / "a.png"), "http://127.0.0.1/a.png"):
        with pytest.raises(
            ConfigError,
            match=r"--prompts: line 2 of .*: parts\[0\]: .* is outside the folder.*; --allow_outside takes it",
        ):
            prompts_of(path, '"a text"', line(name))
        [(document, _)] = prompts_of(path, line(name), allow_outside=True)
        assert document.parts[0].source.endswith(name)


BAD_LINES = [
    "[" * 100_000,
    '{"parts": 3}',
    "3",
    line("b.png", seed=-1),
    line("b.png", seed="5"),
    line("b.png", seed=None),
    "\ud800",
    line("b.png")[:-1],
]


@pytest.mark.parametrize("bad", BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_prompt_that_is_none_is_one_line(tmp_path, bad):
    with pytest.raises(ConfigError, match="--prompts: ") as caught:
        prompts_of(tmp_path / "prompts.jsonl", '"fine"', bad)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_a_line_ends_where_json_says(tmp_path):
    [(one, first), (two, second)] = prompts_of(tmp_path / "prompts.jsonl", '"a\u2028b\x85c"', '"d"\r', "")
    assert (one.text, two.text, first, second) == ("a\u2028b\x85c", "d", 0, 1)
