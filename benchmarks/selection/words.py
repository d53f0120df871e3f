"""Common nouns and first names for statements; each split has its own."""

from random import Random

from benchmarks.quality import forms

_NOUNS = """
amber anchor apple arrow autumn badge banner barrel basket beacon blanket blossom bottle bridge bronze bucket butter button
cabin camera candle canyon castle cedar chapel cherry circle coffee copper corner cotton cradle crystal curtain desert diamond
dragon engine feather fiddle finger flower forest fossil garden garlic ginger glacier granite guitar hammer harbor helmet honey
island jacket jungle kettle kitchen ladder lantern leather lemon library linen lumber magnet mango marble meadow medal mirror
morning mountain museum needle olive orange orchard oyster palace paper parrot pebble pencil pepper piano pillow planet pocket
powder prairie pumpkin puzzle quartz rabbit railway ribbon river rocket saddle salmon sandal shadow shelter silver spider spring
statue summer temple thunder ticket timber tractor tunnel turtle umbrella valley velvet village violin wagon walnut whistle
window winter wizard yellow
""".split()  # noqa: SIM905


def nouns(random: Random, many: int, *, held_out: bool) -> list[str]:
    """Different nouns in random order."""
    return random.sample(_NOUNS[int(held_out) :: 2], many)


def names(*, held_out: bool) -> list[str]:
    """First names."""
    return forms.NAMES[int(held_out) :: 2]
