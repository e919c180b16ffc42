"""A GPT of this project with lm-eval's model interface: it scores continuations and whole texts, and continues contexts
greedily."""

import functools
import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from eval.statistics.items import LN2
from eval.tasks import score
from eval.tasks.definitions import is_greedy
from eval.tasks.journal import Journal

MAX_NEW_TOKENS = 256  # tokens of a continuation where the task names no number; lm-eval's own


class Scorer(TemplateLM):
    """Log-likelihoods of text under a GPT, in nats, and greedy continuations, through lm-eval's model interface.

    Args:
        model: a GPT (model/gpt.py) on any device.
        tokenizer: has `encode(text) -> ids`, `decode(ids) -> text` and `eod`, the id of the token before each document.
        window: the number of tokens that the model reads at a time for held-out loss: the training length, in every
            arm.
        batch: the number of tokens of a forward pass, including padding; None: a default for the device.
        progress: a function that is called with the number of finished tokens and of all tokens.
        journal: scores that are known already; new scores are added to it.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        window: int,
        batch: int | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
        journal: Journal | None = None,
    ):
        super().__init__()
        self.model, self.window, self.eod = model.eval(), window, tokenizer.eod
        self.options: dict[str, Any] = {"batch": batch, "progress": progress, "journal": journal or Journal()}
        self.encode = lru_cache(maxsize=1 << 16)(lambda text: tuple(tokenizer.encode(text)))
        self.decode: Callable[[list[int]], str] = getattr(tokenizer, "decode", str)
        self._unknown = getattr(tokenizer, "count_unknown", None)

    @property
    def eot_token_id(self) -> int:
        return self.eod

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return list(self.encode(string))

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> list[float]:
        """The log-likelihood of each whole text, in nats. Every token is predicted once, in disjoint windows; the first
        token of a text is predicted from the end-of-document token.

        Each byte of a text that the tokenizer cannot represent counts 8 bits, the cost of writing it out. Otherwise a
        tokenizer without pieces for the script of a text would have almost nothing to predict.

        Args:
            requests: lm-eval's requests, each with a text.
            disable_tqdm: ignored; part of lm-eval's interface.
        """
        windows = [
            [
                make_disjoint_window(pair)
                for pair in get_rolling_token_windows(
                    self.tok_encode(request.args[0]), self.eod, max_seq_len=self.window, context_len=1
                )
            ]
            for request in requests
        ]
        scores = iter(self.score([pair for pairs in windows for pair in pairs]))
        nats = [sum(next(scores)[0] for _ in pairs) for pairs in windows]
        charges = [8 * LN2 * self.unknown_bytes(request.args[0]) for request in requests]
        return [score_ - charge for score_, charge in zip(nats, charges, strict=True)]

    def unknown_bytes(self, text: str) -> int:
        """The number of bytes of a text that the tokenizer encodes as unknown tokens; 0 for a lossless tokenizer."""
        return self._unknown(text)[1] if self._unknown else 0

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> list[str]:
        """The greedy continuation of each context as text, up to the first of the task's stop strings or the end of the
        document. Raises ValueError where a task asks for sampling or for several beams.

        Args:
            requests: lm-eval's requests, each with a context and the task's generation settings.
            disable_tqdm: ignored; part of lm-eval's interface.
        """
        numbers_by_settings: dict[str, list[int]] = {}  # of the requests; those of equal settings make batches
        for i, request in enumerate(requests):
            numbers_by_settings.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
        answers = [""] * len(requests)
        for settings_json, numbers in numbers_by_settings.items():
            settings = json.loads(settings_json)
            if not is_greedy(settings):
                raise ValueError(f"only greedy continuations can be made, not {settings_json}")
            stops = settings.get("until") or []
            stops = [stop for stop in ([stops] if isinstance(stops, str) else stops) if stop]
            max_new = int(settings.get("max_gen_toks", MAX_NEW_TOKENS))
            if self.model.max_length:  # half of the longest input at least is left to the context
                max_new = min(max_new, self.model.max_length // 2)
            is_end = functools.partial(self._has_ended, stops=stops)
            contexts = [self.tok_encode(requests[i].args[0]) or [self.eod] for i in numbers]
            continuations = score.greedy_continuations(self.model, contexts, max_new, is_end, **self.options)
            for i, ids in zip(numbers, continuations, strict=True):
                answers[i] = self._text(ids)
                for stop in stops:
                    answers[i] = answers[i].split(stop)[0]
        return answers

    def _text(self, ids: list[int]) -> str:
        """The text of token ids, up to the first end-of-document token."""
        return self.decode(ids[: ids.index(self.eod)] if self.eod in ids else ids)

    def _has_ended(self, ids: list[int], stops: list[str]) -> bool:
        """Whether a continuation, the token ids so far, has reached the end of the document or contains one of the stop
        strings."""
        return ids[-1] == self.eod or any(stop in self._text(ids) for stop in stops)

    def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        for (_, continuation), _, ids in requests:
            if not ids:
                raise ValueError(f"the tokenizer leaves no token to the continuation {continuation!r}")
        return self.score([(context or [self.eod], continuation) for _, context, continuation in requests])

    def score(self, pairs: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """The scores of pairs (context, continuation) of token ids: for each pair (the log-likelihood of the
        continuation in nats, whether greedy decoding from the context would give the continuation)."""
        return score.score_pairs(self.model, pairs, **self.options)
