//! What works on this machine and what does not: kernels, the model's VAE, its guidance, and a
//! clip of the built-in miniature whose result is known.
//!
//! [`kernels`] are held to computations in float64 on the host (`reference`), and those that fail on a
//! GPU are computed by MLX's CPU backend too; [`judge`] says where a result is wrong. [`vae`] and [`guidance`] are the isolation
//! tests of the report that this project grew from.

pub mod golden;
pub mod guidance;
pub mod judge;
pub mod kernels;
mod machine;
pub mod reference;
pub mod scene;
pub mod vae;

pub use machine::Machine;

use std::iter::once;
use std::time::Instant;

use anyhow::Result;
use serde::Serialize;

use crate::clip::Model;
use crate::pipeline::plan::Budget;
use crate::runtime::{Device, DeviceKind};
use crate::util::show::chain;
use crate::weights::{Checkpoint, Loading, PartName};

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should be.
    Passed,
    /// Wrong.
    Failed,
    /// Not made; the detail says why.
    Skipped,
    /// Wrong, and no part of the verdict: the program does not compute like this here.
    Noted,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Outcome::Passed => "ok",
            Outcome::Failed => "FAILED",
            Outcome::Skipped => "skipped",
            Outcome::Noted => "note",
        })
    }
}

/// What a check looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    /// A kernel of MLX's by itself.
    Kernel,
    /// The model's autoencoder.
    Vae,
    /// The effect of the prompt.
    Guidance,
    /// A clip of the miniature.
    Clip,
}

impl std::fmt::Display for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Group::Kernel => "kernel",
            Group::Vae => "vae",
            Group::Guidance => "guidance",
            Group::Clip => "clip",
        })
    }
}

/// What a number is held to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// It may not be larger.
    AtMost(f64),
    /// It may not be smaller.
    AtLeast(f64),
}

impl Bound {
    /// Whether `measured` keeps to it, which no NaN does.
    pub fn holds(self, measured: f64) -> bool {
        match self {
            Bound::AtMost(most) => measured <= most,
            Bound::AtLeast(least) => measured >= least,
        }
    }
}

/// One check and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// What it looks at.
    pub group: Group,
    /// Which one.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// What was measured, where one number tells it.
    pub measured: Option<f64>,
    /// What it is held to.
    pub bound: Option<Bound>,
    /// What was found, or why it was not made.
    pub detail: String,
    /// Wall time.
    pub seconds: f64,
}

/// Everything that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Diagnosis {
    /// Where.
    pub machine: Machine,
    /// What, in the order in which it was looked at.
    pub checks: Vec<Check>,
    /// Whether no check failed.
    pub sound: bool,
}

impl Diagnosis {
    /// How many checks ended like this.
    pub fn count(&self, outcome: Outcome) -> usize {
        self.checks
            .iter()
            .filter(|check| check.outcome == outcome)
            .count()
    }
}

/// What is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Where it is computed.
    pub device: Device,
    /// What may be taken of the memory.
    pub budget: Budget,
    /// Whether what loads text encoder and experts is left out.
    pub quick: bool,
    /// Whether the model's weights are there, not their heads alone.
    pub has_weights: bool,
}

/// What is told while it is found.
#[derive(Clone, Copy, Debug)]
pub enum Heard<'a> {
    /// The machine, before anything is checked.
    Machine(&'a Machine),
    /// A check that has ended.
    Check(&'a Check),
}

/// Why what needs weights is not looked at.
const NOT_PULLED: &str = "the model is on the hub alone: wan-i2v pull fetches it";

/// Looks at everything; `hear` is told of the machine, and of each check as it ends.
///
/// # Errors
/// When the machine's own facts cannot be had. What goes wrong in a check fails that check.
pub fn examine(
    model: &Model,
    bits: Loading,
    settings: &Settings,
    hear: &mut dyn FnMut(Heard<'_>),
) -> Result<Diagnosis> {
    let checkpoint = model.open(bits)?;
    if settings.has_weights {
        checkpoint.check_filled()?;
    }
    let machine = Machine::look(&checkpoint, settings)?;
    hear(Heard::Machine(&machine));
    let mut round = CheckRunner {
        settings: *settings,
        checks: Vec::new(),
        hear,
    };
    kernels::examine(&mut round);
    round_trip(&mut round, &checkpoint);
    effect_of_guidance(&mut round, &checkpoint);
    round.check(Group::Clip, "the miniature's clip", false, |round| {
        golden::examine(round.settings.device)
    });
    let sound = round
        .checks
        .iter()
        .all(|check| check.outcome != Outcome::Failed);
    Ok(Diagnosis {
        machine,
        checks: round.checks,
        sound,
    })
}

fn round_trip(round: &mut CheckRunner<'_>, checkpoint: &Checkpoint) {
    if !round.settings.has_weights {
        return round.skip(Group::Vae, "round trip", NOT_PULLED);
    }
    let device = round.settings.device;
    let start = Instant::now();
    match vae::round_trip(checkpoint, device, round.settings.budget.bytes) {
        Ok(trip) => {
            round.take(Group::Vae, trip.findings(), start, false);
            // Of Metal the forecast rests on MLX's source, and on no measurement.
            let is_guess = device.kind == DeviceKind::Gpu;
            round.take(Group::Vae, trip.memory_findings(), start, is_guess);
        }
        Err(error) => round.fail(Group::Vae, "round trip", &error),
    }
}

fn effect_of_guidance(round: &mut CheckRunner<'_>, checkpoint: &Checkpoint) {
    const NAME: &str = "text and experts";
    let Settings {
        device,
        budget,
        quick,
        has_weights,
    } = round.settings;
    if !has_weights {
        return round.skip(Group::Guidance, NAME, NOT_PULLED);
    }
    if quick {
        let why = "--quick: the text encoder and the transformers would have to be loaded";
        return round.skip(Group::Guidance, NAME, why);
    }
    let transformers = checkpoint
        .experts
        .iter()
        .map(|(expert, _)| PartName::from(*expert));
    for part in once(PartName::TextEncoder).chain(transformers) {
        match checkpoint.weight_bytes(part, device) {
            Ok(bytes) if bytes > budget.bytes => {
                let why = format!(
                    "the {part} takes {:.1} GB and {:.1} GB may be taken; --bits 4 makes it \
                     smaller, --memory-budget GB allows more",
                    bytes as f64 / 1e9,
                    budget.bytes as f64 / 1e9
                );
                return round.skip(Group::Guidance, NAME, &why);
            }
            Ok(_) => {}
            Err(error) => return round.fail(Group::Guidance, NAME, &error),
        }
    }
    let start = Instant::now();
    match guidance::observe(checkpoint, device, budget.bytes) {
        Ok(observed) => {
            round.take(Group::Guidance, observed.findings(), start, false);
        }
        Err(error) => round.fail(Group::Guidance, NAME, &error),
    }
}

/// What a check has found.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckResult {
    /// Of what.
    pub name: String,
    /// Whether it is as it should be.
    pub sound: bool,
    /// What was measured.
    pub measured: Option<f64>,
    /// What it is held to.
    pub bound: Option<Bound>,
    /// For people.
    pub detail: String,
}

impl CheckResult {
    /// Of one number.
    pub fn new(name: &str, measured: f64, bound: Bound, detail: String) -> Self {
        Self {
            name: name.to_owned(),
            sound: bound.holds(measured),
            measured: Some(measured),
            bound: Some(bound),
            detail,
        }
    }
}

/// An examination under way.
pub struct CheckRunner<'a> {
    /// What is looked at.
    pub settings: Settings,
    checks: Vec<Check>,
    hear: &'a mut dyn FnMut(Heard<'_>),
}

impl CheckRunner<'_> {
    fn add(&mut self, check: Check) {
        (self.hear)(Heard::Check(&check));
        self.checks.push(check);
    }

    /// Makes a check; when it is `only_noted` and fails, that has no part in the verdict.
    fn check(
        &mut self,
        group: Group,
        name: &str,
        only_noted: bool,
        make: impl FnOnce(&mut Self) -> Result<CheckResult>,
    ) {
        let start = Instant::now();
        let made = make(self);
        let mut check = match made {
            Ok(finding) => Check::of(group, finding),
            Err(error) => Check::bare(group, name, Outcome::Failed, chain(&error)),
        };
        check.seconds = start.elapsed().as_secs_f64();
        self.add(check.noted_if(only_noted));
    }

    /// What one look has found, which took from `start` on; see [`Self::check`].
    fn take(&mut self, group: Group, findings: Vec<CheckResult>, start: Instant, only_noted: bool) {
        let seconds = start.elapsed().as_secs_f64();
        let count = findings.len().max(1) as f64;
        for finding in findings {
            let check = Check::of(group, finding).noted_if(only_noted);
            self.add(Check {
                seconds: seconds / count,
                ..check
            });
        }
    }

    fn fail(&mut self, group: Group, name: &str, error: &anyhow::Error) {
        self.add(Check::bare(group, name, Outcome::Failed, chain(error)));
    }

    fn skip(&mut self, group: Group, name: &str, why: &str) {
        self.add(Check::bare(group, name, Outcome::Skipped, why.to_owned()));
    }
}

impl Check {
    fn of(group: Group, finding: CheckResult) -> Self {
        Self {
            group,
            name: finding.name,
            outcome: match finding.sound {
                true => Outcome::Passed,
                false => Outcome::Failed,
            },
            measured: finding.measured,
            bound: finding.bound,
            detail: finding.detail,
            seconds: 0.0,
        }
    }

    /// With a failure that has no part in the verdict, if so.
    fn noted_if(mut self, only_noted: bool) -> Self {
        if only_noted && self.outcome == Outcome::Failed {
            self.outcome = Outcome::Noted;
        }
        self
    }

    fn bare(group: Group, name: &str, outcome: Outcome, detail: String) -> Self {
        Self {
            group,
            name: name.to_owned(),
            outcome,
            measured: None,
            bound: None,
            detail,
            seconds: 0.0,
        }
    }
}
