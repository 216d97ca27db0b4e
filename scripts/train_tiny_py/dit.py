"""The miniature's text encoder and experts: transformers' UMT5EncoderModel, diffusers' WanTransformer3DModel."""

from __future__ import annotations

import torch
from diffusers import WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

TEXT_DIM = 96
TEXT_ROWS = 512  # rows of the text embedding the experts attend to, most of them padding
TOKENS = 24  # rows computed in training: prompt tokens and at least one row of padding


def new_text_encoder(vocab: int, seed: int) -> UMT5EncoderModel:
    """A fresh text encoder: 2 layers, 4 heads of 24."""
    torch.manual_seed(seed)
    config = UMT5Config(
        vocab_size=vocab,
        d_model=TEXT_DIM,
        d_kv=24,
        d_ff=192,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
    )
    return UMT5EncoderModel(config)


def new_expert(seed: int) -> WanTransformer3DModel:
    """A fresh expert, 6 layers of 4 heads of 32, that starts by predicting nothing."""
    torch.manual_seed(seed)
    expert = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=36,
        out_channels=16,
        text_dim=TEXT_DIM,
        freq_dim=256,
        ffn_dim=256,
        num_layers=6,
        cross_attn_norm=True,
    )
    torch.nn.init.zeros_(expert.proj_out.weight)
    return expert


class PlainAttention:
    """WanAttnProcessor's arithmetic with plain matrix products, and `text_bias` added to cross-attention.

    On CPUs the fused kernel's backward pass is several times slower than this at 80 tokens.
    Cross-attention sees the real tokens and a few padding rows that stand for all 512:
    padding rows are equal, so a row that counts c times gets log(c) added to its scores.
    """

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        """hidden_states [B, N, C], encoder_hidden_states [B, L, C] or None; returns [B, N, C]."""
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(source)), attn.to_v(source)
        query, key, value = (x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value))
        if rotary_emb is not None:
            cos, sin = (x.transpose(1, 2) for x in rotary_emb)
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        scores = query.to(value.dtype) @ key.to(value.dtype).mT * query.shape[-1] ** -0.5
        if encoder_hidden_states is not None:
            scores = scores + attn.text_bias
        mixed = scores.float().softmax(-1).to(value.dtype) @ value
        return attn.to_out[0](mixed.transpose(1, 2).flatten(2))


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of adjacent pairs; tables [1, 1, N, head_dim] repeat every angle twice."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((-odd, even), -1).flatten(-2)
    return x * cos + turned * sin


def make_trainable(expert: WanTransformer3DModel, batch: int) -> None:
    """Make an expert fast to train on TOKENS rows of text; `set_text_bias` says how often each counts."""
    for block in expert.blocks:
        block.attn2.register_buffer("text_bias", torch.zeros(batch, 1, 1, TOKENS), persistent=False)
        block.attn1.set_processor(PlainAttention())
        block.attn2.set_processor(PlainAttention())


def set_text_bias(expert: WanTransformer3DModel, mask: torch.Tensor) -> None:
    """Score offsets for a batch of prompts whose real tokens are 1 in `mask` [B, TOKENS]."""
    real = mask.sum(1, keepdim=True)
    copies = (TEXT_ROWS - real) / (TOKENS - real)
    bias = torch.where(mask.bool(), torch.zeros(()), copies.log())[:, None, None, :]
    for block in expert.blocks:
        block.attn2.text_bias.copy_(bias)


def embed(encoder: UMT5EncoderModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Text embeddings [B, L, 96] of token ids [B, L], zero where the mask is 0."""
    return encoder(ids, attention_mask=mask).last_hidden_state * mask[..., None]


@torch.no_grad()
def check(expert: WanTransformer3DModel, plain: WanTransformer3DModel) -> None:
    """Assert that a trainable expert computes what diffusers computes over 512 rows of text."""
    plain.load_state_dict(expert.state_dict())
    batch = len(expert.blocks[0].attn2.text_bias)
    x, t = torch.randn(batch, 36, 5, 8, 8), torch.randint(1000, (batch,))
    mask = (torch.arange(TOKENS) < torch.randint(1, TOKENS - 1, (batch, 1))).long()
    text = torch.randn(batch, TOKENS, TEXT_DIM) * mask[..., None]
    set_text_bias(expert, mask)
    padded = torch.nn.functional.pad(text, (0, 0, 0, TEXT_ROWS - TOKENS))
    ours, theirs = expert(x, t, text).sample, plain(x, t, padded).sample
    assert torch.allclose(ours, theirs, atol=1e-4), (ours - theirs).abs().max()
