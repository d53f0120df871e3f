"""The tokenizer and chat template in a GGUF's metadata as transformers' fast tokenizer."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

_CONTROL = 3  # GGUF's token type of <|im_start|> and its like


def tokenizer(fields: dict) -> PreTrainedTokenizerFast:
    """Byte-level BPE of the pre-tokenizer `smollm`: every digit is a token of its own; nothing is added to a text."""
    kind = (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"], fields["tokenizer.ggml.add_bos_token"])
    if kind != ("gpt2", "smollm", False):
        raise ValueError(f"the tokenizer is {kind}, and only gpt2 with smollm and no first token can be converted")
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    built = Tokenizer(models.BPE({token: at for at, token in enumerate(tokens)}, merges))
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),  # GPT-2's pattern
        ]
    )
    built.decoder = decoders.ByteLevel()
    built.post_processor = processors.ByteLevel(trim_offsets=True)
    types = fields["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    built.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=built,
        bos_token=tokens[fields["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[fields["tokenizer.ggml.eos_token_id"]],
        unk_token=tokens[fields["tokenizer.ggml.unknown_token_id"]],
        pad_token=tokens[fields["tokenizer.ggml.padding_token_id"]],
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = fields["tokenizer.chat_template"]
    return wrapped
