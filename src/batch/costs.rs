//! What a batch costs, with what its clips share counted once.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::{Capacity, ClipStatus, Entry};
use crate::pipeline::Phase;
use crate::pipeline::plan::{Operations, Rates};

/// What is to be computed and loaded.
#[derive(Clone, Debug, Default)]
pub struct Costs {
    /// Prompts that are encoded.
    pub texts: usize,
    /// Pictures that are encoded.
    pub pictures: usize,
    /// Rounds of as many clips as may be in flight, each of which loads the experts once.
    pub rounds: usize,
    /// Passes through the transformers.
    pub passes: usize,
    operations: Operations,
    seconds: Option<f64>,
}

impl Costs {
    /// Those of clips that are not there yet, with times at `rates`. One that goes on is counted without its encodings,
    /// but with all its steps.
    pub fn of<'a>(
        clips: impl Iterator<Item = (&'a Entry, ClipStatus)>,
        capacity: Capacity,
        rates: Option<&Rates>,
    ) -> Self {
        let mut costs = Self::default();
        let mut seconds = 0.0;
        let (mut texts, mut pictures) = (BTreeSet::new(), BTreeSet::new());
        // Clips and the longest loading of each phase, by model.
        let mut models: BTreeMap<_, (usize, BTreeMap<_, f64>)> = BTreeMap::new();
        for (entry, status) in clips {
            let (model, device) = (Rc::as_ptr(entry.job().checkpoint()), entry.device());
            let kind = format!("{model:?} {device:?}");
            let (count, loadings) = models.entry(kind).or_default();
            *count += 1;
            let keys = entry.keys();
            let encodes = status == ClipStatus::Missing;
            let (_, negative) = entry.job().token_ids();
            let prompts = [Some(keys.prompt), negative.map(|_| keys.negative)];
            let prompts = prompts.into_iter().flatten();
            let new_texts = prompts.filter(|key| encodes && texts.insert(key.clone()));
            // Of a clip's two prompts, both are counted if either is new.
            let new_text = new_texts.count() > 0;
            let new_picture = encodes && pictures.insert(keys.condition);
            let forecast = entry.forecast();
            costs.passes += forecast.passes;
            for phase in &forecast.phases {
                let counted = match phase.phase {
                    Phase::Text => new_text,
                    Phase::Image => new_picture,
                    Phase::Denoising | Phase::Decoding => true,
                };
                if counted {
                    costs.operations = costs.operations + phase.operations;
                    let [computing, loading] = [false, true]
                        .map(|loads| phase.seconds_in(rates, loads).unwrap_or_default());
                    seconds += computing;
                    let most = loadings.entry((phase.phase, phase.expert)).or_default();
                    *most = loading.max(*most);
                }
            }
        }
        for (count, loadings) in models.into_values() {
            let rounds = count.div_ceil(capacity.at_once);
            costs.rounds += rounds;
            for ((phase, _), loading) in loadings {
                let often = match phase {
                    Phase::Text | Phase::Image => false,
                    Phase::Denoising => true,
                    Phase::Decoding => !capacity.decoder_beside_expert,
                };
                seconds += loading * if often { rounds as f64 } else { 1.0 };
            }
        }
        costs.texts = texts.len();
        costs.pictures = pictures.len();
        costs.seconds = rates.map(|_| seconds);
        costs
    }

    /// What is to be computed.
    pub fn operations(&self) -> Operations {
        self.operations
    }

    /// Seconds at a machine's rates, when they are known.
    pub fn seconds(&self) -> Option<f64> {
        self.seconds
    }
}
