"""`playground`: a local page on which a document can be asked dense and sparse, and that shows what was kept of it."""

import argparse

_EVERYWHERE = ("0.0.0.0", "::")


def main(argv: list[str]) -> None:
    """Serves the page until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m specprefill_sgl playground", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:30000", help="a server started with --spec-prefill")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve the page on; whoever reaches it can ask")
    parser.add_argument("--port", type=int, default=30080)
    parser.add_argument("--tokenizer", help="default: the path of the server's model")
    arguments = parser.parse_args(argv)
    import uvicorn

    from specprefill_sgl.playground.server import app

    names = ["*"] if arguments.host in _EVERYWHERE else sorted({arguments.host, "127.0.0.1", "localhost"})
    made = app(arguments.url.rstrip("/"), names, arguments.tokenizer)
    print(f"playground: http://{arguments.host}:{arguments.port} asks {arguments.url}; Ctrl-C ends it", flush=True)
    uvicorn.run(made, host=arguments.host, port=arguments.port, log_level="warning")
