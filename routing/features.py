"""Prompts -> numbers: sentence embedding or TF-IDF, prompt length, and domain cue scores, as one scikit-learn transformer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.utils.validation import check_is_fitted

from routing.cues import CUES, cue_scores
from routing.encoder import Encoder, load_encoder
from routing.routing_error import RoutingError

PROBE = "Write a function that adds two numbers, then explain it in one sentence."
"""Fixed text whose features are stored with a router: other weights or another truncation give other features."""


class PromptFeatures(TransformerMixin, BaseEstimator):
    """Features of prompts: (n_samples, n_features) float32.

    Args:
        text: ``minilm``, ``mpnet`` or a local folder (sentence embeddings), ``tfidf`` (no torch), or ``none``.
        max_tokens: prompts are cut to this many tokens before embedding.
        dtype: encoder arithmetic: ``float32``, ``bfloat16``, or ``auto`` (bfloat16 where the CPU computes in it).
        length: add log(1 + characters) / 10.
        cues: add the scores of the code, math and chat cues.
        n_components: project the text part on this many principal components of the training prompts; None keeps it whole.
        max_terms: vocabulary size of ``tfidf``.
        offline: fetch nothing.

    Attributes:
        vocabulary_, idf_: TF-IDF terms and their weights (empty otherwise).
        text_mean_, components_: principal components of the text part (components_ is empty without projection).
        n_features_out_: number of features.
    """

    _state: ClassVar[dict[str, tuple[str, ...]]] = {
        "idf_": ("terms",),
        "text_mean_": ("projected",),
        "components_": ("components", "projected"),
    }

    def __init__(
        self,
        text: str = "minilm",
        *,
        max_tokens: int = 64,
        dtype: str = "auto",
        length: bool = True,
        cues: bool = True,
        n_components: int | None = None,
        max_terms: int = 512,
        offline: bool = False,
    ) -> None:
        self.text = text
        self.max_tokens = max_tokens
        self.dtype = dtype
        self.length = length
        self.cues = cues
        self.n_components = n_components
        self.max_terms = max_terms
        self.offline = offline

    def fit(self, X: Sequence[str], y: Any = None) -> PromptFeatures:
        """Learn the TF-IDF vocabulary and the projection from prompts (n_samples,); embeddings need no fitting."""
        texts = _texts(X)
        if not texts:
            raise ValueError("Found array with 0 sample(s) while a minimum of 1 is required.")
        if self.text == "none" and not (self.length or self.cues):
            raise RoutingError("every feature is switched off", "Set text, length or cues.")
        self.vocabulary_: list[str] = []
        self.idf_ = np.empty(0)
        if self.text == "tfidf":
            self._fit_tfidf(texts)
        self.text_mean_ = np.empty(0)
        self.components_ = np.empty((0, 0))
        if self.n_components is not None:
            self._fit_projection(self._text_part(texts))
        self.n_features_out_ = self._stack(texts).shape[1]
        return self

    def transform(self, X: Sequence[str]) -> np.ndarray:
        """(n_samples, n_features) float32 features of prompts (n_samples,)."""
        check_is_fitted(self, "n_features_out_")
        texts = _texts(X)
        return self._stack(texts) if texts else np.empty((0, self.n_features_out_), dtype=np.float32)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """(n_features,) names."""
        check_is_fitted(self, "n_features_out_")
        extra = (["length"] if self.length else []) + ([f"cue_{c}" for c in CUES] if self.cues else [])
        return np.array([f"text_{i}" for i in range(self.n_features_out_ - len(extra))] + extra, dtype=object)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        return tags

    def _stack(self, texts: list[str]) -> np.ndarray:
        parts = [self._project(self._text_part(texts))]
        if self.length:
            parts.append(np.log1p([[len(t)] for t in texts]) / 10)
        if self.cues:
            parts.append(cue_scores(texts))
        return np.hstack(parts).astype(np.float32)

    def _text_part(self, texts: list[str]) -> np.ndarray:
        if self.text == "none":
            return np.empty((len(texts), 0), dtype=np.float32)
        if self.text == "tfidf":
            found: np.ndarray = self._vectorizer().transform(texts).toarray().astype(np.float32)
            return found
        return self._encoder()(texts)

    def _encoder(self) -> Encoder:
        return load_encoder(self.text, self.max_tokens, self.dtype, self.offline)

    def _fit_tfidf(self, texts: list[str]) -> None:
        vectorizer = TfidfVectorizer(max_features=self.max_terms, ngram_range=(1, 2), sublinear_tf=True).fit(texts)
        self.vocabulary_ = [str(t) for t in vectorizer.get_feature_names_out()]
        self.idf_ = np.asarray(vectorizer.idf_, dtype=np.float64)

    def _vectorizer(self) -> TfidfVectorizer:
        vectorizer = TfidfVectorizer(vocabulary=self.vocabulary_, ngram_range=(1, 2), sublinear_tf=True)
        vectorizer.idf_ = self.idf_
        return vectorizer

    def _fit_projection(self, part: np.ndarray) -> None:
        self.text_mean_ = part.mean(axis=0, dtype=np.float64)
        _, _, axes = np.linalg.svd(part - self.text_mean_, full_matrices=False)
        axes = axes[: self.n_components]
        signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])
        self.components_ = axes * np.where(signs == 0, 1, signs)[:, None]

    def _project(self, part: np.ndarray) -> np.ndarray:
        return part if not len(self.components_) else (part - self.text_mean_) @ self.components_.T


def _texts(X: Sequence[str]) -> list[str]:
    """Plain list of prompts; one bare string, and anything that is not text, is an error."""
    if isinstance(X, str):
        raise ValueError("Expected a sequence of prompts, got one string; pass [prompt].")
    texts = [str(t) if isinstance(t, np.str_) else t for t in X]
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"Expected prompts as strings, got {type(text).__name__}.")
    return texts
