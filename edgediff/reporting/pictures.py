"""Images of the page, inside it."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from edgediff.reporting import figures


@dataclass(frozen=True)
class Picture:
    """An image of the page: data URI, the one for dark pages where it differs, and what it shows in words."""

    uri: str
    alt: str
    dark: str = ""


def png(content: bytes, alt: str) -> Picture:
    """Return an image of the same colours on light and dark pages."""
    return Picture(_uri("png", content), alt)


def svg(chart: figures.Chart, alt: str) -> Picture:
    """Return a chart in the colours of either page."""
    return Picture(_uri("svg+xml", chart.light), alt, _uri("svg+xml", chart.dark))


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
