"""The kit for judging documents.

Who is in it, that it is blind, its tally; and measures of documents without people.
"""

import dataclasses
import html.parser
import json
import re
import shutil
import subprocess

import numpy as np
import PIL.Image
import pytest
from evaluation import layouts
from evaluation.files import write_json
from small_model import PIXEL, boosted, parameters

from dreamjax.api import DreamLLM
from dreamjax.document import Document, Image, Text
from dreamjax.errors import SourceError
from dreamjax.evaluation import human_study, human_study_tally, tasks
from dreamjax.evaluation.metrics import features
from dreamjax.evaluation.settings import EvaluationSettings, ImageMeasures
from dreamjax.models.dreamllm import Model


@pytest.fixture()
def model(shapes_tokenizer, monkeypatch) -> DreamLLM:
    """A random model that likes to draw, in two steps."""
    monkeypatch.setattr(
        human_study, "WRITING", {"max_tokens": 12, "max_images": 2, "min_images": 1, "temperature": 0.7, "num_steps": 2}
    )
    config = dataclasses.replace(
        PIXEL, llm=dataclasses.replace(PIXEL.llm, vocab_size=shapes_tokenizer.size, max_positions=128)
    )
    params = boosted(parameters(config), {shapes_tokenizer.eos: -9.0, shapes_tokenizer.dream_start: 1.3})
    return DreamLLM(Model(config, params), shapes_tokenizer)


def test_the_kit_is_blind_and_is_gone_on_with(model, tmp_path):
    layouts.study(tmp_path / "data")
    how = EvaluationSettings(measures=ImageMeasures(features="clip"), batch_size=2)
    tasks.check("study", how)

    def run(model, out):
        return tasks.run(model, "study", tmp_path / "data", out, how, {"model": "m"})

    result = run(model, tmp_path)
    out, path = tmp_path / "study", tmp_path / "study" / "predictions.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    run(model, tmp_path)
    assert path.read_bytes() == whole

    key = json.loads((out / "key.json").read_text())
    page = (out / "judge.html").read_text()
    assert [row["kind"] for row in key.values()].count("written") == 4 == result.score.counts["documents"] and len(
        key
    ) == 8
    assert re.findall(r'data-code="(\w+)"', page) == list(key) and page.count("Tell of a cat, ") == 8
    assert "written" not in page and "real" not in page and not any(f">{row['topic']}<" in page for row in key.values())
    shown = re.findall(r'src="(.*?)"', page)
    assert len(shown) >= 8 + 4 and {PIL.Image.open(out / name).size for name in shown} == {
        (8, 8)
    }  # both kinds in one size
    assert (
        set(result.score.metrics) >= {"placed", "real_placed", "images_per_document", "frechet"}
        and result.score.metrics["real_placed"] == 100
    )
    assert result.score.metrics["real_images_per_document"] == 2


def test_five_of_each_topic(tmp_path):
    tmp_path = tmp_path / "data"
    layouts.study(tmp_path)
    row = layouts.rows_of(tmp_path / "documents.jsonl")[0]
    layouts.write_lines(
        tmp_path / "documents.jsonl",
        [{**row, "topic": f"t{i % 3}"} for i in range(30)] + [{**row, "images": ["a.png", "lost.png"]}],
    )
    asked, warnings = human_study.load(tmp_path)
    assert [asked[i].topic for i in range(0, 15, 5)] == list(dict.fromkeys(one.topic for one in asked)) and len(
        asked
    ) == 15
    assert "1 of 31 documents cannot be used" in warnings[0] and asked[0].real.parts[0].role is None
    assert (
        [one.id for one in asked]
        == [one.id for one in human_study.load(tmp_path)[0]]
        != [one.id for one in human_study.load(tmp_path, seed=1)[0]]
    )
    assert len(human_study.load(tmp_path, count=7)[0]) == 7


@pytest.fixture()
def kit(tmp_path):
    key = {
        f"00{i}": {"kind": ("written", "real")[i % 2], "topic": "cats" if i < 2 else "dogs", "id": str(i // 2)}
        for i in range(4)
    }
    write_json(tmp_path / "kit" / "key.json", key)
    write_json(
        tmp_path / "said" / "a.json", {"judge": "a", "support": {"000": True, "001": True, "002": False, "003": True}}
    )
    write_json(
        tmp_path / "said" / "b.json", {"judge": "b", "support": {"000": True, "001": False, "002": False, "003": True}}
    )
    return tmp_path


def test_the_tally_by_hand(kit):
    found = human_study_tally.tally(kit / "said", kit / "kit")
    # Two votes each: 2, 1, 0, 2 for it. Observed agreement 3/4; 5 of 8 votes are yes, so by chance 34/64.
    expected = {
        "support": 50.0,
        "real_support": 75.0,
        "agreement": (3 / 4 - 34 / 64) / (1 - 34 / 64),
        "topic/cats": 100.0,
        "topic/dogs": 0.0,
    }
    assert found.metrics == pytest.approx(expected) and found.counts == {
        "documents": 4,
        "judges": 2,
        "judgements": 8,
        "missing": 0,
    }
    write_json(kit / "said" / "c.json", {"judge": "c", "support": {"000": False}})
    found = human_study_tally.tally(kit / "said", kit / "kit")
    assert found.metrics["support"] == 40.0 and "3 of 12 judgements are missing" in found.warnings[0]
    assert np.isnan(human_study_tally.tally(kit / "said" / "a.json", kit / "kit").metrics["agreement"])


@pytest.mark.parametrize(
    "key",
    [[], {"000": {}}, {"000": 5}, {"000": {"kind": ["real"], "topic": ""}}, {"000": {"kind": "real", "topic": {}}}],
)
def test_wrong_keys(kit, key):
    write_json(kit / "kit" / "key.json", key)
    with pytest.raises(SourceError, match="key.json: is no key of a kit"):
        human_study_tally.tally(kit / "said", kit / "kit")


@pytest.mark.parametrize(
    "content, named",
    [
        ({"judge": "a", "support": {}}, "is of judge 'a', whose file was counted already"),
        ({"judge": "d", "support": {"900": True}}, "judges document 900"),
        ({"support": {}}, "is no file that the page makes"),
        ({"judge": " ", "support": {}}, "the judge has no name"),
        ({"judge": "d", "support": {"000": "no"}}, "'no' is neither true nor false"),
        ({"judge": "d", "support": {"\ud800": True}}, "judges document '.ud800'"),
        ({"judge": "d", "support": [["000", True]]}, "is no file that the page makes"),
        ({"judge": "d", "support": {"000": ["x" * 9999]}}, r"x\.\.\. is neither"),
        ([1], "is no file that the page makes"),
        ({"judge": "d", "kit": "0123", "support": {"000": True}}, "judges the documents of another kit"),
    ],
)
def test_wrong_judgements(kit, content, named):
    write_json(kit / "said" / "z.json", content)
    with pytest.raises(SourceError, match=named):
        human_study_tally.tally(kit / "said", kit / "kit")


def test_where_images_stand():
    image, text = Image(PIL.Image.new("RGB", (4, 4))), Text("a cat")
    for parts, placed in (
        ((text, image, text, image), True),
        ((image, text), False),
        ((text, image, image), False),
        ((text, Text(" "), image), True),
    ):
        assert human_study.is_placed(Document(parts)) == placed
    assert [
        words
        for _, words in human_study.illustrated(
            Document((text, Text(" sits. "), image, image, Text("It runs."), image))
        )
    ] == ["a cat sits.", "It runs."]
    few, warnings = human_study.measure(
        [Document((text,))], [Document((text, image))], features.Extractor("x", None), None
    )
    assert (
        few["with_images"] == 0
        and np.isnan(few["placed"])
        and few["real_placed"] == 100
        and "too few for a distance" in warnings[0]
    )


# ----------------------------------------------------------------------------------------------------------------------
# The page in a browser, or as much of one as its script asks for

# Runs the page's script: argv has the page, the file that stands for the browser's storage, and what is done, in order.
BROWSER = """
const fs = require("fs"), [page, stored, ...acts] = process.argv.slice(2), text = fs.readFileSync(page, "utf8"), saved = [], told = [];
class Element {
  constructor(fields) { Object.assign(this, { value: "", textContent: "", dataset: {}, buttons: [], on: new Set() }, fields); }
  classList = { toggle: (name, on) => (on ? this.on.add(name) : this.on.delete(name)) };
  querySelectorAll() { return this.buttons; }
  click() { saved.push([this.download, this.href]); }
}
const articles = text.split("<article ").slice(1).map((part) => new Element({
  dataset: { code: part.match(/data-code="(.*?)"/)[1] }, buttons: [...part.matchAll(/<button value="(.*?)"/g)].map((found) => new Element({ value: found[1] })),
}));
const byId = {};
for (const [, id] of text.matchAll(/ id="(.*?)"/g)) byId[id] = new Element({ dataset: { kit: (text.match(/data-kit="(.*?)"/) || [])[1] } });
global.document = { getElementById: (id) => byId[id] || null, querySelectorAll: () => articles, createElement: () => new Element({}) };
global.alert = (words) => told.push(words);
global.location = { pathname: page };
URL.createObjectURL = (blob) => blob;
const closed = stored === "none";  // a browser that keeps nothing for files
const storage = !closed && fs.existsSync(stored) ? JSON.parse(fs.readFileSync(stored, "utf8")) : {};
global.localStorage = {
  getItem: (key) => { if (closed) throw new Error("denied"); return storage[key] ?? null; },
  setItem: (key, value) => { if (closed) throw new Error("denied"); storage[key] = value; fs.writeFileSync(stored, JSON.stringify(storage)); },
};
new Function(text.match(/<script>([^]*)<\\/script>/)[1])();
for (const act of acts) {
  const [code, value] = act.split("=");
  if (code === "name") { byId.judge.value = value; byId.judge.oninput(); }
  else if (code === "save") byId.save.onclick();
  else articles.find((article) => article.dataset.code === code).buttons.find((button) => button.value === value).onclick();
}
(async () => {
  const files = await Promise.all(saved.map(async ([name, blob]) => [name, JSON.parse(await blob.text())]));
  const chosen = articles.map((article) => article.buttons.filter((button) => button.on.has("chosen")).map((button) => button.value).join());
  console.log(JSON.stringify({ files, told, chosen, count: byId.count.textContent, name: byId.judge.value }));
})();
"""


class Balanced(html.parser.HTMLParser):
    """Collects the links to other files; every tag is closed in its turn."""

    def __init__(self):
        super().__init__()
        self.open, self.links = [], []

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "input", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture()
def page(tmp_path):
    image = Image(PIL.Image.new("RGB", (8, 8), "red"))
    asked = [
        human_study.Instruction(
            str(i), "cats", Document((Text(f'Tell <b>of</b> "{i}" & a cat'),)), Document((Text("It sat."), image))
        )
        for i in range(2)
    ]
    human_study.make_kit(asked, [Document((Text("</script> A cat\n\nsat."), image))] * 2, tmp_path, 0, 8)
    return tmp_path / "judge.html"


def test_the_page_is_sound_and_stands_alone(page):
    found = Balanced()
    found.feed(page.read_text())
    assert (
        found.open == [] and len(found.links) == 4 and all((page.parent / link).is_file() for link in found.links)
    )  # no server, no other site
    assert (
        page.read_text().count("<script>") == page.read_text().count("</script>") == 1
        and "Tell &lt;b&gt;of" in page.read_text()
    )


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node to run the page's script")
def test_the_page_judges_keeps_and_saves(page, tmp_path):
    (tmp_path / "browser.js").write_text(BROWSER)

    def browser(*acts, stored="storage.json"):
        done = subprocess.run(
            ["node", tmp_path / "browser.js", page, stored, *acts],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    inputs = browser("001=yes", "002=no", "002=yes", "save")
    assert (
        inputs["chosen"] == ["yes", "yes", "", ""]
        and inputs["count"] == "2 of 4 judged"
        and inputs["files"] == []
        and "your name" in inputs["told"][0]
    )
    inputs = browser("003=no", "004=yes", "name= Ann ", "save")  # opened again
    ((name, content),) = inputs["files"]
    assert inputs["chosen"] == ["yes", "yes", "no", "yes"] and name == "judged by Ann.json" and inputs["told"] == []
    write_json(tmp_path / "said" / name, content)
    found = human_study_tally.tally(tmp_path / "said", tmp_path)
    key = json.loads((tmp_path / "key.json").read_text())
    kinds = [row["kind"] for row in key.values()]
    right = {
        kind: [vote for vote, one in zip((1, 1, 0, 1), kinds, strict=True) if one == kind]
        for kind in ("written", "real")
    }
    assert found.metrics["support"] == 100 * np.mean(right["written"]) and found.metrics[
        "real_support"
    ] == 100 * np.mean(right["real"])
    assert found.counts["missing"] == 0 and browser(stored="none")["count"] == "0 of 4 judged"
    assert browser("001=no", "name=B", "save", stored="none")["files"][0][1]["support"] == {"001": False}
    again = browser()
    page.write_text(page.read_text().replace(content["kit"], "f" * 16))  # another kit in the same place
    assert again["count"] == "4 of 4 judged" and browser()["count"] == "0 of 4 judged"
