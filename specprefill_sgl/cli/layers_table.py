"""`calibrate MODEL --layers`: what each number of first layers keeps, what it costs, and which to take."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from specprefill_sgl.calibration import first_layers
from specprefill_sgl.calibration.first_layers import Kept
from specprefill_sgl.calibration.kinds import Known
from specprefill_sgl.config import flag

_LEGEND = """f: k of all layers. bound: of the speed-up, 1 / (f + keep ratio), where each token costs the same.
overlap: share of what the whole model chooses that k layers choose too. found: share of the evidence that is kept.
heads: of the first k layers, calibrated by other prompts than those measured. last quarter: of these layers, all heads.
The last line: all layers, which vote as first layers do."""


def report(model: Any, tokenizer: Any, material: Sequence[Known], *, heads: int, ratios: Sequence[float], name: str) -> str:
    """A table for each keep ratio, and the proposal.

    Raises
    ------
    ValueError
        If the prompts do not hold their evidence, or are too few, or none of the first layers attends to a whole prompt.
    """
    readings = [first_layers.take(model, tokenizer, known) for known in tqdm(material, desc="prompts")]
    layers = model.config.get_text_config().num_hidden_layers
    below = first_layers.depths(readings[0], layers)
    chosen = first_layers.chosen_heads(readings, below, heads)
    tables = {}
    for ratio in ratios:
        pairs = tqdm(zip(readings, chosen, strict=True), desc=f"keep ratio {ratio:g}", total=len(readings))
        tables[ratio] = first_layers.mean(readings, [first_layers.kept(reading, below, own, ratio) for reading, own in pairs])
    tokens = sum(one.found.tokens for one in readings) / len(readings)
    about = f"{len(readings)} prompts of {tokens:.0f} tokens on average.\n{_LEGEND}"
    ks = list(below)
    return "\n\n".join([about, *(_table(ks, *one) for one in tables.items()), _proposal(ks, list(tables.values()), name)])


def _table(ks: Sequence[int], ratio: float, kept: Kept) -> str:
    lines = [
        f"keep ratio {ratio:g}; the whole model, with heads and lookahead, finds {kept.whole:.2f}",
        "                 |     heads      |  last quarter",
        "  k     f  bound | overlap  found | overlap  found",
    ]
    for k, row in zip(ks, kept.first.reshape(len(ks), 4), strict=True):
        cost = k / ks[-1]
        by_heads, by_quarter = ("{:7.2f} {:6.2f}".format(*row[at : at + 2]) for at in (0, 2))
        lines.append(f"{k:3d}  {cost:.2f}  {1 / (cost + ratio):5.2f} | {by_heads} | {by_quarter}")
    return "\n".join(lines)


def _proposal(ks: Sequence[int], tables: Sequence[Kept], name: str) -> str:
    """By the evidence with heads; beside it what overlap would say, and what there is to gain without heads."""
    means = np.mean([kept.first for kept in tables], axis=0)  # over keep ratios

    def fewest(voters: int, share: int) -> tuple[int, float]:
        good = dict(zip(ks, means[:, voters, share].tolist(), strict=True))
        k = first_layers.plateau({k: value for k, value in good.items() if k < ks[-1]}, ks[-1])
        return k, good[k]

    (k, found), (same, overlap), (plain, found_plain) = fewest(0, 1), fewest(0, 0), fewest(1, 1)
    whole = np.mean([kept.whole for kept in tables])
    return (
        f"Proposed: {flag('method')} early-layers {flag('layers')} {k} {flag('heads')} heads.json\n"
        f"with the file of: calibrate {name} --layers {k} --out heads.json\n"
        f"That finds {found:.2f}, the whole model {whole:.2f}. By overlap: {same} layers, {overlap:.2f}. "
        f"Without heads: {plain} layers find {found_plain:.2f}.\n"
        "Means over keep ratios; the fewest layers that, like the next two, are within 95 % of the best up to 3/4 of all."
    )
