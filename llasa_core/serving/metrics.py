"""What a server counts, in Prometheus' text format (GET /metrics)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from llasa_core.serving.service import SpeechService

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self, service: SpeechService) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "llasa_requests",
            "Answered requests for speech by status; 499: the client left",
            ("status",),
            registry=registry,
        )
        self.seconds = Histogram(
            "llasa_request_seconds",
            "From the request to its last byte, of requests that were spoken",
            buckets=SECONDS,
            registry=registry,
        )
        self.first = Histogram(
            "llasa_first_audio_seconds",
            "From the request to its first audio",
            buckets=SECONDS,
            registry=registry,
        )
        self.audio = Counter(
            "llasa_audio_seconds", "Seconds of speech that were sent", registry=registry
        )
        self.failed = Counter(
            "llasa_guard_failures", "Texts that passed the guards in no attempt", registry=registry
        )
        loop = service.loop
        for name, what, read in (
            ("llasa_requests_open", "Requests that are spoken or wait", lambda: service.open),
            ("llasa_rows_live", "Rows that are drawn", lambda: loop.live),
            ("llasa_rows_waiting", "Rows that wait for a slot", lambda: loop.waiting),
            ("llasa_steps", "Steps of the loop so far", lambda: loop.steps),
            ("llasa_row_steps", "Rows of all steps so far", lambda: loop.row_steps),
            ("llasa_loop_failures", "Failures of the loop so far", lambda: loop.failures),
        ):
            Gauge(name, what, registry=registry).set_function(read)

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self.registry)
