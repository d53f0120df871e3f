"""How long each model trains: short sequences first, then longer ones. Both plans fit two CPU cores within two hours."""

from benchmarks.pair.train import Stage

RATE = {"target": 4e-4, "draft": 1.5e-3}
STAGES = {
    "target": [
        Stage(200, 16, 256),
        Stage(700, 4, 1024),
        Stage(300, 2, 2048, "lists"),
        Stage(200, 1, 4096, "lists"),
        Stage(40, 1, 8192),
    ],
    "draft": [Stage(300, 32, 256), Stage(400, 8, 1024), Stage(250, 4, 4096), Stage(50, 2, 8192)],
}
