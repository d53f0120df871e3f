"""LazyLLM (arXiv 2407.14057): tokens are dropped inside the target's own forward, from chosen layers on."""
