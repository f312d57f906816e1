"""What the server counts, in Prometheus' text form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from harness.adapt.training.rounds import RoundRecord
    from harness.serve.queue import Done, FairQueue

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """Counts of one server.

    Args:
        queue: whose length is shown.
    """

    def __init__(self, queue: FairQueue) -> None:
        registry = self.registry = CollectorRegistry()
        self._requests = Counter("harness_requests", "Answered requests", ["path", "status"], registry=registry)
        self._tokens = Counter("harness_tokens", "Tokens by kind", ["kind"], registry=registry)
        self._passes = Counter("harness_target_passes", "Target passes that emitted tokens", registry=registry)
        self._ttft = Histogram(
            "harness_time_to_first_token_seconds", "From the request to its first token", buckets=SECONDS, registry=registry
        )
        self._answer = Histogram("harness_answer_seconds", "Decoding one answer", buckets=SECONDS, registry=registry)
        self._rounds = Counter("harness_training_rounds", "Training rounds by verdict", ["verdict"], registry=registry)
        self._training = Counter("harness_training_seconds", "Time spent on training", registry=registry)
        Gauge("harness_queue_length", "Requests that wait", registry=registry).set_function(lambda: len(queue))

    def request(self, path: str, status: int) -> None:
        """Count a response."""
        self._requests.labels(path, status).inc()

    def answered(self, done: Done) -> None:
        """Count an answer."""
        g = done.generation
        for kind, count in {
            "prompt": g.prompt_tokens,
            "reused": done.reused,
            "emitted": g.emitted,
            "drafted": g.drafted,
            "accepted": g.accepted,
        }.items():
            self._tokens.labels(kind).inc(count)
        self._passes.inc(g.rounds)
        self._ttft.observe(done.queue_s + g.ttft_s)
        self._answer.observe(g.wall_s)

    def trained(self, record: RoundRecord | None, seconds: float) -> None:
        """Count a training round; None is one that was refused."""
        verdict = "refused" if record is None else "accepted" if record.accepted else "rejected"
        self._rounds.labels(verdict).inc()
        self._training.inc(seconds)

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self.registry)
