"""What the page's parts share: a table, a word for what is not there."""

import re
from html import escape

NOT_MEASURED = '<span aria-hidden="true">&ndash;</span><span class="hidden">not measured</span>'


def missing(text: str) -> str:
    """Why something is not there, and how to get it."""
    return f'<p class="missing">{escape(text)}</p>'


def table_html(explained: str, head: str, body: str, name: str, kind: str = "") -> str:
    """A table that scrolls in itself where the page is narrow; all but `head` and `body` is escaped."""
    described = f"about-{re.sub('[^a-z0-9]+', '-', name.lower())}"
    name = escape(name)
    # What scrolls must be reachable by keyboard, and a region needs a name.
    return (
        f'<p class="quiet" id="{described}">{escape(explained)}</p>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{name}, table">'
        f'<table class="{kind}" aria-describedby="{described}"><caption class="hidden">{name}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
