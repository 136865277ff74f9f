"""The gym's network as a checkpoint of transformers: a GPT-2 of one layer whose weights are set, so that commands read it.

Attention without queries and keys is a mean over all tokens; the layer behind it is the tanh of that mean and of the
length, mixed by the weights of a `Backbone`. Large constants dominate what layer norm divides by, so that it changes
little. Phrases are read word by word, and the prompt takes part in the mean, so scores differ a little from `proxy`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from gym.policy import CAP
from gym.proxy import SHARE_SCALE, VECTOR, WIDTH, Backbone
from gym.vocabulary import CLASSES, KIND, WORDS

START, END, PAD, UNKNOWN = SPECIAL = ("<start>", "<end>", "<pad>", "<other>")
MAX_TOKENS: Final = 4 * CAP  # a phrase has at most five words, and few words are phrases
_TEMPLATE: Final = (
    "{% for m in messages %}<start>{{ m['content'] }}<end>{% endfor %}{% if add_generation_prompt %}<start>{% endif %}"
)
# Columns of the hidden state: word, mean word, features, constants, and the mark of a start with its mean.
_WORD, _MEAN, _FEATURES = slice(0, VECTOR), slice(VECTOR, 2 * VECTOR), slice(2 * VECTOR, 2 * VECTOR + WIDTH)
_CONSTANT: Final = 2 * VECTOR + WIDTH
_MARK, _LENGTH = _CONSTANT + 4, _CONSTANT + 5
_SIZE: Final = _CONSTANT + 8
_LARGE: Final = 30.0
_STD: Final = _LARGE * (4 / _SIZE) ** 0.5
_N_PROMPT: Final = 16  # tokens beside the response, two of which have the mark
_MEAN_LENGTH: Final = 40.0


def write_network(network: Backbone, folder: Path) -> None:
    """Write the network and its tokenizer, as an SFT model without a head."""
    tokenizer, vectors_VE = _tokenizer(network)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=MAX_TOKENS, n_embd=_SIZE, n_layer=1, n_head=1, n_inner=WIDTH,
        activation_function="tanh", embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    body = model.transformer
    layer = body.h[0]
    with torch.no_grad():
        for module in (body.wpe, layer.attn.c_attn, layer.attn.c_proj, layer.mlp.c_fc, layer.mlp.c_proj):
            for parameter in module.parameters():
                parameter.zero_()
        _set_embedding(body.wte.weight, torch.tensor(vectors_VE), tokenizer.convert_tokens_to_ids(START))
        _set_attention(layer.attn)
        _set_features(layer.mlp, network)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _set_embedding(weight_VD: torch.Tensor, vectors_VE: torch.Tensor, start: int) -> None:
    weight_VD.zero_()
    weight_VD[:, _WORD] = vectors_VE.float()
    weight_VD[start, _MARK] = 1.0
    weight_VD[:, _CONSTANT : _CONSTANT + 4] = torch.tensor([_LARGE, -_LARGE, _LARGE, -_LARGE])


def _set_attention(attention: torch.nn.Module) -> None:
    """Values are the word and the mark; their means go to `_MEAN` and `_LENGTH`."""
    values = attention.c_attn.weight[:, 2 * _SIZE :]
    values.copy_(torch.eye(_SIZE) * _STD)
    for source, target in zip(range(VECTOR), range(VECTOR, 2 * VECTOR), strict=True):
        attention.c_proj.weight[source, target] = SHARE_SCALE
    attention.c_proj.weight[_MARK, _LENGTH] = -(_MEAN_LENGTH + _N_PROMPT)


def _set_features(mlp: torch.nn.Module, network: Backbone) -> None:
    """The tanh of the mixed mean and of the length, which is about the log of words over the mean length."""
    fc, out = mlp.c_fc, mlp.c_proj
    fc.weight[_MEAN] = torch.tensor(network.mix_ED).float() * _STD
    length_D = torch.tensor(network.length_D).float()
    fc.weight[_LENGTH] = length_D * _STD / 2
    fc.bias.copy_(torch.tensor(network.bias_D).float() + length_D)
    out.weight[:, _FEATURES] = torch.eye(WIDTH) * _STD


def _tokenizer(network: Backbone) -> tuple[PreTrainedTokenizerFast, np.ndarray]:
    """Words of the language one by one, and the vector of each: that of the word, else of the first phrase with it."""
    rows = sorted(range(len(WORDS)), key=lambda i: (" " in WORDS[i].strip(), list(CLASSES).index(KIND[i]), i))
    normalizer = normalizers.BertNormalizer(clean_text=False, strip_accents=False, lowercase=False)
    cut = pre_tokenizers.BertPreTokenizer()
    vector_of: dict[str, np.ndarray] = {}
    for row in rows:
        for word, _ in cut.pre_tokenize_str(normalizer.normalize_str(WORDS[row])):
            vector_of.setdefault(word, network.vectors_VE[row])
    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *vector_of))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    core.normalizer, core.pre_tokenizer = normalizer, cut
    core.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=END, pad_token=PAD, unk_token=UNKNOWN, chat_template=_TEMPLATE
    )
    return tokenizer, np.stack([*(np.zeros(VECTOR) for _ in SPECIAL), *vector_of.values()])
