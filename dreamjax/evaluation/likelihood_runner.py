"""Answers rankings by the likeliest ending, and stores each at once (`runner` says how runs go on)."""

from collections.abc import Sequence

import numpy as np
from etils import epath

from dreamjax.api import DreamLLM
from dreamjax.document import Document, Text
from dreamjax.errors import ConfigError
from dreamjax.evaluation.ranking import Ranking
from dreamjax.evaluation.run_files import append_rows, batched, check_settings, read_rows
from dreamjax.progress import bar
from dreamjax.sampling.finite import require_rows
from dreamjax.sampling.likelihood import alternatives
from dreamjax.sampling.prompts import prompt_tokens


def predict(
    model: DreamLLM, rankings: Sequence[Ranking], out: epath.Path, settings: dict, batch_size: int = 16, desc: str = ""
) -> tuple[epath.Path, int]:
    """Ranks what has no row yet; (predictions.jsonl with the index of the likeliest ending and all scores, examples
    that the context did not hold).
    """
    path, dropped = out / "predictions.jsonl", 0
    check_settings(out, settings)
    done = {row["question_id"] for row in read_rows(path, question_id=str, text=str)}
    # By length: texts of about one size need little padding.
    waiting = sorted((ranking for ranking in rankings if ranking.id not in done), key=_length)
    size = batch_size if all(map(_is_shared, waiting)) else max(1, batch_size // 4)
    with bar(len(rankings), "question", desc, len(rankings) - len(waiting)) as progress:
        for batch in batched(waiting, size):
            prefixes = []
            for ranking in batch:
                examples, left_out = _fitting(model, ranking)
                dropped += left_out
                prefixes.append(ranking.heading + "".join(examples))
            sums = _sums(model, batch, prefixes, batch_size)
            append_rows(path, [_row(ranking, values) for ranking, values in zip(batch, sums, strict=True)])
            progress.update(len(batch))
    return path, dropped


def _row(ranking: Ranking, sums: Sequence[float]) -> dict:
    scores = [
        value / (len(ending) if ranking.by_length else 1) for value, ending in zip(sums, ranking.endings, strict=True)
    ]
    chosen = int(np.argmax(scores))
    return {
        "question_id": ranking.id,
        "text": str(chosen),
        "prompt": ranking.contexts[chosen],
        "category": ranking.category,
        "scores": scores,
    }


def _length(ranking: Ranking) -> int:
    longest = max(len(context) + len(end) for context, end in zip(ranking.contexts, ranking.endings, strict=True))
    return len(ranking.heading) + sum(map(len, ranking.examples)) + longest


def _is_shared(ranking: Ranking) -> bool:
    """True if all endings are letters after the same context."""
    return len(set(ranking.contexts)) == 1 and all(len(ending.strip()) == 1 for ending in ranking.endings)


def _sums(model: DreamLLM, rankings: Sequence[Ranking], prefixes: Sequence[str], size: int) -> list[list[float]]:
    """The log-probability of each ending of each ranking; a context that endings share is computed once."""
    if all(map(_is_shared, rankings)):
        pairs = [
            (Document((Text(prefix + ranking.contexts[0]),)), ranking.endings)
            for ranking, prefix in zip(rankings, prefixes, strict=True)
        ]
        log_probs = alternatives(model.model, model.tokenizer, pairs, size, model.template)
        if log_probs is not None:
            require_rows(log_probs, "question", model.model)
            return [row.tolist() for row in log_probs]
    texts = [
        (prefix + context, ending)
        for ranking, prefix in zip(rankings, prefixes, strict=True)
        for context, ending in zip(ranking.contexts, ranking.endings, strict=True)
    ]
    sums = iter([float(tokens.sum()) for tokens in _log_probabilities(model, texts, size)])
    return [[next(sums) for _ in ranking.endings] for ranking in rankings]


def _log_probabilities(model: DreamLLM, texts: list[tuple[str, str]], size: int) -> list[np.ndarray]:
    """The texts filled up to full batches, so that a text is computed in the same shapes whatever is left to do."""
    filled = texts + [texts[-1]] * (-len(texts) % size)
    return model.log_probabilities(filled, size)[: len(texts)]


def _fitting(model: DreamLLM, ranking: Ranking) -> tuple[tuple[str, ...], int]:
    """The last examples that fit the context with the question, and how many were left out."""
    context, longest = model.model.llm.config.max_positions, 0
    for left_out in range(len(ranking.examples) + 1):
        examples = ranking.examples[left_out:]
        prefix = ranking.heading + "".join(examples)
        texts = {prefix + before + ending for before, ending in zip(ranking.contexts, ranking.endings, strict=True)}
        longest = max(
            prompt_tokens(model.model, model.tokenizer, Document((Text(text),)), model.template) for text in texts
        )
        if longest <= context:
            return examples, left_out
    raise ConfigError(f"question {ranking.id}: takes {longest} tokens, more than the model's context of {context}")
