"""Model pairs for speed, where weights do not matter: configurations as files, weights made up by `--load-format dummy`."""

import json
import shutil
from pathlib import Path

from benchmarks import launch

_MODELS = Path(__file__).parent / "models"
TOKENIZER = launch.TARGET  # any will do: prompts are ids that both vocabularies have


def names() -> list[str]:
    """Configurations there are."""
    return sorted(path.stem for path in _MODELS.glob("*.json"))


def write(name: str, folder: Path, first_layers: int | None = None) -> tuple[Path, Path]:
    """Directories of the target and the draft, as Hugging Face lays them out, without weights.

    With `first_layers` the draft is the target with so many layers: what early-layers reads with.
    """
    pair = json.loads((_MODELS / f"{name}.json").read_text())
    if first_layers is not None:
        pair["draft"] = {**pair["target"], "num_hidden_layers": first_layers}
    for role in ("target", "draft"):
        (folder / role).mkdir(parents=True, exist_ok=True)
        (folder / role / "config.json").write_text(json.dumps(pair[role]))
        for file in TOKENIZER.glob("*token*.json"):
            shutil.copy(file, folder / role)
    return folder / "target", folder / "draft"
