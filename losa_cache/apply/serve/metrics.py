"""What a server counts, in Prometheus' text format."""

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Requests, their time, and the batches that they are computed in.

    Args:
        waiting: gives the requests that are accepted and not answered yet.
        adapters: gives how many adapters there are.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, *, waiting: Callable[[], int], adapters: Callable[[], int]) -> None:
        self._registry = own = CollectorRegistry()
        of = ["path"]
        self._requests = Counter("losa_cache_requests", "Requests.", [*of, "status"], registry=own)
        self._seconds = Histogram("losa_cache_request_seconds", "Time of a request.", of, registry=own, buckets=SECONDS)
        self._images = Histogram("losa_cache_batch_images", "Images of a batch.", registry=own, buckets=IMAGES)
        self._batches = Histogram("losa_cache_batch_seconds", "Time of a batch.", registry=own, buckets=SECONDS)
        Gauge("losa_cache_waiting", "Requests not answered yet.", registry=own).set_function(waiting)
        Gauge("losa_cache_adapters", "Adapters.", registry=own).set_function(adapters)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count a request.

        Args:
            path: of its route, not of its URL: a client must not be able to make new ones.
            status: of HTTP.
            seconds: that it took.
        """
        self._requests.labels(path, status).inc()
        self._seconds.labels(path).observe(seconds)

    def computed(self, images: int, seconds: float) -> None:
        """Count a batch."""
        self._images.observe(images)
        self._batches.observe(seconds)

    def text(self) -> bytes:
        """Give all of it."""
        return generate_latest(self._registry)
