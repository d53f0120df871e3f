"""A chat template that renders messages where they are, and which tokens of the prompt are whose."""

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def message(role: str, letter: str, count: int) -> dict:
    """A message of so many words of one letter."""
    return {"role": role, "content": f" {letter}" * count}


def span(tokenizer, messages: list[dict], index: int) -> range:
    """Token offsets of a message, from the rendered text and the tokenizer's own character offsets."""
    texts = [f"<{m['role']}>{m['content']}</>" for m in messages]
    whole = "".join(texts) + "<assistant>"
    start = len("".join(texts[:index]))
    encoded = tokenizer(whole, return_offsets_mapping=True, add_special_tokens=False)
    inside = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < start + len(texts[index]) and b > start]
    return range(inside[0], inside[-1] + 1)
