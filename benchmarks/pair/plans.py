"""How long each model trains: short sequences first, then longer ones. Both plans fit two CPU cores within two hours."""

from benchmarks.pair.train import Run, Stage

RUNS = {
    "target": [
        Run(
            4e-4,
            [
                Stage(200, 16, 256),
                Stage(700, 4, 1024),
                Stage(300, 2, 2048, "lists"),
                Stage(200, 1, 4096, "lists"),
                Stage(40, 1, 8192),
            ],
        ),
        Run(3e-4, [Stage(200, 2, 2048, "lists"), Stage(200, 1, 4096, "lists"), Stage(60, 1, 8192, "lists")]),
    ],
    "draft": [Run(1.5e-3, [Stage(300, 32, 256), Stage(400, 8, 1024), Stage(250, 4, 4096), Stage(50, 2, 8192)])],
}
