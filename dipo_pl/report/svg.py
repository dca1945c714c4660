"""A picture as SVG within a page: named for screen readers, and apart from the other pictures of the page."""

import io
import re
from html import escape

from dipo_pl.report import figures
from dipo_pl.report.pictures import Picture


def inline_svg(picture: Picture) -> str:
    """An `<svg>` element with title and description, which loads nothing.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib import rc_context

    written = io.StringIO()
    with figures.plain_text(), rc_context({"svg.hashsalt": picture.name}):
        unsaid = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        picture.draw().savefig(written, format="svg", metadata=unsaid, transparent=True)
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    # Ids are of the page, and pictures made alike have equal ones.
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{picture.name}-", svg)
    title, description = f"{picture.name}-title", f"{picture.name}-description"
    head, body = svg.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return (
        f'{head} role="img" aria-labelledby="{title}" aria-describedby="{description}">'
        f'<title id="{title}">{escape(picture.title)}</title>'
        f'<desc id="{description}">{escape(picture.description)}</desc>{body}'
    )
