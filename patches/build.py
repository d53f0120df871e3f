"""`python -m patches.build [RELEASE ...]`: write the series anew, of the installed release or of those named."""

import sys
from pathlib import Path

from patches import series, sources

FOLDER = Path(__file__).parent


def write(release: str) -> int:
    """Replace a release's series; returns the number of its patches."""
    folder = FOLDER / release
    files = series.build(release)
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for name, text in files.items():
        (folder / name).write_text(text)
    return len(files) - 1


if __name__ == "__main__":
    for one in sys.argv[1:] or [sources.installed_release()]:
        print(f"patches/{one}: {write(one)} patches")
