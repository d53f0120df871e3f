"""Private models on the target's devices: runner, pools, prefix cache, recorded queries, groups of prompts."""
