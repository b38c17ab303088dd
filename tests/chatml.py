"""A tokenizer over bytes with a ChatML template, made without downloads."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(tags=("<pad>", "<act>", "<end>"), template: str | None = None) -> PreTrainedTokenizerFast:
    vocab = {
        token: index for index, token in enumerate([*tags, *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    inner = Tokenizer(models.BPE(vocab, []))
    inner.pre_tokenizer, inner.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=tags[0], eos_token=tags[-1], extra_special_tokens=list(tags[1:-1])
    )
    made.chat_template = template
    return made


CHAT_TOKENIZER = tokenizer(("<pad>", "<|im_start|>", "<|im_end|>"), CHATML)
