//! Training-free caches: steps whose prediction changes little reuse the last one.
//!
//! Both are approximations and off unless asked for. What each saves and costs is measured in
//! `docs/performance.md`.

use anyhow::Result;
use mlx_rs::Array;

use crate::model::dit::TimeEmbedding;
use crate::request::{CacheMethod, CacheSettings};

/// What has been computed and what of it can be used again. Made anew for each expert.
#[derive(Debug)]
pub(super) struct StepCache {
    settings: CacheSettings,
    /// Steps seen by this expert.
    seen: usize,
    accumulated: f64,
    /// The time embedding of the last step.
    embedding: Option<Array>,
    /// The last step's latents, its prediction when it was computed, and how much predictions
    /// change with latents.
    last: Option<Last>,
}

#[derive(Debug)]
struct Last {
    latents: Array,
    velocity: Array,
    /// Relative change of the prediction per relative change of the latents.
    rate: Option<f64>,
}

impl StepCache {
    pub(super) fn new(settings: CacheSettings) -> Self {
        Self {
            settings,
            seen: 0,
            accumulated: 0.0,
            embedding: None,
            last: None,
        }
    }

    /// Whether the coming step, of which `left` follow, may reuse what the last ones computed.
    /// Reads one scalar.
    pub(super) fn may_skip(
        &mut self,
        latents: &Array,
        time: &TimeEmbedding,
        left: usize,
    ) -> Result<bool> {
        let change = match self.settings.method {
            CacheMethod::Off => return Ok(false),
            CacheMethod::TeaCache { .. } => {
                let before = self.embedding.replace(time.projection.clone());
                match before {
                    Some(before) => {
                        let change = relative(&time.projection, &before)?;
                        polynomial(&self.settings.polynomial, change).max(0.0)
                    }
                    None => f64::INFINITY,
                }
            }
            CacheMethod::EasyCache { .. } => match &self.last {
                Some(Last {
                    latents: before,
                    velocity,
                    rate: Some(rate),
                }) => rate * norm(&latents.subtract(before)?)? / norm(velocity)?.max(1e-12),
                _ => f64::INFINITY,
            },
        };
        self.accumulated += change;
        self.seen += 1;
        let threshold = match self.settings.method {
            CacheMethod::TeaCache { threshold } | CacheMethod::EasyCache { threshold } => threshold,
            CacheMethod::Off => 0.0,
        };
        let skip = self.seen > self.settings.retention.max(1)
            && left >= self.settings.cutoff
            && self.accumulated < threshold;
        if !skip {
            self.accumulated = 0.0;
        }
        Ok(skip)
    }

    /// Hears of the conditional prediction of a step, computed or reused.
    pub(super) fn note(&mut self, latents: &Array, velocity: &Array, computed: bool) -> Result<()> {
        if !matches!(self.settings.method, CacheMethod::EasyCache { .. }) {
            return Ok(());
        }
        let rate = match &self.last {
            Some(last) if computed => {
                let moved = norm(&latents.subtract(&last.latents)?)?;
                let changed = norm(&velocity.subtract(&last.velocity)?)?;
                (moved > 0.0).then(|| changed / moved)
            }
            Some(last) => last.rate,
            None => None,
        };
        self.last = Some(Last {
            latents: latents.clone(),
            velocity: velocity.clone(),
            rate,
        });
        Ok(())
    }
}

/// Mean absolute difference over the mean absolute value.
fn relative(now: &Array, before: &Array) -> Result<f64> {
    let difference = now.subtract(before)?.abs()?.mean(None)?;
    let ratio = difference.divide(before.abs()?.mean(None)?)?;
    Ok(f64::from(scalar(&ratio)?))
}

/// Mean absolute value.
fn norm(x: &Array) -> Result<f64> {
    Ok(f64::from(scalar(&x.abs()?.mean(None)?)?))
}

fn scalar(x: &Array) -> Result<f32> {
    x.try_item_exact::<f32>()
        .map_err(|error| anyhow::anyhow!("{error}"))
}

fn polynomial(coefficients: &[f64], x: f64) -> f64 {
    coefficients.iter().fold(0.0, |sum, c| sum * x + c)
}
