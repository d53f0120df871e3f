"""The two architectures: Llama, one head per key head, tied embeddings, a very large rotary base (train short, finish long)."""

from dataclasses import dataclass

from benchmarks.pair import vocabulary

HEAD = 64
CONTEXT = 16_384
ROTARY_BASE = 1e10


@dataclass(frozen=True)
class Shape:
    """Sizes of one model.

    When training starts, `identity` of the `hidden` dimensions hold a token's own embedding, and heads look back 1 to `offsets`
    tokens.
    """

    hidden: int
    layers: int
    heads: int
    intermediate: int
    identity: int
    offsets: int
    seed: int

    def config(self):
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=vocabulary.SIZE,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            head_dim=HEAD,
            intermediate_size=self.intermediate,
            max_position_embeddings=CONTEXT,
            rope_parameters={"rope_type": "default", "rope_theta": ROTARY_BASE},
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        )


SHAPES = {
    "target": Shape(hidden=384, layers=4, heads=6, intermediate=1024, identity=192, offsets=4, seed=1),
    "draft": Shape(hidden=192, layers=2, heads=3, intermediate=512, identity=96, offsets=3, seed=2),
}
