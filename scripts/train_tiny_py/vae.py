"""The causal video autoencoder: diffusers' AutoencoderKLWan, computed a whole clip at a time.

diffusers encodes and decodes in chunks with feature caches. The functions here compute the
same numbers (asserted by `check`) in one pass per layer, in bfloat16 where asked, which is
what makes training on two cores possible.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanAttentionBlock,
    WanCausalConv3d,
    WanResample,
    WanResidualBlock,
)

BASE_DIM = 14


def new_vae(seed: int) -> AutoencoderKLWan:
    """A fresh autoencoder whose residual branches start silent and whose clips start as pictures.

    Temporal taps before the current frame start at zero and the temporal resamplers start
    as pass-through, so what single images teach carries over to clips.
    """
    torch.manual_seed(seed)
    vae = AutoencoderKLWan(base_dim=BASE_DIM)
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, WanResidualBlock):
                module.conv2.weight.zero_()
                module.conv2.bias.zero_()
            if isinstance(module, WanAttentionBlock):
                module.proj.weight.zero_()
                module.proj.bias.zero_()
            if isinstance(module, WanCausalConv3d):
                module.weight[:, :, :-1] = 0
            if isinstance(module, WanResample) and hasattr(module, "time_conv"):
                eye = torch.eye(module.dim)
                copies = module.time_conv.out_channels // module.dim
                module.time_conv.weight[:, :, -1, 0, 0] = eye.repeat(copies, 1)
                module.time_conv.bias.zero_()
        # Only the mean is used: the log-variance half is constant.
        vae.quant_conv.weight[16:] = 0
        vae.quant_conv.bias[16:] = -6
    return vae


@torch.compile(dynamic=False)
def norm(x: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """RMS norm over channels, as WanRMS_norm: L2-normalise, times sqrt(channels) gamma."""
    y = x.float()
    y = y * torch.rsqrt(y.square().sum(1, keepdim=True) + 1e-12) * math.sqrt(x.shape[1])
    return (y * gamma).to(x.dtype)


@torch.compile(dynamic=False)
def norm_silu(x: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """`norm`, then SiLU."""
    y = x.float()
    y = y * torch.rsqrt(y.square().sum(1, keepdim=True) + 1e-12) * math.sqrt(x.shape[1])
    return F.silu(y * gamma).to(x.dtype)


def conv(layer: WanCausalConv3d, x: torch.Tensor) -> torch.Tensor:
    """A causal convolution over a whole clip [B, C, T, H, W]; a single frame meets the last tap only."""
    before, edge = layer._padding[4], layer._padding[0]
    weight, bias = layer.weight.to(x.dtype), layer.bias.to(x.dtype)
    if x.shape[2] == 1 and (before or layer.kernel_size[0] == 1):
        frame = x[:, :, 0].contiguous(memory_format=torch.channels_last)
        return F.conv2d(frame, weight[:, :, -1], bias, padding=edge).unsqueeze(2)
    x = F.pad(x, (0, 0, 0, 0, before, 0)) if before else x
    x = x.contiguous(memory_format=torch.channels_last_3d)
    return F.conv3d(x, weight, bias, stride=layer.stride, padding=(0, edge, edge))


def each_frame(function, x: torch.Tensor) -> torch.Tensor:
    """Apply a picture function to every frame of a clip."""
    b, c, t, h, w = x.shape
    y = function(x.permute(0, 2, 1, 3, 4).reshape(b * t, c, h, w))
    return y.view(b, t, *y.shape[1:]).permute(0, 2, 1, 3, 4)


def residual(block: WanResidualBlock, x: torch.Tensor) -> torch.Tensor:
    """norm, SiLU, conv, twice, plus the shortcut."""
    shortcut = conv(block.conv_shortcut, x) if block.in_dim != block.out_dim else x
    y = conv(block.conv1, norm_silu(x, block.norm1.gamma))
    return conv(block.conv2, norm_silu(y, block.norm2.gamma)) + shortcut


def attend(block: WanAttentionBlock, x: torch.Tensor) -> torch.Tensor:
    """Single-head attention within every frame."""

    def frames(y: torch.Tensor) -> torch.Tensor:
        n, c, h, w = y.shape
        y = norm(y, block.norm.gamma).flatten(2).mT
        qkv = F.linear(y, block.to_qkv.weight.flatten(1).to(y.dtype), block.to_qkv.bias.to(y.dtype))
        q, k, v = qkv.chunk(3, -1)
        y = (q @ k.mT / math.sqrt(c)).softmax(-1) @ v
        y = F.linear(y, block.proj.weight.flatten(1).to(y.dtype), block.proj.bias.to(y.dtype))
        return y.mT.reshape(n, c, h, w)

    return x + each_frame(frames, x)


def resample(layer: WanResample, x: torch.Tensor) -> torch.Tensor:
    """Spatial resampling by 2, and temporal where the layer has it; the first frame stays single."""
    kernel = layer.resample[1]
    weight, bias = kernel.weight.to(x.dtype), kernel.bias.to(x.dtype)
    if layer.mode == "upsample3d" and x.shape[2] > 1:
        b, c, t, h, w = x[:, :, 1:].shape
        more = conv(layer.time_conv, x[:, :, 1:]).reshape(b, 2, c, t, h, w)
        more = more.permute(0, 2, 3, 1, 4, 5).reshape(b, c, 2 * t, h, w)
        x = torch.cat([x[:, :, :1], more], 2)
    if layer.mode.startswith("upsample"):
        return each_frame(
            lambda y: F.conv2d(F.interpolate(y, scale_factor=2.0, mode="nearest"), weight, bias, padding=1), x
        )
    x = each_frame(lambda y: F.conv2d(F.pad(y, (0, 1, 0, 1)), weight, bias, stride=2), x)
    if layer.mode == "downsample3d" and x.shape[2] > 1:
        x = torch.cat([x[:, :, :1], conv(layer.time_conv, x)], 2)
    return x


def run(layers, x: torch.Tensor) -> torch.Tensor:
    """Layers of any kind, in order."""
    kinds = {WanResidualBlock: residual, WanAttentionBlock: attend, WanResample: resample}
    for layer in layers:
        x = kinds[type(layer)](layer, x)
    return x


def middle(block) -> list:
    """The middle block's layers in their order."""
    return [block.resnets[0], block.attentions[0], block.resnets[1]]


def encode(vae: AutoencoderKLWan, clip: torch.Tensor) -> torch.Tensor:
    """Mean latents [B, 16, 1 + (T-1)/4, H/8, W/8] (not normalised) of clips [B, 3, T, H, W] in [-1, 1]."""
    encoder = vae.encoder
    x = conv(encoder.conv_in, clip)
    x = run([*encoder.down_blocks, *middle(encoder.mid_block)], x)
    x = conv(encoder.conv_out, norm_silu(x, encoder.norm_out.gamma))
    return conv(vae.quant_conv, x)[:, :16]


def decode(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Clips [B, 3, T, H, W], not clamped, of latents as `encode` gives them."""
    decoder = vae.decoder
    x = conv(decoder.conv_in, conv(vae.post_quant_conv, latents))
    x = run(middle(decoder.mid_block), x)
    for block in decoder.up_blocks:
        x = run([*block.resnets, *(block.upsamplers or [])], x)
    return conv(decoder.conv_out, norm_silu(x, decoder.norm_out.gamma))


@torch.no_grad()
def check(vae: AutoencoderKLWan) -> None:
    """Assert that this file computes what diffusers computes, in float32."""
    clip = torch.rand(1, 3, 17, 32, 32) * 2 - 1
    ours, theirs = encode(vae, clip), vae.encode(clip).latent_dist.mode()
    assert torch.allclose(ours, theirs, atol=1e-4), (ours - theirs).abs().max()
    ours, theirs = decode(vae, theirs).clamp(-1, 1), vae.decode(theirs).sample
    assert torch.allclose(ours, theirs, atol=1e-4), (ours - theirs).abs().max()
