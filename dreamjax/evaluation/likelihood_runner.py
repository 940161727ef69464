"""Answers questions of language by the likeliest ending, and writes each down as it comes (`runner` says how)."""

from collections.abc import Sequence

import numpy as np
from etils import epath

from dreamjax.api import DreamLLM
from dreamjax.document import Document, Text
from dreamjax.errors import ConfigError
from dreamjax.evaluation.benchmarks.language import Ranking
from dreamjax.evaluation.runner import append, batched, check_settings, resume
from dreamjax.progress import bar
from dreamjax.sampling.finite import require_rows
from dreamjax.sampling.likelihood import alternatives
from dreamjax.sampling.prompts import prompt_tokens


def predict(
    model: DreamLLM, rankings: Sequence[Ranking], out: epath.Path, settings: dict, batch_size: int = 16, desc: str = ""
) -> tuple[epath.Path, int]:
    """Ranks what has no row yet.

    Predictions.jsonl with the number of the likeliest ending and all scores; how many examples did not fit.
    """
    path, dropped = out / "predictions.jsonl", 0
    check_settings(out, settings)
    done = {row["question_id"] for row in resume(path, question_id=str, text=str)}
    waiting = sorted(
        (ranking for ranking in rankings if ranking.id not in done), key=_length
    )  # few sizes side by side: little is filled up
    with bar(len(rankings), "question", desc, len(rankings) - len(waiting)) as progress:
        for batch in batched(waiting, batch_size if all(map(_is_shared, waiting)) else max(1, batch_size // 4)):
            befores = []
            for ranking in batch:
                kept, missing = _fitting(model, ranking)
                dropped += missing
                befores.append(ranking.heading + "".join(kept))
            rows = []
            for ranking, sums in zip(batch, _sums(model, batch, befores, batch_size), strict=True):
                scores = [
                    value / (len(ending) if ranking.by_length else 1)
                    for value, ending in zip(sums, ranking.endings, strict=True)
                ]
                chosen = int(np.argmax(scores))
                rows.append(
                    {
                        "question_id": ranking.id,
                        "text": str(chosen),
                        "prompt": ranking.contexts[chosen],
                        "category": ranking.category,
                        "scores": scores,
                    }
                )
            append(path, rows)
            progress.update(len(batch))
    return path, dropped


def _length(ranking: Ranking) -> int:
    return (
        len(ranking.heading)
        + sum(map(len, ranking.examples))
        + max(len(words) + len(ending) for words, ending in zip(ranking.contexts, ranking.endings, strict=True))
    )


def _is_shared(ranking: Ranking) -> bool:
    """Whether all endings, letters, come after the same words."""
    return len(set(ranking.contexts)) == 1 and all(len(ending.strip()) == 1 for ending in ranking.endings)


def _sums(model: DreamLLM, rankings: Sequence[Ranking], befores: Sequence[str], size: int) -> list[list[float]]:
    """The log-probability of each ending of each ranking.

    The words before it are computed once where the endings are letters.
    """
    if all(map(_is_shared, rankings)):
        pairs = [
            (Document((Text(before + ranking.contexts[0]),)), ranking.endings)
            for ranking, before in zip(rankings, befores, strict=True)
        ]
        found = alternatives(model.model, model.tokenizer, pairs, size, model.template)
        if found is not None:
            require_rows(found, "question", model.model)
            return [shares.tolist() for shares in found]
    scored = []
    for ranking, before in zip(rankings, befores, strict=True):
        scored += [
            (before + context, ending) for context, ending in zip(ranking.contexts, ranking.endings, strict=True)
        ]
    found = iter([float(shares.sum()) for shares in _log_probabilities(model, scored, size)])
    return [[next(found) for _ in ranking.endings] for ranking in rankings]


def _log_probabilities(model: DreamLLM, pairs: list, size: int) -> list[np.ndarray]:
    """The pairs filled up to whole batches, so that a pair is computed in the same shapes whatever is left to do."""
    filled = pairs + [pairs[-1]] * (-len(pairs) % size)
    return model.log_probabilities(filled, size)[: len(pairs)]


def _fitting(model: DreamLLM, ranking: Ranking) -> tuple[tuple[str, ...], int]:
    """The last examples that fit the context with the question, and how many were left out."""
    context = model.config.llm.max_positions
    for missing in range(len(ranking.examples) + 1):
        kept = ranking.examples[missing:]
        before = ranking.heading + "".join(kept)
        texts = {before + words + ending for words, ending in zip(ranking.contexts, ranking.endings, strict=True)}
        longest = max(
            prompt_tokens(model.model, model.tokenizer, Document((Text(text),)), model.template) for text in texts
        )
        if longest <= context:
            return kept, missing
    raise ConfigError(f"question {ranking.id}: takes {longest} tokens, more than the model's context of {context}")
