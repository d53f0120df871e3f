"""What can go wrong between the package index and a folder that serves; every message is one sentence."""


class RealModelError(RuntimeError):
    """There is no real model to serve."""


class NoSuchPackageError(RealModelError):
    """The package index answered, and does not have the package."""
