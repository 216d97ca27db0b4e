//! What of the published model fits where, from its dimensions alone.

use anyhow::Result;

use super::budget::plan_settings;
use super::{Budget, Inputs, PlannedMemory, Rates};
use crate::clip::{Options, Size};
use crate::runtime::{Device, DeviceKind, MACS, mac_budget};
use crate::weights::{Bits, Checkpoint, Family, Loading, Scheme};

/// Clips that tables show: the size's name, width and height, frames.
pub const CLIPS: [(&str, [u32; 2], u32); 4] = [
    ("480p", [832, 480], 33),
    ("480p", [832, 480], 81),
    ("720p", [1280, 720], 33),
    ("720p", [1280, 720], 81),
];

/// Tokens of a prompt, and of the model's negative prompt.
const TOKENS: [usize; 2] = [64, 126];

/// The most bits of weights with which each of [`CLIPS`] fits; none where it does not.
pub type Fits = [Option<u32>; CLIPS.len()];

/// The published model at 16, 8 and 4 bits.
#[derive(Debug)]
pub struct Published([(u32, Checkpoint); 3]);

impl Default for Published {
    fn default() -> Self {
        let of = |bits| (bits, Loading::all(bits));
        let [eight, four] = [of(Bits::Eight), of(Bits::Four)];
        Self([
            (16, Checkpoint::published(Loading::default())),
            (8, Checkpoint::published(eight.1)),
            (4, Checkpoint::published(four.1)),
        ])
    }
}

impl Published {
    /// What fits into a budget on a device.
    ///
    /// # Errors
    /// Never of the published dimensions.
    pub fn fits(&self, device: Device, budget: Budget) -> Result<Fits> {
        let mut fits = [None; CLIPS.len()];
        for (most, (_, [width, height], frames)) in fits.iter_mut().zip(CLIPS) {
            for (bits, checkpoint) in &self.0 {
                let options = Options {
                    size: Some(Size::Exact { width, height }),
                    frames: Some(frames),
                    ..Options::default()
                };
                let token = checkpoint.token_side();
                let picture = Some((width as usize, height as usize));
                let settings = options.resolve(&checkpoint.settings, picture, token)?;
                let inputs = Inputs {
                    prompt: TOKENS[0],
                    negative: Some(TOKENS[1]),
                    pictures: 1,
                    previews: false,
                };
                if plan_settings(checkpoint, &settings, inputs, device, budget, None)?.fits {
                    *most = Some(*bits);
                    break;
                }
            }
        }
        Ok(fits)
    }

    /// What fits on Macs, by their GB of memory.
    ///
    /// # Errors
    /// As [`Self::fits`].
    pub fn macs(&self) -> Result<Vec<(u64, Fits)>> {
        let device = Device::new(DeviceKind::Gpu, None);
        let one = |(memory, _)| {
            let budget = Budget {
                bytes: mac_budget(memory),
                explicit: false,
            };
            Ok((memory, self.fits(device, budget)?))
        };
        MACS.into_iter().map(one).collect()
    }
}

/// What published files of so many bits take in memory, as a quantization that takes as much: of 4 bits
/// Q4_K_M, in which a third of the values are Q6_K and are held in 8 bits; of 8 bits float8 and Q8_0.
fn held_as(bits: u32) -> Option<Scheme> {
    match bits {
        4 => Some(Bits::Six.into()),
        8 => Some(Bits::Eight.into()),
        _ => None,
    }
}

/// A clip of a published model.
#[derive(Clone, Debug)]
pub struct PlannedModel {
    /// How it is computed, and what it costs.
    pub memory: PlannedMemory,
    /// What its files take in memory, as a quantization that takes as much.
    pub held_as: Option<Scheme>,
    /// What they are quantized to because they do not fit as they are: of 4 bits the third that has more.
    pub quantized: Option<Scheme>,
}

/// How a clip of a published model, of these pixels and its own settings besides `options`, is computed with
/// files of so many bits.
///
/// # Errors
/// Never of the published dimensions.
pub fn plan_published(
    family: &'static Family,
    bits: u32,
    sides: [u32; 2],
    options: &Options,
    device: Device,
    budget: Budget,
    rates: Option<&Rates>,
) -> Result<PlannedModel> {
    let plan = |held| plan_held(family, held, sides, options, device, budget, rates);
    let held = held_as(bits);
    let as_they_are = PlannedModel {
        memory: plan(held)?,
        held_as: held,
        quantized: None,
    };
    if as_they_are.memory.fits || bits != 4 {
        return Ok(as_they_are);
    }
    let four = Some(Bits::Four.into());
    let memory = plan(four)?;
    Ok(match memory.fits {
        true => PlannedModel {
            memory,
            held_as: four,
            quantized: four,
        },
        false => as_they_are,
    })
}

fn plan_held(
    family: &'static Family,
    held: Option<Scheme>,
    [width, height]: [u32; 2],
    options: &Options,
    device: Device,
    budget: Budget,
    rates: Option<&Rates>,
) -> Result<PlannedMemory> {
    let loading = held.map(Loading::all).unwrap_or_default();
    let checkpoint = Checkpoint::published_as(family, loading);
    // The nearest of whole tokens.
    let token = checkpoint.token_side();
    let [width, height] = [width, height].map(|side| side / token * token);
    let options = Options {
        size: Some(Size::Exact { width, height }),
        ..options.clone()
    };
    let settings = options.resolve(&checkpoint.settings, None, token)?;
    let inputs = Inputs {
        prompt: TOKENS[0],
        negative: settings.guide_scale.needs_negative().then_some(TOKENS[1]),
        pictures: usize::from(family.conditioning.takes_picture()),
        previews: false,
    };
    plan_settings(&checkpoint, &settings, inputs, device, budget, rates)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clip::Settings;
    use crate::model::MemoryPlan;
    use crate::pipeline::plan::{forecast, in_four_steps};

    /// More memory lets no less fit, and neither do smaller clips.
    #[test]
    fn what_fits_grows_with_the_memory() {
        let macs = Published::default().macs().unwrap();
        for (at, (memory, fits)) in macs.iter().enumerate() {
            assert!(
                fits[0] >= fits[1] && fits[1] >= fits[3],
                "{memory}: {fits:?}"
            );
            assert!(
                fits[0] >= fits[2] && fits[2] >= fits[3],
                "{memory}: {fits:?}"
            );
            let next = macs.get(at + 1).map_or(*fits, |(_, fits)| *fits);
            assert!(fits.iter().zip(next).all(|(fit, next)| *fit <= next));
        }
        assert_eq!(macs[5].1, [Some(16); 4], "128 GB");
    }

    /// README says what four steps without guidance save of a clip at 480p.
    #[test]
    fn readme_says_what_four_steps_cost() {
        let Published([(_, published), ..]) = Published::default();
        let options = Options {
            size: Some(Size::Exact {
                width: 832,
                height: 480,
            }),
            ..Options::default()
        };
        let token = published.token_side();
        let settings = options.resolve(&published.settings, Some((832, 480)), token);
        let settings = settings.unwrap();
        let inputs = Inputs {
            prompt: TOKENS[0],
            negative: Some(TOKENS[1]),
            pictures: 1,
            previews: false,
        };
        let device = Device::new(DeviceKind::Gpu, None);
        let cost = |settings: &Settings, inputs| {
            let memory =
                MemoryPlan::of_tokens(published.dit().tokens(settings.latent_grid(&published.vae)));
            let made = forecast(&published, settings, inputs, device, &memory, None).unwrap();
            (made.passes, made.operations().total() as f64 / 1e15)
        };
        let (few, their_inputs) = in_four_steps(&settings, inputs);
        let (all, few) = (cost(&settings, inputs), cost(&few, their_inputs));
        assert_eq!((all.0, few.0), (80, 4));
        let readme = include_str!("../../../README.md");
        for said in [
            format!("{:.0} PFLOP (counted)", all.1),
            format!("{:.1} PFLOP", few.1),
        ] {
            assert!(readme.contains(&said), "README.md does not say {said}");
        }
    }

    /// README's table is this one; `UPDATE_DOCS=1 cargo test --lib readme_says` writes it.
    #[test]
    fn readme_says_what_fits() {
        let rows = Published::default().macs().unwrap();
        let row = |(memory, fits): (u64, Fits)| {
            let cells = fits.map(|bits| bits.map_or("-".into(), |bits| format!("{bits} bits")));
            format!("  | {memory} GB | {} |\n", cells.join(" | "))
        };
        let table: String = rows.into_iter().map(row).collect();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
        let readme = std::fs::read_to_string(path).unwrap();
        if readme.contains(&table) {
            return;
        }
        assert!(
            std::env::var_os("UPDATE_DOCS").is_some(),
            "README.md's table is another:\n{table}"
        );
        let is_row = |line: &&str| line.starts_with("  | ") && line.contains(" GB | ");
        let first = readme.lines().find(is_row).unwrap();
        let (before, _) = readme.split_once(first).unwrap();
        let after = readme[before.len()..]
            .split_inclusive('\n')
            .skip(MACS.len());
        let text = before.to_owned() + &table + &after.collect::<String>();
        std::fs::write(path, text).unwrap();
    }
}
