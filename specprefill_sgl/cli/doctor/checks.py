"""What a step finds: lines of a file, so that those found before a crash are there."""

from enum import StrEnum
from pathlib import Path

import msgspec

FILE = "checks.jsonl"


class Status(StrEnum):
    """Of a check; one that only measures cannot fail."""

    PASSED = "passed"
    FAILED = "FAILED"
    MEASURED = "measured"
    NOT_RUN = "not run"


class Check(msgspec.Struct, kw_only=True):
    """One line of the table.

    Attributes
    ----------
    step, name : str
    status : Status
    found : str
        What was measured; why it was not run; how it failed.
    wanted : str
        What it has to be.
    log : str
        The file that a report should have, in the folder of the run.
    """

    step: str
    name: str
    status: Status
    found: str
    wanted: str = ""
    log: str = ""


class Recorder:
    """Writes the checks of a step."""

    def __init__(self, step: str, folder: Path):
        self._step, self.folder = step, folder

    def holds(self, name: str, is_true: bool, found: object, wanted: str = "", log: Path | None = None) -> None:
        """A check that passes or fails."""
        self._add(name, Status.PASSED if is_true else Status.FAILED, found, wanted, log)

    def measured(self, name: str, found: object, wanted: str = "") -> None:
        """A figure to report."""
        self._add(name, Status.MEASURED, found, wanted, None)

    def not_run(self, name: str, why: str) -> None:
        """What this machine does not allow."""
        self._add(name, Status.NOT_RUN, why, "", None)

    def _add(self, name: str, status: Status, found: object, wanted: str, log: Path | None) -> None:
        where = "" if log is None else log.name
        check = Check(step=self._step, name=name, status=status, found=str(found), wanted=wanted, log=where)
        with (self.folder / FILE).open("ab") as file:
            file.write(msgspec.json.encode(check) + b"\n")


def read(folder: Path) -> list[Check]:
    """Everything found so far; the first line of the file is the provenance."""
    lines = (folder / FILE).read_bytes().splitlines()[1:]
    return [msgspec.json.decode(line, type=Check) for line in lines]
