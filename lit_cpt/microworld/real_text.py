"""Text and code that comes with Python itself: real language for a demonstration without any download."""

from __future__ import annotations

import json
import re
from pathlib import Path

PARAGRAPHS, FUNCTIONS, MODULES = 1500, 300, 60


def real_text() -> list[str]:
    """Paragraphs of the language reference, then functions of the standard library.

    The documents depend on the version of Python, so figures measured with them do not carry over.

    Raises:
        ImportError: This Python was built without its help texts.
    """
    return paragraphs()[:PARAGRAPHS] + functions()[:FUNCTIONS]


def paragraphs() -> list[str]:
    """ASCII paragraphs of ``help()`` topics, each cut at 300 characters."""
    try:
        from pydoc_data import topics
    except ImportError as error:
        raise ImportError(
            "this Python has no pydoc_data, which holds the texts of help(). "
            "Use a complete CPython, or build the world with with_real_text=False."
        ) from error
    texts = [part.strip() for topic in sorted(topics.topics) for part in topics.topics[topic].split("\n\n")]
    return [re.sub(r"\s+", " ", text)[:300] for text in texts if text.isascii() and len(text) > 80]


def functions() -> list[str]:
    """Top-level functions of 60 to 400 characters of the standard library, ASCII only."""
    library = Path(json.__file__).parent.parent
    sources = [path.read_text(errors="ignore") for path in sorted(library.glob("*.py"))[:MODULES]]
    found = [text for source in sources for text in re.findall(r"^def .*?(?=^\S)", source, re.M | re.S)]
    return [text for text in found if 60 < len(text) < 400 and text.isascii()]
