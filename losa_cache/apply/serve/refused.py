"""Why a request is refused."""

from collections.abc import Mapping


class RefusedError(Exception):
    """A request that gets no answer: a status, and one sentence that says what is wrong and what to do.

    Args:
        status: of HTTP.
        sentence: for the client.
        headers: of the response.
    """

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, dict(headers or {})


def busy(sentence: str) -> RefusedError:
    """Refuse for now: the client may try again in a second."""
    return RefusedError(503, sentence, {"Retry-After": "1"})
