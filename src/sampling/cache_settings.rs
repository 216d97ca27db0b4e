//! Training-free caches: which one, and when it may stand in for a step.

use std::str::FromStr;

use anyhow::{Context, Error, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// Threshold when none is given. Both methods estimate the same, how much the prediction has changed
/// since it was last computed; `docs/performance.md` has what this saves and costs. Where EasyCache
/// was published it is 0.05 (H-EmbodVis/EasyCache, `EasyCache4Wan2.1`).
const THRESHOLD: f64 = 0.02;

/// Which cache is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "lowercase")]
pub enum CacheMethod {
    /// Every step is computed.
    #[default]
    Off,
    /// TeaCache (Liu et al., arXiv:2411.19108): the change of the time embedding, rescaled by a
    /// polynomial that is fitted to a model, adds up until it reaches the threshold.
    TeaCache {
        /// Where a step is computed again, in what the polynomial estimates.
        threshold: f64,
    },
    /// EasyCache (Zhou et al., arXiv:2507.02860): the change of the prediction, estimated from
    /// that of the latents, adds up until it reaches the threshold. Needs no fitted model.
    EasyCache {
        /// Where a step is computed again.
        threshold: f64,
    },
}

/// A cache with the steps that it leaves alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CacheSettings {
    /// Which cache.
    #[serde(flatten)]
    pub method: CacheMethod,
    /// Steps at the beginning of each expert that are always computed.
    pub retention: usize,
    /// Steps at the end that are always computed.
    pub cutoff: usize,
    /// TeaCache's polynomial, the highest power first; the model's, not the clip's.
    #[serde(skip)]
    pub polynomial: Vec<f64>,
}

impl Default for CacheSettings {
    fn default() -> Self {
        Self {
            method: CacheMethod::Off,
            retention: 1,
            cutoff: 1,
            polynomial: Vec::new(),
        }
    }
}

/// `off`, `teacache` or `easycache`, then `,threshold=X`, `,retention=N`, `,cutoff=N`.
impl FromStr for CacheSettings {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut fields = text.split(',');
        let method = fields.next().unwrap_or_default().trim();
        let mut settings = Self::default();
        let mut threshold = match method {
            "off" => 0.0,
            "teacache" | "easycache" => THRESHOLD,
            other => bail!("{other:?}: expected off, teacache or easycache"),
        };
        for field in fields {
            let (name, value) = field.split_once('=').unwrap_or((field, ""));
            let value = value.trim();
            let number = || format!("{}: {value:?} is no number", name.trim());
            match name.trim() {
                "threshold" => threshold = value.parse().ok().with_context(number)?,
                "retention" => settings.retention = value.parse().ok().with_context(number)?,
                "cutoff" => settings.cutoff = value.parse().ok().with_context(number)?,
                other => bail!("{other:?}: expected threshold=X, retention=N or cutoff=N"),
            }
        }
        settings.method = match method {
            "teacache" => CacheMethod::TeaCache { threshold },
            "easycache" => CacheMethod::EasyCache { threshold },
            _ => CacheMethod::Off,
        };
        ensure!(
            method == "off" || (threshold > 0.0 && threshold.is_finite()),
            "the threshold is {threshold}; expected a positive number"
        );
        Ok(settings)
    }
}

/// As it is parsed, with every field.
impl std::fmt::Display for CacheSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (method, threshold) = match self.method {
            CacheMethod::Off => return f.write_str("off"),
            CacheMethod::TeaCache { threshold } => ("teacache", threshold),
            CacheMethod::EasyCache { threshold } => ("easycache", threshold),
        };
        let Self {
            retention, cutoff, ..
        } = self;
        write!(
            f,
            "{method},threshold={threshold},retention={retention},cutoff={cutoff}"
        )
    }
}

impl CacheSettings {
    /// Takes what a model's own settings know of it.
    ///
    /// # Errors
    /// When TeaCache is asked for and the model has no fitted polynomial.
    pub fn for_model(mut self, polynomial: &[f64]) -> Result<Self> {
        ensure!(
            !matches!(self.method, CacheMethod::TeaCache { .. }) || !polynomial.is_empty(),
            "--cache teacache: the model has no fitted polynomial (teacache in wan_i2v.json)\nhint: use \
             --cache easycache"
        );
        if let CacheMethod::TeaCache { .. } = self.method {
            self.polynomial = polynomial.to_vec();
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_written_as_they_are_parsed() {
        for (given, written) in [
            ("off,cutoff=1", "off"),
            ("teacache", "teacache,threshold=0.02,retention=1,cutoff=1"),
            (
                "easycache,threshold=0.1,retention=3,cutoff=2",
                "easycache,threshold=0.1,retention=3,cutoff=2",
            ),
        ] {
            let settings: CacheSettings = given.parse().unwrap();
            assert_eq!(settings.to_string(), written);
            assert_eq!(written.parse::<CacheSettings>().unwrap(), settings);
        }
    }
}
