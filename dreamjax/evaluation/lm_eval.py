"""DreamLLM for lm-evaluation-harness, whose tasks then run on it (needs lm-eval, the extra `eval`).

    import lm_eval
    from dreamjax.evaluation.lm_eval import DreamJAX
    lm_eval.simple_evaluate(DreamJAX("runs/stage3"), tasks=["piqa", "mmlu"], num_fewshot=5)

Importing this file also registers the class as `dreamjax`: simple_evaluate("dreamjax", model_args="model=runs/stage3",
...).
"""

import collections
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from dreamjax.api import DreamLLM
from dreamjax.document import Document
from dreamjax.document.tokenize import TokenSequence
from dreamjax.errors import ConfigError
from dreamjax.evaluation.run_files import batched
from dreamjax.progress import bar
from dreamjax.sampling import finite, likelihood

DEFAULT_TOKENS = 256  # written where a task sets no limit


@register_model("dreamjax")
class DreamJAX(TemplateLM):
    """A model folder (or an opened model) with the harness's three requests, each in batches of `batch_size`.

    Contexts begin with <s>. What is longer than the model's context loses its beginning, as in the harness's own
    models.
    """

    def __init__(
        self,
        model: str | os.PathLike | DreamLLM,
        batch_size: int | str = 8,
        which: str = "last",
        max_batch_size=None,
        device=None,
    ):
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ConfigError(f"batch_size: {batch_size!r} is no number from 1 on")
        self.model = model if isinstance(model, DreamLLM) else DreamLLM.load(model, which)
        self.batch_size = int(batch_size)
        self.context = self.model.model.llm.config.max_positions

    @property
    def eot_token_id(self) -> int:
        return self.model.tokenizer.eos

    @property
    def prefix_token_id(self) -> int:
        return self.model.tokenizer.bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        return ([] if add_special_tokens is False else [self.model.tokenizer.bos]) + self.model.tokenizer.encode(string)

    def _loglikelihood_tokens(
        self, requests: Sequence, disable_tqdm: bool = False, **kwargs
    ) -> list[tuple[float, bool]]:
        """(sum of log-probabilities, true if greedy decoding writes it) of each (_, context, continuation), the
        latter two in tokens.
        """
        for number, (pair, _, continuation) in enumerate(requests):
            if not continuation:  # the sum of nothing, 0, would win
                raise ConfigError(f"request {number}: the continuation has no token of its own: {pair!r:.200}")
        rows = [
            _row([*context, *continuation][-self.context :], len(continuation)) for _, context, continuation in requests
        ]
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i].tokens))  # those of a length side by side
        results: list[tuple[float, bool]] = [(0.0, False)] * len(rows)
        log_probs: list[np.ndarray] = [np.zeros(0)] * len(rows)
        with bar(len(rows), "request", "loglikelihood", disable=disable_tqdm) as progress:
            for batch in batched(order, self.batch_size):
                scores = likelihood.likelihoods(
                    self.model.model,
                    [Document(())] * len(batch),
                    [rows[i] for i in batch],
                    self.batch_size,
                )
                for i, score in zip(batch, scores, strict=True):
                    log_probs[i] = score.log_probabilities
                    results[i] = (
                        float(score.log_probabilities.sum(dtype=np.float64)),
                        bool(score.likeliest.all()),
                    )
                progress.update(len(batch))
        finite.require_rows(log_probs, "request", self.model.model)
        return results

    def loglikelihood_rolling(self, requests: Sequence, disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each whole text, in windows of the context that do not overlap but for one token."""
        windows, owners = [], []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0], add_special_tokens=False)
            for window in get_rolling_token_windows(tokens, self.prefix_token_id, self.context - 1, 1):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, (total, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[number] += total
        return totals

    def generate_until(self, requests: Sequence, disable_tqdm: bool = False) -> list[str]:
        """The model's continuation of each context, up to the first of its `until` strings."""
        groups, texts = collections.defaultdict(list), [""] * len(requests)
        for number, request in enumerate(requests):
            groups[repr(sorted(request.args[1].items()))].append(number)
        with bar(len(requests), "request", "generate_until", disable=disable_tqdm) as progress:
            for numbers in groups.values():
                options = self._options(requests[numbers[0]].args[1])
                for batch in batched(numbers, self.batch_size):
                    prompts = [self._fitting(requests[number].args[0], options["max_tokens"]) for number in batch]
                    documents = self.model.generate_batch(
                        prompts, list(batch), batch_size=self.batch_size, max_images=0, **options
                    )
                    for number, document in zip(batch, documents, strict=True):
                        texts[number] = document.text
                    progress.update(len(batch))
        return texts

    def _options(self, request: dict[str, Any]) -> dict[str, Any]:
        until = request.get("until") or ()
        options = {
            "max_tokens": int(request.get("max_gen_toks", request.get("max_tokens", DEFAULT_TOKENS))),
            "stop": (until,) if isinstance(until, str) else tuple(until),
        }
        if request.get("do_sample", request.get("temperature", 0) > 0):
            options |= {
                "temperature": float(request.get("temperature", 1.0)),
                "top_p": float(request.get("top_p", 1.0)),
                "top_k": int(request.get("top_k", 0)),
            }
        return options

    def _fitting(self, text: str, max_tokens: int) -> str:
        """The end of a text that leaves room for `max_tokens`, or half of a small context."""
        room = max(self.context - max_tokens, self.context // 2) - 1
        tokens = self.model.tokenizer.encode(text)
        return text if len(tokens) <= room else self.model.tokenizer.decode_continuation(tokens[-room:]).lstrip()


def _row(tokens: list[int], scored: int) -> TokenSequence:
    """A row of text whose last `scored` tokens count."""
    loss_mask = np.arange(len(tokens)) >= max(len(tokens) - scored, 1)
    return TokenSequence(np.array(tokens, np.int32), loss_mask, (), (), False)
