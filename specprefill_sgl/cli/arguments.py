"""Types of command lines' values."""

import argparse


def ratios(text: str) -> tuple[float, ...]:
    """Numbers between 0 and 1, separated by commas."""
    found = tuple(map(float, text.split(",")))
    if not all(0 < ratio < 1 for ratio in found):
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, got {text}")
    return found


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value
