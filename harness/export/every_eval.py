"""A run as a record of Every Eval Ever, the shared format for evaluation results (its schema is published at evaleval/every_eval_ever)."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

from harness.core.stats import LEVEL, Estimate
from harness.models.pair_config import HubSource, ModelConfig
from harness.report import Run
from harness.results.summary import ALL, CellRow

FORMAT = "0.3.0"
"""Version of the published schema that the records follow."""
COLLECTION = "speculative-decoding"
_UNBOUNDED = "Infinity"
_SOURCES = {"humaneval": "openai/openai_humaneval", "gsm8k": "openai/gsm8k"}
"""Datasets that are a repository of the hub; the others are the project's own or the user's."""
_METRICS: tuple[tuple[str, str, str, str, float, float | str], ...] = (
    ("rate", "acceptance_rate", "Share of the drafted tokens that the target kept", "proportion", 0.0, 1.0),
    ("alpha", "alpha", "Chance that one drafted token stands, where all before it do", "proportion", 0.0, 1.0),
    ("tau", "tokens_per_pass", "Emitted tokens per pass of the target", "tokens", 1.0, _UNBOUNDED),
    ("speed", "speedup", "Time of the target alone over the time with drafting, same prompts", "ratio", 0.0, _UNBOUNDED),
)
"""Field of a row, name, meaning, unit, least and most."""


def record(run: Run, model: ModelConfig | None, *, organisation: str = "unknown", version: str) -> tuple[PurePosixPath, dict[str, Any]]:
    """A run's record, and where it belongs in the format's data store.

    Args:
        run: the run.
        model: the pair's target, for its name on the hub; None where the pair is not known here.
        organisation: who ran it.
        version: of this package.
    """
    m = run.manifest
    developer, name = _model_name(m.pair, model)
    started = datetime.fromisoformat(m.started)
    stamp = str(int(started.timestamp()))
    results = [result for row in run.shown if row.domain != ALL for result in _results(run, row)]
    data = {
        "schema_version": FORMAT,
        "evaluation_id": f"{COLLECTION}/{developer}/{name}/{stamp}",
        "evaluation_timestamp": m.started,
        "retrieved_timestamp": stamp,
        "source_metadata": {
            "source_name": f"specdraft-harness run {m.run}",
            "source_type": "evaluation_run",
            "source_organization_name": organisation,
            "evaluator_relationship": "other",
            "additional_details": _texts({"suite_sha256": m.suite_hash, "finished": m.finished, **m.machine}),
        },
        "eval_library": {
            "name": "specdraft-harness",
            "version": str(m.code.get("version") or version),
            "additional_details": _texts({**{f"code_{k}": v for k, v in m.code.items()}, **m.packages}),
        },
        "model_info": {
            "name": name,
            "id": f"{developer}/{name}",
            "inference_platform": "local",
            "inference_engine": {"name": "mlx-lm", "version": str(m.packages.get("mlx-lm", "unknown"))},
            "additional_details": {
                **_texts({f"{key}_sha256" if key in ("target", "draft") else key: value for key, value in m.models.items()}),
                "deployment_type": "self_deployed",
                "model_availability": "open_weights",
            },
        },
        "evaluation_results": results,
    }
    digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).digest()
    file = f"{uuid.UUID(bytes=digest[:16], version=4)}.json"
    return PurePosixPath("data", COLLECTION, developer, name, file), data


def _model_name(pair: str, model: ModelConfig | None) -> tuple[str, str]:
    for source in model.parsed(Path()) if model else []:
        if isinstance(source, HubSource):
            developer, _, name = source.repo.partition("/")
            return developer, name
    return "unknown", re.sub(r"[^\w.-]", "-", pair)


def _results(run: Run, row: CellRow) -> Iterator[dict[str, Any]]:
    for field, name, meaning, unit, least, most in _METRICS:
        estimate: Estimate | None = getattr(row, field)
        if row.drafter is not None and estimate is not None:
            metric = _metric(f"{COLLECTION}.{name}", name.replace("_", " "), meaning, unit, least, most)
            yield _result(run, row, name, metric, {"score": estimate.value, "uncertainty": _uncertainty(estimate)})
    if row.quality is not None and row.quality.mean is not None:
        quality = row.quality
        metric = _metric(quality.metric, quality.metric, "Mean over the scored answers", "proportion", 0.0, 1.0)
        details = _texts({"unscored": quality.unscored, "cut_at_token_limit": quality.cut})
        yield _result(
            run, row, quality.metric, metric, {"score": quality.mean, "details": details, "uncertainty": {"num_samples": quality.scored}}
        )


def _metric(name: str, shown: str, meaning: str, unit: str, least: float, most: float | str) -> dict[str, Any]:
    return {
        "evaluation_description": meaning, "metric_id": name, "metric_name": shown, "metric_kind": name.rpartition(".")[2],
        "metric_unit": unit, "lower_is_better": False, "score_type": "continuous", "min_score": least, "max_score": most,
    }  # fmt: skip


def _result(run: Run, row: CellRow, name: str, metric: dict[str, Any], score: dict[str, Any]) -> dict[str, Any]:
    own = {
        "drafter": row.drafter, "adapter": row.adapter, "k": row.k, "rule": row.rule, "loop": row.loop, "method": row.method,
        "lossy": row.lossy, "prompts": row.n, "rounds": row.counts.rounds, "drafted": row.counts.drafted, "accepted": row.counts.accepted,
        "emitted": row.counts.emitted, **row.settings,
    }  # fmt: skip
    identity = json.dumps([row.domain, name, row.temperature, own], sort_keys=True, default=str)
    return {
        "evaluation_result_id": hashlib.sha256(identity.encode()).hexdigest()[:16],
        "evaluation_name": _name(row),
        "source_data": _dataset(run, row),
        "metric_config": metric,
        "score_details": score,
        "generation_config": {
            "generation_args": {"temperature": row.temperature, "max_tokens": int(run.manifest.suite.get("max_tokens", 1))},
            "additional_details": _texts(own),
        },
    }


def _name(row: CellRow) -> str:
    parts = [
        f"{row.domain}: {row.label}",
        "" if row.k is None else f"K = {row.k}",
        f"temperature {row.temperature:g}" if row.temperature else "",
        row.rule if row.rule != "match" else "",
        row.method if row.method != "decode" else "",
    ]
    return ", ".join(part for part in parts if part)


def _dataset(run: Run, row: CellRow) -> dict[str, Any]:
    spec: Mapping[str, Any] = run.manifest.suite.get("domains", {}).get(row.domain, {})
    name = str(spec.get("dataset") or row.domain)
    details = _texts({key: value for key, value in spec.items() if key != "path"})
    if name in _SOURCES:
        return {
            "dataset_name": name, "source_type": "hf_dataset", "hf_repo": _SOURCES[name], "samples_number": row.n,
            "sample_ids": sorted({prompt.sample_id for prompt in row.prompts}), "additional_details": details,
        }  # fmt: skip
    return {"dataset_name": name, "source_type": "other", "additional_details": {**details, "samples_number": str(row.n)}}


def _uncertainty(estimate: Estimate) -> dict[str, Any]:
    found: dict[str, Any] = {"num_samples": estimate.n}
    if estimate.low is not None and estimate.high is not None:
        found["confidence_interval"] = {
            "lower": estimate.low, "upper": estimate.high, "confidence_level": LEVEL, "method": "jackknife over prompts"
        }  # fmt: skip
    return found


def _texts(facts: Mapping[str, Any]) -> dict[str, str]:
    """Facts as the format wants them: text alone, what is missing left out."""
    return {
        key: value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
        for key, value in facts.items()
        if value is not None
    }
