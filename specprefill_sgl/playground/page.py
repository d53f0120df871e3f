"""The page: one file each of HTML, CSS and JavaScript, which need nothing else; or all in one, with what it is to show."""

import json
from importlib.resources import files
from typing import Any

STYLE, SCRIPT = "playground.css", "playground.js"
_MARK = '<script type="application/json" id="explained"></script>'


def asset(name: str) -> str:
    """The text of a file of the page."""
    return files(__package__).joinpath("assets", name).read_text(encoding="utf-8")


def standalone(explained: dict[str, Any]) -> str:
    """One file that shows a prompt's chunks without a server.

    Parameters
    ----------
    explained : dict
        From `explained.plain`.
    """
    data = json.dumps(explained).replace("<", "\\u003c")  # no text of a prompt may end the element
    page = asset("index.html").replace(_MARK, _MARK.replace("></script", f">{data}</script"))
    page = page.replace(f'<link rel="stylesheet" href="{STYLE}">', f"<style>{asset(STYLE)}</style>")
    return page.replace(f'<script src="{SCRIPT}" defer></script>', f"<script type=module>{asset(SCRIPT)}</script>")
