//! Training-free caches: steps whose prediction changes little reuse the last one.
//!
//! Both are approximations and off unless asked for. What each saves and costs is measured in
//! `docs/performance.md`. The conditional pass decides for both passes of a step.

use anyhow::Result;
use mlx_rs::Array;

use super::{CacheMethod, CacheSettings};
use crate::runtime::State;

/// What has been computed and what of it can be used again. Made anew for each expert: what the
/// other one predicted, and how its predictions changed, says nothing about this one's.
#[derive(Debug)]
pub(crate) struct StepCache {
    settings: CacheSettings,
    /// Steps seen by this expert.
    seen: usize,
    /// Estimated change of the prediction since the last computed step.
    accumulated: f64,
    /// The time embedding of the last step.
    embedding: Option<Array>,
    /// The latents of the last step.
    latents: Option<Array>,
    /// The last computed step.
    computed: Option<Computed>,
    /// Change of the prediction per change of the latents, between the last two computed steps.
    rate: Option<f64>,
}

#[derive(Debug)]
struct Computed {
    latents: Array,
    velocity: Array,
}

impl StepCache {
    pub(crate) fn new(settings: CacheSettings) -> Self {
        Self {
            settings,
            seen: 0,
            accumulated: 0.0,
            embedding: None,
            latents: None,
            computed: None,
            rate: None,
        }
    }

    /// Puts it into a run's state. Arrays are in row-major order, in which they come back: sums
    /// over another order may round otherwise.
    pub(crate) fn save(&self, state: &mut State) {
        state.set_count("cache.seen", self.seen);
        state.set_float("cache.accumulated", self.accumulated);
        state.set_optional("cache.embedding", self.embedding.as_ref());
        state.set_optional("cache.latents", self.latents.as_ref());
        if let Some(Computed { latents, velocity }) = &self.computed {
            state.set("cache.computed_latents", latents);
            state.set("cache.computed_velocity", velocity);
        }
        if let Some(rate) = self.rate {
            state.set_float("cache.rate", rate);
        }
    }

    /// Takes it from there.
    pub(crate) fn restore(settings: CacheSettings, state: &State) -> Result<Self> {
        Ok(Self {
            settings,
            seen: state.count("cache.seen")?,
            accumulated: state.float("cache.accumulated").unwrap_or_default(),
            embedding: state.optional("cache.embedding"),
            latents: state.optional("cache.latents"),
            computed: match state.optional("cache.computed_latents") {
                Some(latents) => Some(Computed {
                    latents,
                    velocity: state.array("cache.computed_velocity")?,
                }),
                None => None,
            },
            rate: state.float("cache.rate"),
        })
    }

    /// Whether the coming step, of which `left` follow, may reuse what the last computed one
    /// left behind; `ready` says whether every pass of it has something to reuse. Reads one
    /// scalar.
    pub(crate) fn may_skip(
        &mut self,
        latents: &Array,
        time: &Array,
        left: usize,
        ready: bool,
    ) -> Result<bool> {
        let (change, threshold) = match self.settings.method {
            CacheMethod::Off => return Ok(false),
            CacheMethod::TeaCache { threshold } => {
                let before = self.embedding.replace(time.contiguous()?);
                (self.change_by_time(time, before)?, threshold)
            }
            CacheMethod::EasyCache { threshold } => {
                let before = self.latents.replace(latents.clone());
                (self.change_by_latents(latents, before)?, threshold)
            }
        };
        self.accumulated += change;
        self.seen += 1;
        let skip = ready
            && self.seen > self.settings.retention.max(1)
            && left >= self.settings.cutoff
            && self.accumulated < threshold;
        if !skip {
            self.accumulated = 0.0;
        }
        Ok(skip)
    }

    /// TeaCache's estimate. A fitted polynomial can fall below zero where it has seen no data; a
    /// change cannot (the original adds it as it is).
    fn change_by_time(&self, time: &Array, before: Option<Array>) -> Result<f64> {
        let Some(before) = before else {
            return Ok(f64::INFINITY);
        };
        let moved = time.subtract(&before)?;
        let change = ratio(&moved, &before)?;
        Ok(polynomial(&self.settings.polynomial, change).max(0.0))
    }

    /// EasyCache's estimate: the latents' change since the last step, times the rate, relative to
    /// the last computed prediction.
    fn change_by_latents(&self, latents: &Array, before: Option<Array>) -> Result<f64> {
        match (before, &self.computed, self.rate) {
            (Some(before), Some(computed), Some(rate)) => {
                let moved = latents.subtract(&before)?;
                Ok(rate * ratio(&moved, &computed.velocity)?)
            }
            _ => Ok(f64::INFINITY),
        }
    }

    /// Hears of the conditional prediction of a step that was computed.
    pub(crate) fn note(&mut self, latents: &Array, velocity: &Array) -> Result<()> {
        if !matches!(self.settings.method, CacheMethod::EasyCache { .. }) {
            return Ok(());
        }
        if let Some(before) = &self.computed {
            let moved = latents.subtract(&before.latents)?;
            let changed = velocity.subtract(&before.velocity)?;
            self.rate = Some(ratio(&changed, &moved)?);
        }
        self.computed = Some(Computed {
            latents: latents.clone(),
            velocity: velocity.contiguous()?,
        });
        Ok(())
    }
}

/// Mean absolute value of one array over that of another. Not finite where the other is zero,
/// which no threshold is above.
fn ratio(a: &Array, b: &Array) -> Result<f64> {
    let ratio = a.abs()?.mean(None)?.divide(b.abs()?.mean(None)?)?;
    let value = ratio
        .try_item_exact::<f32>()
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(f64::from(value))
}

fn polynomial(coefficients: &[f64], x: f64) -> f64 {
    coefficients.iter().fold(0.0, |sum, c| sum * x + c)
}
