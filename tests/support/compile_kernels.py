"""Compiles the scoring kernels for an H200 without one: a process of its own, since tests define them for the interpreter.

Prints a line per kernel: name, shared memory in bytes, registers of a thread, bytes of its stack, where registers spill.
"""

import re
import subprocess
import tempfile

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget

from specprefill_sgl.scoring import triton_scoring

H200 = GPUTarget("cuda", 90, 32)
TYPES = {
    "out": "*fp32",
    "partials": "*fp32",
    "sinks": "*bf16",
    "slots": "*i64",
    "starts": "*i64",
    "visible": "*i32",
    "counted": "*i32",
    "chosen": "*i32",
    "scaling": "fp32",
    "cap": "fp32",
}
ALIGNED = {"q_prompt", "q_vote", "q_head", "k_slot", "k_head", "split_tokens"}  # divisible by 16 in every real launch


def compile_for_h200(kernel, keys: str, constants: dict, num_warps: int):
    """Compile with the signature a launch with keys of the given Triton type has."""
    types = {**TYPES, "queries": f"*{keys}", "keys": f"*{keys}", **dict.fromkeys(constants, "constexpr")}
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    aligned = [i for i, (name, kind) in enumerate(signature.items()) if kind[0] == "*" or name in ALIGNED]
    hints = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = triton.compiler.ASTSource(kernel, signature, constants, hints)
    return triton.compile(source, target=H200, options={"num_warps": num_warps})


def resources(compiled) -> tuple[int, int]:
    """Registers and bytes of stack of a thread, from the compiled object."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"{name}:(\d+)", said)[1]) for name in ("REG", "STACK"))
    return registers, stack


def main() -> None:
    """Dtypes, head sizes, votes, caps, sinks and chosen heads that take different paths."""
    for keys, head_dim, group, votes, pool_kernel, choosy, capped, sunk in (
        ("bf16", 64, 8, 8, 13, False, False, True),
        ("bf16", 128, 7, 8, 13, False, True, False),
        ("fp16", 256, 2, 8, 63, False, False, False),
        ("fp32", 64, 1, 8, 13, False, True, True),
        ("bf16", 64, 1, 56, 31, True, False, False),
        ("bf16", 128, 1, 48, 31, True, True, True),
        ("fp16", 256, 1, 64, 63, True, False, True),
        ("fp32", 256, 8, 64, 63, False, True, True),
    ):
        sizes = triton_scoring.tile_sizes(votes, group, head_dim, pool_kernel, native=keys != "fp32")
        sizes |= {"capped": capped, "choosy": choosy}
        first = compile_for_h200(triton_scoring._partial_lse, keys, sizes, 4)
        sizes |= {"pool": pool_kernel, "paired": True, "max_splits": triton_scoring.MAX_SPLITS, "sunk": sunk}
        second = compile_for_h200(triton_scoring._pool, keys, sizes, 8)
        for compiled in (first, second):
            print(compiled.metadata.name, compiled.metadata.shared, *resources(compiled))


if __name__ == "__main__":
    main()
