//! What a first clip needs besides working kernels: room on the disk, the hub, enough memory.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use crate::cli::ui::{human_bytes, stderr};
use crate::hub::{Config, Hub, RepoId, free_disk};
use crate::pipeline::plan::{Budget, CLIPS, Fits, Published};
use crate::runtime::{Device, Tuning, faster_mlx};
use crate::util::show::chain;

/// Bytes on disk of the published model in 4 bits, as `pull` and `convert` write it.
const MODEL_BYTES: u64 = 23_000_000_000;
/// What the hub is asked about.
const REPOSITORY: &str = "Wan-AI/Wan2.2-I2V-A14B";

/// It, without names of folders.
#[derive(Debug, Serialize)]
pub(super) struct Around {
    /// Bytes free where the current folder is.
    free_here: Option<u64>,
    /// Bytes free where the hub's cache is.
    free_in_cache: Option<u64>,
    /// Bytes that the model takes in 4 bits.
    model_bytes: u64,
    /// What was chosen for this device, if it was tuned.
    tuning: Option<Tuning>,
    /// Whether that is left out.
    untuned: bool,
    hub: HubState,
    /// The most bits with which clips of the published model fit.
    fits: Vec<Fit>,
    /// What would make the GPU faster.
    faster: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct HubState {
    /// Whether the user has a token.
    token: bool,
    /// Whether `HF_HUB_OFFLINE` forbids to ask.
    offline: bool,
    /// Whether it answers; nothing when it was not asked.
    answers: Option<bool>,
    /// Why it cannot be used.
    trouble: Option<String>,
}

#[derive(Debug, Serialize)]
struct Fit {
    size: &'static str,
    frames: u32,
    most_bits: Option<u32>,
}

impl Around {
    /// Looks around; the hub is asked for an answer only if `ask`.
    pub(super) fn look(
        device: Device,
        budget: Budget,
        tuning: Option<Tuning>,
        ask: bool,
    ) -> Result<Self> {
        let config = Config::from_env();
        let cache = config.as_ref().ok().map(|config| config.cache.clone());
        let mut hub = HubState {
            token: config.as_ref().is_ok_and(|config| config.token.is_some()),
            offline: config.as_ref().is_ok_and(|config| config.offline),
            answers: None,
            trouble: config.as_ref().err().map(chain),
        };
        if ask && hub.trouble.is_none() && !hub.offline {
            let listed = Hub::from_env(stderr::warning)
                .and_then(|hub| hub.list(&REPOSITORY.parse::<RepoId>()?));
            hub.answers = Some(listed.is_ok());
            hub.trouble = listed.err().as_ref().map(chain);
        }
        let fits: Fits = Published::default().fits(device, budget)?;
        let fits = CLIPS.iter().zip(fits);
        Ok(Self {
            free_here: free_disk(Path::new(".")).ok(),
            free_in_cache: cache.and_then(|cache| free_disk(&cache).ok()),
            model_bytes: MODEL_BYTES,
            tuning,
            untuned: tuning.is_some_and(|tuning| tuning != device.tuning),
            hub,
            fits: fits
                .map(|(&(size, _, frames), most_bits)| Fit {
                    size,
                    frames,
                    most_bits,
                })
                .collect(),
            faster: faster_mlx(),
        })
    }

    /// A line each: what it is about, and what was found.
    pub(super) fn lines(&self) -> Vec<(&'static str, String)> {
        let tuning = self.tuning().map(|text| ("tuning", text));
        let mut lines: Vec<_> = tuning.into_iter().collect();
        lines.extend([("disk", self.disk()), ("hub", self.hub())]);
        for size in ["480p", "720p"] {
            let of_size = self.fits.iter().filter(|fit| fit.size == size);
            let clips: Vec<String> = of_size
                .filter_map(|fit| Some(format!("{} frames in {} bits", fit.frames, fit.most_bits?)))
                .collect();
            lines.push((
                size,
                match clips.is_empty() {
                    true => "no clip of Wan2.2 I2V-A14B fits into the memory".into(),
                    false => format!("fits: {}", clips.join(", ")),
                },
            ));
        }
        lines.extend(self.faster.map(|advice| ("faster", advice.to_owned())));
        lines
    }

    fn tuning(&self) -> Option<String> {
        Some(match self.tuning? {
            Tuning::NONE => "nothing is faster than the usual way".into(),
            tuning if self.untuned => format!("left out: {tuning}"),
            tuning => tuning.to_string(),
        })
    }

    fn disk(&self) -> String {
        let known = |bytes: Option<u64>| bytes.map_or("not known how much".into(), human_bytes);
        let free = match self.free_here == self.free_in_cache || self.free_in_cache.is_none() {
            true => format!("{} free", known(self.free_here)),
            false => format!(
                "{} free here, {} in the hub's cache",
                known(self.free_here),
                known(self.free_in_cache)
            ),
        };
        let enough = self.free_here.is_none_or(|free| free >= MODEL_BYTES);
        let needed = human_bytes(MODEL_BYTES);
        match enough {
            true => format!("{free}; Wan2.2 in 4 bits takes {needed}"),
            false => format!("{free}, too little for Wan2.2 in 4 bits ({needed})"),
        }
    }

    fn hub(&self) -> String {
        let token = match self.hub.token {
            true => "a token is there",
            false => "no token, which public models do not need",
        };
        match (&self.hub.trouble, self.hub.offline, self.hub.answers) {
            (Some(trouble), ..) => format!("cannot be used: {trouble}"),
            (None, true, _) => format!("offline (HF_HUB_OFFLINE); {token}"),
            (None, false, Some(_)) => format!("answers; {token}"),
            (None, false, None) => format!("{token}; not asked (--hub asks it)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn around(free: u64, bits: [Option<u32>; 4], hub: HubState) -> Around {
        Around {
            free_here: Some(free),
            free_in_cache: Some(free),
            model_bytes: MODEL_BYTES,
            tuning: None,
            untuned: false,
            hub,
            fits: CLIPS
                .iter()
                .zip(bits)
                .map(|(&(size, _, frames), most_bits)| Fit {
                    size,
                    frames,
                    most_bits,
                })
                .collect(),
            faster: None,
        }
    }

    fn hub(token: bool, offline: bool, answers: Option<bool>) -> HubState {
        HubState {
            token,
            offline,
            answers,
            trouble: None,
        }
    }

    #[test]
    fn each_thing_is_told_in_a_line() {
        let text = |around: &Around| -> Vec<String> {
            let lines = around.lines().into_iter();
            lines
                .map(|(name, text)| format!("{name}: {text}"))
                .collect()
        };
        let bits = [Some(8), Some(4), Some(4), None];
        let found = text(&around(100_000_000_000, bits, hub(true, false, None)));
        assert_eq!(
            found,
            [
                "disk: 100.0 GB free; Wan2.2 in 4 bits takes 23.0 GB",
                "hub: a token is there; not asked (--hub asks it)",
                "480p: fits: 33 frames in 8 bits, 81 frames in 4 bits",
                "720p: fits: 33 frames in 4 bits",
            ]
        );
        assert!(found.iter().all(|line| line.len() < 70));
        let mut slow = around(1, bits, hub(true, false, None));
        slow.faster = Some("update macOS");
        assert_eq!(text(&slow).last().unwrap(), "faster: update macOS");
        let blocks = Tuning {
            block_divisor: Some(4),
            ..Tuning::NONE
        };
        let mut poor = around(1_000_000_000, [None; 4], hub(false, true, None));
        poor.free_in_cache = Some(2_000_000_000);
        let found = text(&poor);
        assert!(found[0].contains("1.0 GB free here, 2.0 GB in the hub's cache, too little"));
        assert!(found[1].starts_with("hub: offline"));
        assert!(found[3].contains("no clip of Wan2.2 I2V-A14B fits"));
        let mut tuned = around(1, bits, hub(false, true, None));
        for (tuning, untuned, line) in [
            (Tuning::NONE, false, "nothing is faster than the usual way"),
            (blocks, false, "blocks of 1/4"),
            (blocks, true, "left out: blocks of 1/4"),
        ] {
            (tuned.tuning, tuned.untuned) = (Some(tuning), untuned);
            assert_eq!(text(&tuned)[0], format!("tuning: {line}"));
        }
        let asked = around(1, bits, hub(false, false, Some(true)));
        assert!(asked.hub().starts_with("answers; no token"));
    }
}
