//! The embedding of pictures that Wan2.1 image-to-video attends to beside the text.
//!
//! Mirrors `MLPProj` of Wan-Video/Wan2.1 (`wan/modules/model.py`) with the names of diffusers'
//! `WanImageEmbedding`.

use anyhow::Result;
use mlx_rs::Array;
use mlx_rs::error::Result as MlxResult;

use super::DitConfig;
use crate::model::layers::Linear;
use crate::model::{Role, Scope, TensorSource};
use crate::runtime::Device;

/// Where its tensors are.
pub(super) const SCOPE: &str = "condition_embedder.image_embedder";
/// PyTorch's default, which both norms have.
const EPS: f32 = 1e-5;

/// Features of a picture encoder to the width of the transformer.
#[derive(Debug)]
pub(super) struct ImageEmbedder {
    /// `[rows, features]`, added to the features.
    positions: Option<Array>,
    norm_in: [Array; 2],
    inner: Linear,
    outer: Linear,
    norm_out: [Array; 2],
    device: Device,
}

impl ImageEmbedder {
    pub(super) fn load(
        config: &DitConfig,
        features: i32,
        source: &mut Scope<'_>,
        device: Device,
    ) -> Result<Self> {
        let dim = config.dim();
        let positions = (config.pos_embed_seq_len)
            .map(|rows| {
                let stored = source.tensor("pos_embed", &[1, rows, features], Role::Exact)?;
                Ok::<_, anyhow::Error>(stored.reshape(&[rows, features])?)
            })
            .transpose()?;
        let mut norm = |name: &str, width| -> Result<[Array; 2]> {
            let mut source = source.scope(name);
            Ok([
                source.tensor("weight", &[width], Role::Exact)?,
                source.tensor("bias", &[width], Role::Exact)?,
            ])
        };
        let (norm_in, norm_out) = (norm("norm1", features)?, norm("norm2", dim)?);
        let mut linear =
            |name, sides| Linear::load(&mut source.scope(name), sides, Role::Matmul)?.on(device);
        Ok(Self {
            positions,
            norm_in,
            inner: linear("ff.net.0.proj", [features, features])?,
            outer: linear("ff.net.2", [features, dim])?,
            norm_out,
            device,
        })
    }

    /// `[rows, features]` to `[rows, dim]`.
    pub(super) fn forward(&self, features: &Array) -> MlxResult<Array> {
        let x = match &self.positions {
            Some(positions) => features.add(positions)?,
            None => features.clone(),
        };
        let norm =
            |x: &Array, [weight, bias]: &[Array; 2]| self.device.layer_norm(x, weight, bias, EPS);
        let x = self.inner.forward(&norm(&x, &self.norm_in)?)?;
        let x = mlx_rs::nn::gelu(&x)?;
        norm(&self.outer.forward(&x)?, &self.norm_out)
    }
}
