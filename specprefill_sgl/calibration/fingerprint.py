"""Tells drafts apart cheaply: heads that were calibrated on one say nothing of another."""

import hashlib
import os
from pathlib import Path

_SAMPLES, _BYTES = 16, 4096  # of each file of weights, evenly spread: its header is in the first


def fingerprint(folder: str | Path) -> str:
    """Hash of a model's weights by name, size and samples, 32 hexadecimal digits; the same for a copy.

    Raises
    ------
    FileNotFoundError
        If the folder holds no `.safetensors` or `.bin` files.
    """
    folder = Path(folder)
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no weights (*.safetensors, *.bin)")
    digest = hashlib.sha256()
    for file in files:
        size = os.path.getsize(file)  # of the file, where a hub's cache holds links
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as data:
            for sample in range(_SAMPLES):
                data.seek(max(size - _BYTES, 0) * sample // (_SAMPLES - 1))
                digest.update(data.read(_BYTES))
    return digest.hexdigest()[:32]


def local_folder(path: str) -> Path:
    """Where a model's files are: the folder, or that of a hub's name in the local cache.

    Raises
    ------
    FileNotFoundError
        If it is neither.
    """
    if os.path.isdir(path):
        return Path(path)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, local_files_only=True))
    except Exception as error:
        raise FileNotFoundError(f"{path} is no local folder, nor downloaded") from error
