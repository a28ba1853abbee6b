"""Random Llamas of two layers that end when they are told to, and texts for them to speak."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llasa_core.codecs.mini import MiniCodecConfig
from llasa_core.synthesis.decoding import Answers

TEXT, CODES = 40, 100  # ids 0..39 are text, 40..47 markers, 48..147 codes; END is 45
ANSWERS = Answers(first=48, stop=148, end=45)
TINY_CODEC = MiniCodecConfig(
    width=64,
    encoder_layers=1,
    decoder_layers=1,
    heads=2,
    encoder_expansion=1,
    decoder_expansion=1,
    bottleneck_extra=32,
)
TEXTS = (
    "Call the office.",
    "Red lamp.",
    "Please bring four apples.",
    "We meet Alice.",
    "At seven.",
    "The hall.",
)


def tiny_llama(vocabulary_size, end, end_logit, context=256):
    """Feature 0 of every hidden state is positive whatever the tokens, and weighs `end_logit` for
    the token `end`.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 3.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = layer.mlp.down_proj.weight[0] = 0.0
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[end, 0] = end_logit
    return model


def toy_llama(end_logit=0.0):
    """A model of `ANSWERS`: 40 text ids, the markers, 100 codes, a context of 128."""
    return tiny_llama(TEXT + 8 + CODES, ANSWERS.end, end_logit, context=128)


def speaking_llama(vocabulary, end_logit=8.0):
    """A model of the vocabulary of a merged tokenizer."""
    return tiny_llama(vocabulary.size, vocabulary.speech_generation_end, end_logit)
