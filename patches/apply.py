"""Apply a series with the tools that people have: `patch`, `git apply`; copies of SGLang to apply it to."""

import shutil
import subprocess
from pathlib import Path

from patches.sources import CHECKOUT, SEAM_MODULE

FOLDER = Path(__file__).parent


def paths(release: str) -> list[Path]:
    """The patches of a release, in order."""
    folder = FOLDER / release
    return [folder / name for name in (folder / "series").read_text().split()]


def copy(package_folder: Path, folder: Path) -> Path:
    """Copy the package `sglang` as a checkout has it, `folder/python/sglang`; returns the folder that holds the package."""
    holder = folder / CHECKOUT
    shutil.copytree(package_folder / "sglang", holder / "sglang")  # compiled files stay valid: copies keep their times
    for metadata in package_folder.glob("sglang-*.dist-info"):  # what says which release it is
        shutil.copytree(metadata, holder / metadata.name)
    return holder


def check(release: str, checkout: Path) -> None:
    """`git apply --check`, of the whole series at once.

    Raises
    ------
    RuntimeError
        With what git said.
    """
    _run(["git", "apply", "--check", *map(str, paths(release))], checkout)


def apply(release: str, folder: Path, *, strip: int = 1, reverse: bool = False) -> None:
    """`patch`, one patch after the other; with `strip=2` in the folder that holds the package, as pip installed it.

    Raises
    ------
    RuntimeError
        A patch does not apply exactly where it was made.
    """
    series = paths(release)
    for path in reversed(series) if reverse else series:
        words = ["patch", f"-p{strip}", "--no-backup-if-mismatch", "--fuzz=0", *(["-R"] if reverse else []), "-i", str(path)]
        if "offset" in (said := _run(words, folder)):
            raise RuntimeError(f"{path.name} applies with an offset:\n{said}")


def same(folder: Path, other: Path) -> bool:
    """Whether two folders with a package `sglang` have the same Python files."""
    files = [{path.relative_to(one): path.read_bytes() for path in (one / "sglang").rglob("*.py")} for one in (folder, other)]
    return files[0] == files[1]


def changed_files(release: str) -> list[str]:
    """What a series changes, as paths in the folder that holds the package; the new module first."""
    text = "".join(path.read_text() for path in paths(release))
    names = {line.removeprefix(f"+++ b/{CHECKOUT}") for line in text.splitlines() if line.startswith("+++ b/")}
    return [SEAM_MODULE, *sorted(names - {SEAM_MODULE})]


def _run(words: list[str], folder: Path) -> str:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} in {folder}: {done.stdout}{done.stderr}")
    return done.stdout
