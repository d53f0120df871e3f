"""`python -m patches.build [RELEASE ...]`: write the series anew, of every tested release that is here or of those named."""

import sys
from pathlib import Path

from patches import series, sources
from specprefill_sgl.compat import releases

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
    here = [one for one in releases.TESTED if one == sources.installed_release() or sources.is_fetched(one)]
    for one in sys.argv[1:] or here:
        print(f"patches/{one}: {write(one)} patches")
