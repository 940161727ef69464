"""The judgements of a human study, counted."""

import collections
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from dreamjax.errors import SourceError
from dreamjax.evaluation.files import expected_form, find_file, quote, quote_name, read_json, without_repeats
from dreamjax.evaluation.human_study import kit_of
from dreamjax.evaluation.predictions import Score, percent

Key = dict[str, dict[str, str]]
"""{code: kind, topic and id of a document}."""


def tally(judgements: epath.PathLike, data: epath.PathLike) -> Score:
    """`support` of the written documents and `real_support`, in percent of judgements; by topic too; and the agreement
    of judges.

    `judgements` is a judge's file or a folder of them, `data` the kit's folder or its key.json. A document that a judge
    left out is counted and warned of, not judged for. `agreement`: Fleiss' kappa over documents that all judges judged.
    """
    key, folder = _read_key(find_file(data, "key.json")), epath.Path(judgements)
    files = sorted(folder.glob("*.json")) if folder.is_dir() else [folder]
    if not files:
        raise SourceError(f"{folder}: holds no judge's file *.json")
    by_judge: dict[str, dict[str, bool]] = {}
    for file in files:
        judge, support = _read_judge(file, key, data)
        if judge in by_judge:
            raise SourceError(f"{file}: is of judge {quote(judge)}, whose file was counted already")
        by_judge[judge] = support
    votes = collections.defaultdict(list)
    for support in by_judge.values():
        for code, vote in support.items():
            votes[code].append(vote)
    if not votes:
        raise SourceError(f"{folder}: holds no judgements")
    metrics = _metrics(key, votes, len(by_judge))
    judged = sum(map(len, votes.values()))
    missing = len(key) * len(by_judge) - judged
    warnings = (f"{missing} of {len(key) * len(by_judge)} judgements are missing: judges left documents out",)
    counts = {"documents": len(key), "judges": len(by_judge), "judgements": judged, "missing": missing}
    return Score(metrics, counts, warnings if missing else ())


def _metrics(key: Key, votes: Mapping[str, Sequence[bool]], judges: int) -> dict[str, float]:
    def support(kind: str, topic: str | None = None) -> float:
        codes = [code for code, row in key.items() if row["kind"] == kind and topic in (None, row["topic"])]
        return percent(vote for code in codes for vote in votes.get(code, ()))

    metrics = {
        "support": support("written"),
        "real_support": support("real"),
        "agreement": fleiss_kappa([tuple(given) for given in votes.values() if len(given) == judges]),
    }
    topics = dict.fromkeys(row["topic"] for row in key.values() if row["topic"])
    return metrics | {f"topic/{topic}": support("written", topic) for topic in topics}


def _read_judge(file: epath.Path, key: Key, data: epath.PathLike) -> tuple[str, dict[str, bool]]:
    """(name, {code: support}) of a file that the page makes; raises SourceError, also for one of another kit."""
    content = read_json(file, without_repeats)
    with expected_form(file, "file that the page makes"):
        judge, support = str(content["judge"]).strip(), content["support"].items()
        if not judge:
            raise ValueError("the judge has no name")
        for _, vote in support:
            if not isinstance(vote, bool):
                raise ValueError(f"{quote(vote)} is neither true nor false")
        votes = {str(code): vote for code, vote in support}
    if content.get("kit", kit_of(key)) != kit_of(key):
        raise SourceError(f"{file}: judges the documents of another kit than {data}")
    unknown = next((code for code in votes if code not in key), None)
    if unknown is not None:
        raise SourceError(
            f"{file}: judges document {quote_name(unknown)}, which {data} does not have: is it of another kit?"
        )
    return judge, votes


def _read_key(path: epath.Path) -> Key:
    key = read_json(path)
    with expected_form(path, "key of a kit"):
        if not all(isinstance(row[name], str) for row in key.values() for name in ("kind", "topic")):
            raise ValueError("a kind or a topic is no text")
    return key


def fleiss_kappa(votes: Sequence[tuple[bool, ...]]) -> float:
    """Fleiss' kappa of yes-or-no votes, as many for each document; nan for one judge, and if all votes are the same."""
    if not votes or len(votes[0]) < 2:
        return float("nan")
    judges, yes = len(votes[0]), np.array([sum(given) for given in votes])
    observed = np.mean((yes * (yes - 1) + (judges - yes) * (judges - yes - 1)) / (judges * (judges - 1)))
    share = yes.sum() / (judges * len(votes))
    by_chance = share**2 + (1 - share) ** 2
    return float((observed - by_chance) / (1 - by_chance)) if by_chance < 1 else float("nan")
