"""What a reply and the server say about Speculative Prefill."""
