//! One clip on several machines. Rank 0 takes the steps; it alone knows the solver and the step caches'
//! rule, so that the ranks cannot come to differ.
//!
//! Two machines share guidance: rank 0 predicts for the prompt and rank 1 for the negative prompt; the
//! latents go there and a prediction comes back. Of four, two do so each. Those that predict for the same
//! prompt share the sequence: each computes its rows of the pass, and they exchange the keys and values of
//! each layer. Without guidance, and in other numbers, all share the sequence.

use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use mlx_rs::error::{Exception, Result as MlxResult};
use mlx_rs::ops::concatenate;
use mlx_rs::{Array, Dtype};
use serde::{Deserialize, Serialize};

use super::Denoiser;
use super::health::NotFinite;
use crate::clip::{CacheMethod, Identity};
use crate::model::MemoryPlan;
use crate::model::dit::share::{Gathering, Share, halve_guidance, is_enough};
use crate::model::vae::{Division, Tiling, VaeConfig};
use crate::persist::{SavedRun, file};
use crate::pipeline::Job;
use crate::pipeline::experts::Experts;
use crate::progress::Silent;
use crate::runtime::{Device, Exchange, Group, State, to_host};
use crate::util::show::Show;
use crate::weights::Expert;

/// What rank 0 asks for.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    /// To load an expert, and whether float16's range did not suffice.
    Load { expert: Expert, left_f16: bool },
    /// To predict for step `index` from latents that follow, or from what the last one left.
    Predict {
        id: usize,
        index: usize,
        reuse: bool,
    },
    /// To hand over the prediction for the negative prompt.
    Hand,
    /// To decode its part of the latents that follow.
    Decode { tiling: Option<Tiling> },
}

/// Parts of frames that a machine may have decoded before rank 0 takes them.
const AHEAD: usize = 2;

/// What the last rank answers to [`Order::Predict`] where it predicts for the negative prompt.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    id: usize,
    state: Predicted,
}

#[derive(Debug, Serialize, Deserialize)]
enum Predicted {
    /// It has the prediction.
    Done,
    /// The prediction is not finite, and where that begins.
    NotFinite(String),
}

/// The other ranks, as rank 0 sees them.
#[derive(Debug)]
pub(crate) struct Partner {
    group: Rc<Group>,
    /// Counts orders to predict.
    id: usize,
    caches: bool,
    pub(super) parts: Parts,
    /// Whether it has something to reuse.
    is_ready: bool,
    /// Bytes of arrays that have gone with orders.
    ordered: u64,
    /// Whether memory has all compute in the same parts.
    alike: bool,
}

/// The machines that decode a clip, as rank 0 sees them.
#[derive(Debug)]
pub(in crate::pipeline) struct Decoders<'a> {
    pub(in crate::pipeline) division: Division,
    pub(in crate::pipeline) partner: &'a Partner,
}

/// What the ranks of a group share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts {
    /// Whether the second half of them predicts for the negative prompt.
    pub(super) halves: bool,
    /// How many predict for the same prompt.
    each: usize,
}

impl Parts {
    fn of(group: &Group, guided: bool) -> Self {
        let size = group.size();
        let halves = halve_guidance(size as u64, guided);
        let each = if halves { size / 2 } else { size };
        Self { halves, each }
    }

    /// Whether a rank predicts for the negative prompt alone.
    fn is_negative(self, rank: usize) -> bool {
        self.halves && rank >= self.each
    }

    /// The machines that have the other rows of what a rank predicts, if there are any.
    fn rows(self, group: &Rc<Group>) -> Option<Rc<dyn Share>> {
        let first = group.rank() / self.each * self.each;
        let rows = Rows {
            group: Rc::clone(group),
            place: [group.rank() - first, self.each],
        };
        (self.each > 1).then(|| Rc::new(rows) as Rc<dyn Share>)
    }
}

/// The rows of a sequence are those of a group, or of two neighbours in it.
#[derive(Debug)]
struct Rows {
    group: Rc<Group>,
    place: [usize; 2],
}

impl Share for Rows {
    fn place(&self) -> (i32, i32) {
        let [rank, size] = self.place.map(|number| number as i32);
        (rank, size)
    }

    fn begin(&self, part: &Array) -> MlxResult<Box<dyn Gathering + '_>> {
        let (group, rank) = (&self.group, self.group.rank());
        let exchange = match self.place {
            [_, size] if size == group.size() => group.begin_all_gather(part),
            [0, _] => group.begin_swap(part, rank + 1),
            _ => group.begin_swap(part, rank - 1),
        };
        Ok(Box::new(Coming {
            rows: self,
            part: part.clone(),
            exchange: exchange.map_err(in_mlx)?,
        }))
    }
}

/// Rows that are being gathered.
struct Coming<'a> {
    rows: &'a Rows,
    part: Array,
    exchange: Exchange,
}

impl Gathering for Coming<'_> {
    fn finish(self: Box<Self>) -> MlxResult<Array> {
        let Rows { group, place } = self.rows;
        let gathered = group.finish(self.exchange).map_err(in_mlx)?;
        match place {
            [_, size] if *size == group.size() => Ok(gathered),
            [0, _] => concatenate(&[self.part, gathered], 0),
            _ => concatenate(&[gathered, self.part], 0),
        }
    }
}

/// Which rank is lost, the group knows.
fn in_mlx(error: anyhow::Error) -> Exception {
    Exception::custom(error.to_string())
}

impl Partner {
    /// Meets the other ranks, which have to make the clip of this `identity`.
    ///
    /// # Errors
    /// When one makes another, names what differs; [`RankLost`](crate::runtime::RankLost).
    pub(crate) fn meet(group: Group, identity: &Identity) -> Result<Self> {
        let mut alike = true;
        for rank in 1..group.size() {
            let mut theirs: Identity = serde_json::from_slice(&group.read(rank)?)?;
            // Rank 0 draws the noise.
            if let Some(seed) = identity.seed() {
                theirs.set_seed(seed);
            }
            let same = theirs.check_rank(&group.name(rank), identity);
            same.inspect_err(|_| group.fail("it makes another clip"))?;
            alike &= theirs.has_parts_of(identity);
        }
        Ok(Self {
            group: Rc::new(group),
            id: 0,
            caches: false,
            parts: Parts {
                halves: false,
                each: 1,
            },
            is_ready: false,
            ordered: 0,
            alike,
        })
    }

    /// Hands them what the run starts with.
    fn start(&mut self, state: &State, caches: CacheMethod) -> Result<()> {
        self.caches = caches != CacheMethod::Off;
        let state = file::to_bytes(state)?;
        (1..self.group.size()).try_for_each(|rank| self.group.write(rank, &state))
    }

    /// Has them load an expert.
    pub(super) fn load(&mut self, expert: Expert, left_f16: bool) -> Result<()> {
        self.is_ready = false;
        self.order(&Order::Load { expert, left_f16 })
    }

    /// Has them begin to predict for step `index`, or reuse what the last one left; those of the negative
    /// prompt if the step is `guided`.
    pub(super) fn begin(
        &mut self,
        index: usize,
        latents: &Array,
        reuse: bool,
        guided: bool,
    ) -> Result<()> {
        self.id += 1;
        let id = self.id;
        let order = serde_json::to_vec(&Order::Predict { id, index, reuse })?;
        let bytes = to_bytes(&to_host(latents)?);
        for rank in 1..self.group.size() {
            if guided || !self.parts.is_negative(rank) {
                self.group.write(rank, &order)?;
                self.group.write(rank, &bytes)?;
                self.ordered += bytes.len() as u64;
            }
        }
        Ok(())
    }

    /// Whether they have what a step may reuse, if this machine has.
    pub(super) fn is_ready(&self) -> bool {
        self.is_ready || !self.parts.halves
    }

    /// The prediction for the negative prompt, of the latents' shape.
    pub(super) fn prediction(&mut self, shape: &[i32]) -> Result<Array> {
        self.answered()?;
        // A neighbour in the ring.
        let last = self.group.size() - 1;
        self.group.write(last, &serde_json::to_vec(&Order::Hand)?)?;
        let prediction = self.group.receive(shape, Dtype::Float32, last)?;
        self.is_ready = self.caches;
        Ok(prediction)
    }

    /// The machines that have the other rows of what this one predicts, if there are any.
    pub(super) fn rows(&self) -> Option<Rc<dyn Share>> {
        self.parts.rows(&self.group)
    }

    /// Fails if a rank is lost.
    pub(super) fn check(&self) -> Result<()> {
        self.group.check()
    }

    fn order(&self, order: &Order) -> Result<()> {
        let order = serde_json::to_vec(order)?;
        (1..self.group.size()).try_for_each(|rank| self.group.write(rank, &order))
    }

    /// Waits until the last order to predict is done; answers to earlier ones are of steps that failed
    /// here.
    fn answered(&self) -> Result<()> {
        let last = self.group.size() - 1;
        loop {
            let answer: Answer = serde_json::from_slice(&self.group.read(last)?)?;
            match answer.state {
                _ if answer.id != self.id => {}
                Predicted::Done => return Ok(()),
                Predicted::NotFinite(place) => {
                    let place = format!("{} on {}", place.as_str().shown(), self.group.name(last));
                    return Err(NotFinite { place }.into());
                }
            }
        }
    }

    /// Has the others begin to decode their parts of `latents` `[z_dim, frames, height, width]`, normalised;
    /// `None` where that is not worth it.
    ///
    /// # Errors
    /// [`RankLost`](crate::runtime::RankLost).
    pub(in crate::pipeline) fn decode(
        &mut self,
        config: &VaeConfig,
        memory: &MemoryPlan,
        latents: &Array,
    ) -> Result<Option<Decoders<'_>>> {
        let tiling = memory.decode_tiling;
        let grid = [1, 2, 3].map(|axis| latents.dim(axis));
        // One with less memory may have to decode otherwise.
        let division = (self.alike)
            .then(|| Division::of(config, tiling, grid, self.group.size()))
            .flatten();
        let Some(division) = division else {
            return Ok(None);
        };
        let order = serde_json::to_vec(&Order::Decode { tiling })?;
        let bytes = to_bytes(&to_host(latents)?);
        for rank in 1..division.machines() {
            self.group.write(rank, &order)?;
            self.group.write(rank, &bytes)?;
            self.ordered += bytes.len() as u64;
        }
        let partner = self;
        Ok(Some(Decoders { division, partner }))
    }

    /// The next part of a frame that a rank has decoded.
    ///
    /// # Errors
    /// [`RankLost`](crate::runtime::RankLost).
    pub(in crate::pipeline) fn decoded(&self, rank: usize) -> Result<Vec<f32>> {
        let values = from_bytes(&self.group.read(rank)?);
        self.group.write(rank, b"taken")?;
        Ok(values)
    }

    /// Bytes of arrays that this machine has sent to others.
    pub(in crate::pipeline) fn sent(&self) -> u64 {
        self.ordered + self.group.sent()
    }
}

impl Job {
    /// Has the ranks of a group share the clip; says what they share.
    ///
    /// # Errors
    /// When it has less than they could share.
    pub(crate) fn share_with(&mut self, mut partner: Partner) -> Result<String> {
        partner.parts = Parts::of(&partner.group, self.prompts.negative.is_some());
        let grid = self.settings.latent_grid(&self.checkpoint.vae);
        let tokens: i32 = self.checkpoint.dit().token_grid(grid).iter().product();
        let machines = partner.group.size();
        ensure!(
            is_enough(machines as i32, tokens),
            "the clip has {tokens} tokens, too few for {machines} machines"
        );
        let what = match partner.parts {
            Parts { halves: false, .. } => "the sequence",
            Parts { each: 1, .. } => "guidance",
            Parts { .. } => "guidance and the sequence",
        };
        let names = (0..machines).map(|rank| partner.group.name(rank));
        let names = names.collect::<Vec<_>>().join(", ");
        self.partner = Some(partner);
        Ok(format!("{names} share {what}"))
    }

    /// Whether other machines have a part in it.
    pub(crate) fn is_shared(&self) -> bool {
        self.partner.is_some()
    }

    /// Computes what rank 0 asks for, until that is done with it.
    ///
    /// # Errors
    /// When rank 0 makes another clip or is lost, a weight is damaged, or MLX fails.
    pub(crate) fn serve(
        self,
        device: Device,
        memory: MemoryPlan,
        group: &Rc<Group>,
        identity: &Identity,
    ) -> Result<()> {
        group.write(0, &serde_json::to_vec(identity)?)?;
        // Rank 0 may find that nothing is to be done.
        let Some(state) = group.next(0)? else {
            return Ok(());
        };
        let state = SavedRun::from_bytes(&state)?;
        let checkpoint = Rc::clone(&self.checkpoint);
        let mut denoiser = Denoiser::resume(&checkpoint, device, memory, &state, &self.settings)?;
        denoiser.restored = None;
        let parts = Parts::of(group, self.prompts.negative.is_some());
        if parts.halves {
            let negative = denoiser.prompts.negative.take();
            if parts.is_negative(group.rank()) {
                denoiser.prompts.prompt = negative.context("rank 0 has sent no negative prompt")?;
            }
        }
        denoiser.serve(group, parts)
    }
}

impl Denoiser<'_> {
    /// The same run shared with other machines. What a cache had is of the rows of one.
    ///
    /// # Errors
    /// [`RankLost`](crate::runtime::RankLost).
    pub(in crate::pipeline) fn shared_with(mut self, partner: Option<Partner>) -> Result<Self> {
        if let Some(mut partner) = partner {
            partner.start(&self.state(), self.settings.cache.method)?;
            self.partner = Some(partner);
            if let Some(restored) = &mut self.restored {
                restored.forget();
            }
        }
        Ok(self)
    }

    fn serve(mut self, group: &Rc<Group>, parts: Parts) -> Result<()> {
        let mut experts = Experts::new(self.checkpoint);
        let rows = parts.rows(group);
        let hands_over = parts.halves && group.rank() + 1 == group.size();
        let mut prediction: Option<Array> = None;
        while let Some(order) = group.next(0)? {
            match serde_json::from_slice(&order)? {
                Order::Load { expert, left_f16 } => {
                    if left_f16 && !self.left_f16 {
                        self.without_f16();
                    }
                    self.prepare(expert, &mut experts, None, &mut Silent)?;
                }
                Order::Predict { id, index, reuse } => {
                    self.read_latents(group)?;
                    let predicted =
                        self.predict(super::loaded(&experts)?, index, reuse, rows.as_ref());
                    if predicted.is_err() {
                        group.check()?;
                    }
                    let state = match predicted.map_err(anyhow::Error::downcast::<NotFinite>) {
                        Ok(mut predicted) => {
                            prediction = predicted.pop();
                            Predicted::Done
                        }
                        Err(Ok(NotFinite { place })) => Predicted::NotFinite(place),
                        Err(Err(error)) => return Err(error),
                    };
                    // Whoever has other rows finds the same.
                    if hands_over {
                        group.write(0, &serde_json::to_vec(&Answer { id, state })?)?;
                    }
                }
                Order::Hand => {
                    let predicted = prediction.take().context("nothing was predicted")?;
                    group.send(&predicted, 0)?;
                }
                Order::Decode { tiling } => {
                    self.read_latents(group)?;
                    prediction = None;
                    self.prepared = None;
                    experts.release()?;
                    self.decode_share(group, tiling)?;
                }
            }
        }
        Ok(())
    }

    fn read_latents(&mut self, group: &Group) -> Result<()> {
        let values = from_bytes(&group.read(0)?);
        ensure!(
            values.len() == self.latents.size(),
            "rank 0 has sent other latents"
        );
        self.latents = Array::from_slice(&values, self.latents.shape());
        Ok(())
    }

    /// Decodes this rank's part of the latents, and sends it as far ahead as rank 0 wants it.
    fn decode_share(&self, group: &Group, decode_tiling: Option<Tiling>) -> Result<()> {
        let config = &self.checkpoint.vae;
        let grid = [1, 2, 3].map(|axis| self.latents.dim(axis));
        let division = Division::of(config, decode_tiling, grid, group.size());
        let division = division.context("rank 0 has clips decoded that are not worth it")?;
        let decoder = self.checkpoint.load_vae_decoder(self.device)?;
        let memory = MemoryPlan {
            decode_tiling,
            ..self.memory
        };
        let latents = config.denormalize(&self.latents)?;
        let mut ahead = 0;
        let mut give = |values: &[f32]| {
            if ahead == AHEAD {
                group.read(0)?;
            } else {
                ahead += 1;
            }
            group.write(0, &to_bytes(values))
        };
        decoder.decode_share(&latents, &memory, &division, group.rank(), &mut give)?;
        (0..ahead).try_for_each(|_| group.read(0).map(drop))
    }
}

fn to_bytes(values: &[f32]) -> Vec<u8> {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes());
    bytes.collect()
}

fn from_bytes(bytes: &[u8]) -> Vec<f32> {
    let words = bytes.as_chunks().0.iter();
    words.map(|word| f32::from_le_bytes(*word)).collect()
}
