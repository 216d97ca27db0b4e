"""README: the golden cases: small models that together cover odd head counts, head sizes 24, 44 and 128,
1, 5, 9 and 17 frames, pictures that are not square, both shifts in use and a sharded checkpoint."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One case. ``dit``, ``vae`` and ``umt5`` are keyword arguments of the diffusers/transformers classes."""

    name: str
    frames: int
    height: int
    width: int
    seed: int
    shift: float
    guide: tuple[float, float]  # (low noise, high noise)
    dit: dict
    vae: dict
    umt5: dict
    float_frames: tuple[int, ...]  # frames of the decoded video that are also kept as float32
    detail: bool = False  # keep the hidden states after block 0
    steps_kept: bool = False  # keep every step of the whole run
    max_shard_size: str | None = None

    @property
    def latent_frames(self) -> int:
        return (self.frames - 1) // 4 + 1

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        return (16, self.latent_frames, self.height // 8, self.width // 8)


@dataclass(frozen=True)
class VaeCase:
    """A VAE alone, of another kind than A14B's."""

    name: str
    frames: int
    height: int
    width: int
    vae: dict
    float_frames: tuple[int, ...]


STEPS = 12
VOCABULARY = 1024


def _dit(heads, head_dim, layers, ffn, freq, text):
    return dict(
        patch_size=(1, 2, 2), num_attention_heads=heads, attention_head_dim=head_dim, in_channels=36,
        out_channels=16, text_dim=text, freq_dim=freq, ffn_dim=ffn, num_layers=layers, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", eps=1e-6, image_dim=None, added_kv_proj_dim=None,
        rope_max_seq_len=1024, pos_embed_seq_len=None,
    )  # fmt: skip


def _vae(base, dim_mult, blocks):
    return dict(
        base_dim=base, z_dim=16, dim_mult=dim_mult, num_res_blocks=blocks,
        temperal_downsample=[False, True, True],
    )  # fmt: skip


def _umt5(dim, heads, d_kv, ff, layers):
    return dict(vocab_size=VOCABULARY, d_model=dim, num_heads=heads, d_kv=d_kv, d_ff=ff, num_layers=layers)


_A = dict(
    dit=_dit(heads=3, head_dim=44, layers=2, ffn=264, freq=64, text=48),
    vae=_vae(base=8, dim_mult=[1, 2, 4, 4], blocks=2),
    umt5=_umt5(dim=48, heads=3, d_kv=16, ff=96, layers=2),
)

CASES = [
    Case(name="a", frames=9, height=48, width=80, seed=42, shift=5.0, guide=(3.5, 3.5),
         float_frames=(0, 1, 8), detail=True, **_A),
    Case(name="b", frames=5, height=64, width=32, seed=7, shift=5.0, guide=(3.0, 4.0),
         dit=_dit(heads=1, head_dim=128, layers=2, ffn=200, freq=32, text=32),
         vae=_vae(base=12, dim_mult=[1, 2, 4, 4], blocks=2),
         umt5=_umt5(dim=32, heads=5, d_kv=8, ff=80, layers=3),
         float_frames=(0, 1, 2, 3, 4), steps_kept=True),
    Case(name="c", frames=17, height=32, width=48, seed=1234567890123, shift=3.0, guide=(3.5, 3.5),
         dit=_dit(heads=5, head_dim=24, layers=3, ffn=160, freq=48, text=40),
         vae=_vae(base=8, dim_mult=[1, 2, 2, 4], blocks=1),
         umt5=_umt5(dim=40, heads=2, d_kv=20, ff=72, layers=2),
         float_frames=(0, 1, 4, 5, 16)),
    Case(name="d", frames=1, height=48, width=80, seed=0, shift=5.0, guide=(3.5, 3.5),
         float_frames=(0,), max_shard_size="200KB", **_A),
]  # fmt: skip

# Published: base_dim 160, decoder_base_dim 256, else as the first; the second has every other way that channels may go.
VAE_CASES = [
    VaeCase(name="vae22", frames=9, height=48, width=80, float_frames=(0, 1, 8),
            vae=dict(base_dim=8, decoder_base_dim=12, z_dim=48, dim_mult=[1, 2, 4, 4], num_res_blocks=2,
                     temperal_downsample=[False, True, True], in_channels=12, out_channels=12, patch_size=2,
                     is_residual=True, scale_factor_spatial=16)),
    VaeCase(name="vae22_odd", frames=5, height=32, width=48, float_frames=(0, 1, 2, 3, 4),
            vae=dict(base_dim=6, decoder_base_dim=10, z_dim=10, dim_mult=[1, 4, 4, 2], num_res_blocks=1,
                     temperal_downsample=[True, False, True], in_channels=12, out_channels=12, patch_size=2,
                     is_residual=True, scale_factor_spatial=16)),
    VaeCase(name="vae_upscale", frames=5, height=24, width=40, float_frames=(0, 1, 4),
            vae=dict(base_dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2,
                     temperal_downsample=[False, True, True], out_channels=12)),
]  # fmt: skip
