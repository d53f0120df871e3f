"""Speculative Prefill for SGLang (arXiv 2502.02789).

Importing this package imports neither torch nor sglang; SGLang finds it through the entry points `specprefill` (plugin)
and `specprefill_cpu` (platform).
"""

__version__ = "0.1.0"
