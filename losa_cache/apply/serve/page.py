"""A page that needs nothing from elsewhere: its script and style lie in it, and its policy allows no other."""

import base64
import hashlib
import re
from pathlib import Path

from fastapi.responses import Response


class Page:
    """A page, read once.

    Args:
        path: of an HTML file with one ``<script>`` and one ``<style>``.
    """

    def __init__(self, path: Path) -> None:
        self._content = path.read_text("utf-8")
        script, style = (self._digest(tag) for tag in ("script", "style"))
        self._policy = (
            f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src blob: data:; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )

    def response(self) -> Response:
        """Answer with the page."""
        return Response(self._content, 200, {"Content-Security-Policy": self._policy}, "text/html; charset=utf-8")

    def _digest(self, tag: str) -> str:
        """Give the hash of what stands in a tag, as the policy names it."""
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", self._content, flags=re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"
