"""The fill of packed rows, beside a row for each document: python -m benchmarks.packing_fill [--stories=FOLDER]
[--tokenizer=FILE]

Real picture stories with their pages as experiments/storybook.py trains on them, and in rows of the 7B model (2,048
tokens, 64 dream queries, 256 patches): the stories, a simulated MMC4 and pairs. The rows of a group and its slots are
chosen for the documents, see `suited`; the last lines are the groups of the experiments at the paper's sizes, see
`of_the_paper`. The simulation draws from MMC4-core's published totals (Zhu et al. 2023, table 1: 7.3M documents, 29.9M
pictures, 2.4B tokens): pictures per document geometric, tokens log-normal, cut into chunks at random.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import app, flags

from dreamjax.config import RunConfig
from dreamjax.config.validation import from_dict
from dreamjax.data.pipeline.lengths import PAIR, Lengths, shown
from dreamjax.data.pipeline.mixture import Mixture
from dreamjax.data.pipeline.plan import Plan
from dreamjax.data.pipeline.task_view import directions
from dreamjax.data.sources.storybook import Storybook, StorybookPages
from dreamjax.document.batch import Shape, shape_of
from dreamjax.document.tokenize import Limits, Slots, tokenize_document
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.experiments import stage1_align, stage2_igpt

STORIES = flags.DEFINE_string("stories", "../shared/data/storybook", "Folder of picture stories.")
TOKENIZER = flags.DEFINE_string(
    "tokenizer", "../shared/data/tokenizers/llama_tokenizer.model", "A sentencepiece model."
)

LENGTH, SLOTS = 2048, Slots(queries=64, patches=256)
PICTURE = SLOTS.queries + SLOTS.patches + 4  # of one that is dreamed and seen


class Case(NamedTuple):
    """Documents, and the groups that suit them.

    R rows, and slots for so many more pictures than full rows hold on average.
    """

    name: str
    lengths: list[np.ndarray]  # [n, 3] of each source
    rows: int
    spare: float
    length: int = LENGTH


class Filled(NamedTuple):
    """Shares that are real, packed and with one document a row (whose slots are the most that a document has)."""

    tokens: float
    inputs: float
    targets: float
    padded_tokens: float
    padded_seen: float
    padded_dreamed: float
    documents_per_second: float


def real_lengths(source: Sequence, tokenizer: Tokenizer, slots: Slots, length: int) -> np.ndarray:
    """[n, 3] lengths of real documents."""
    rows = [
        tokenize_document(source[i], tokenizer, slots, limits=Limits(length, length, length))
        for i in range(len(source))
    ]
    return np.array([(len(row.tokens), len(row.inputs), len(row.targets)) for row in rows], np.int32)


def mmc4_lengths(count: int, seed: int = 0, images: float = 29.9 / 7.3, tokens: float = 2400 / 7.3) -> np.ndarray:
    """[count, 3] lengths of simulated interleaved documents with these means, cut at whole chunks as rows are."""
    rng = np.random.default_rng(seed)
    spread = 0.8
    text = np.exp(rng.normal(np.log(tokens) - spread**2 / 2, spread, count))
    lengths = np.zeros((count, 3), np.int32)
    for i, wanted in enumerate(rng.geometric(1 / images, count)):
        ends = np.sort(rng.random(wanted)) * text[i]
        chunks = np.diff(ends, prepend=0.0, append=text[i]).astype(int)
        used, kept = 2, 0  # <s> and </s>
        for n, chunk in enumerate(chunks.tolist()):
            if used + chunk > LENGTH:
                break
            used += chunk
            if n == wanted or used + PICTURE > LENGTH:
                break
            used, kept = used + PICTURE, kept + 1
        lengths[i] = used, kept, kept
    return lengths


def pair_lengths(count: int, seed: int = 0, tokens: float = 20.0) -> np.ndarray:
    """[count, 3] entries of simulated pairs whose captions have so many tokens on average."""
    caption = 1 + np.random.default_rng(seed).poisson(tokens - 1, count)
    return np.stack([caption + SLOTS.patches + 4, np.full(count, PAIR), caption + SLOTS.queries + 4], axis=1).astype(
        np.int32
    )


def created(pairs: np.ndarray) -> np.ndarray:
    """Pairs of which every one is drawn."""
    return np.stack([pairs[:, 2], np.zeros(len(pairs)), np.ones(len(pairs))], axis=1).astype(np.int32)


def inputs(pairs: np.ndarray) -> np.ndarray:
    """Pairs of which every one is seen."""
    return np.stack([pairs[:, 0], np.ones(len(pairs)), np.zeros(len(pairs))], axis=1).astype(np.int32)


def suited(case: Case) -> Shape:
    """Rows and slots of a group; there are slots for the most pictures of one document at least."""
    shown_ = np.concatenate(
        [shown(entries, directions(0, np.zeros(len(entries)), np.arange(len(entries)))) for entries in case.lengths]
    )
    share = shown_.sum(axis=0) / shown_[:, 0].sum() * case.length * case.rows * (1 + case.spare)
    inputs, targets = (
        int(max(np.ceil(one), most)) for one, most in zip(share[1:], shown_.max(axis=0)[1:], strict=True)
    )
    return Shape(1, case.rows, case.length, inputs, targets, 1, 1)


def measure(case: Case, shape: Shape) -> Filled:
    """Packs the first epoch of a case."""
    counts = tuple(map(len, case.lengths))
    plan = Plan(Mixture(counts, counts, seed=0), [Lengths(lengths) for lengths in case.lengths], shape)
    began, groups = time.process_time(), []
    for number in range(plan.blocks):
        groups += plan.block(number)
    seconds = time.process_time() - began
    taken = np.array([member.lengths for group in groups for member in group])
    most = np.maximum(taken.max(axis=0), 1)
    packed = taken.sum(axis=0) / (len(groups) * np.maximum([shape.rows * shape.length, shape.inputs, shape.targets], 1))
    padded = taken.sum(axis=0) / (len(taken) * np.array([shape.length, most[1], most[2]]))
    return Filled(*packed.tolist(), *padded.tolist(), len(taken) / seconds)


def simulated(count: int) -> list[Case]:
    """The cases that need no data."""
    mmc4, pairs = mmc4_lengths(count), pair_lengths(count)
    return [
        Case("MMC4", [mmc4], 4, 0.05),
        Case("MMC4 and pairs", [mmc4, pairs], 8, 0.08),
        Case("pairs, joint", [pairs], 8, 0.18),
        Case("pairs, created", [created(pairs)], 4, 0.05),
    ]


def of_the_paper(count: int) -> list[tuple[Case, Shape]]:
    """Simulated documents in the groups of experiments/stage1_align.py and stage2_igpt.py on v4 chips."""
    mmc4, pairs = mmc4_lengths(count), pair_lengths(count)
    groups = [
        ("I comprehension", [inputs(pairs)], stage1_align.get_config("comprehension")),
        ("I creation", [created(pairs)], stage1_align.get_config("creation")),
        ("I joint", [pairs], stage1_align.get_config("joint")),
        ("II", [mmc4, pairs], stage2_igpt.get_config()),
    ]
    shapes = [shape_of(from_dict(RunConfig, config))._replace(groups=1) for *_, config in groups]
    return [
        (Case(name, lengths, shape.rows, 0), shape) for (name, lengths, _), shape in zip(groups, shapes, strict=True)
    ]


def real(stories: str, tokenizer: Tokenizer) -> list[Case]:
    """The cases of real stories: in the rows of experiments/storybook.py, and in those of the 7B model."""
    cases = []
    for name, slots, length in (("small", Slots(queries=8, patches=16), 1024), ("7B", SLOTS, LENGTH)):
        books, pages = (
            real_lengths(source(stories), tokenizer, slots, length) for source in (Storybook, StorybookPages)
        )
        cases += [
            Case(f"stories, {name}", [books], 4, 0.05, length),
            Case(f"and pages, {name}", [books, pages], 4, 0.15, length),
        ]
    return cases


def format_summary(case: Case, shape: Shape, filled: Filled) -> str:
    """One line of the table."""
    shares = "   ".join("".join(f"{share:8.1%}" for share in three) for three in (filled[:3], filled[3:6]))
    slots = f"{shape.rows} x {shape.length}, {shape.inputs}, {shape.targets}"
    return f"{case.name:18s} {slots:18s} {shares}   {filled.documents_per_second:11,.0f}"


def main(_):
    print(
        f"{'real share of':18s} {'group':18s} {'tokens    seen dreamed, packed':>24s}   "
        f"{'a row for each document':>24s}   documents/s"
    )
    suitable = [
        (case, suited(case)) for case in real(STORIES.value, Tokenizer.from_model(TOKENIZER.value)) + simulated(40_000)
    ]
    for case, shape in suitable + of_the_paper(40_000):
        print(format_summary(case, shape, measure(case, shape)), flush=True)


if __name__ == "__main__":
    app.run(main)
