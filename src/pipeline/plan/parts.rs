//! The parts of the networks by which a forecast's times are measured: the calls that a run makes, with
//! its sizes, on a few layers of weights that need no file.
//!
//! What a forecast asks for is a [`Work`]: a part, and how much more of it the run does. Where a part
//! was not measured, its operations count at the rates of large products.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mlx_rs::memory::clear_cache;
use mlx_rs::{Array, Dtype, ops};

use crate::model::cost::{Measured, Operations, Rates};
use crate::model::dit::{self, CrossKv, Dit, DitConfig, Rope};
use crate::model::layers::{Quantized, Weight};
use crate::model::umt5::{self, Umt5, Umt5Config};
use crate::model::vae::{Chunk, SPATIAL_STRIDE, VaeConfig, VaeDecoder, VaeEncoder};
use crate::model::{MemoryPlan, Role, TensorSource};
use crate::pipeline::TEXT_LEN;
use crate::runtime::Device;
use crate::util::hex::to_hex;
use crate::weights::naming::Kind;
use crate::weights::part::may_quantize;
use crate::weights::{Checkpoint, Format, PartName};

/// Prompts are measured at multiples of so many tokens: products of few rows take about as long.
const TEXT_ROWS: i32 = 16;
/// The time of a clip of more tokens is told from fewer, at which products have reached their rate.
const MOST_TOKENS: i32 = 2048;
/// Tokens along the axes of those fewer.
const FEWER: [i32; 3] = [16, 8, 8];
/// The least rows and columns of latents that stand for a larger frame.
const LEAST_SIDE: i32 = 8;
/// What a part is to compute, if one layer is not more.
const OPERATIONS: u64 = 150_000_000_000;
/// Operations that take as long as unpacking a value does.
const UNPACKED: u64 = 200;
/// What its layers' matrices are to have.
const VALUES: u64 = 500_000_000;
/// A part is measured for so long, or so often if that is sooner, and once at least.
const TIME: Duration = Duration::from_millis(400);
const TIMES: usize = 9;
/// The vocabulary of a text encoder that is measured.
const WORDS: i32 = 64;
/// Bytes of loaded weights that are a measure.
const GIGABYTE: f64 = 1e9;

/// A half of the VAE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    Encoder,
    Decoder,
}

/// What is measured.
#[derive(Clone, Debug, PartialEq)]
enum Part {
    /// Loading a gigabyte of a part's weights, which take so many bytes.
    Load(PartName, Option<Half>, Format, u64),
    /// The text encoder on so many tokens.
    Text(Umt5Config, Format, i32),
    /// An expert's keys and values of a prompt of so many tokens.
    Prompt(DitConfig, Format, i32),
    /// A step of an expert on a grid of tokens, with prompts of so many: two are one pass.
    Step(DitConfig, Format, MemoryPlan, [i32; 3], Vec<i32>),
    /// The VAE on a grid of latents.
    Vae(VaeConfig, Half, [i32; 3]),
}

/// How much more of a part a run computes.
#[derive(Clone, Debug, PartialEq)]
enum Scale {
    Times(f64),
    /// As these operations, of the run and of the part, take at the rates of large products.
    Work([Operations; 2]),
}

/// A part's share in a phase.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Work {
    part: Part,
    device: Device,
    /// Calls, each of which has what is outside the layers.
    calls: f64,
    inside: Scale,
    /// What is computed.
    pub(super) operations: Operations,
    /// What is loaded.
    pub(super) bytes: u64,
}

impl Work {
    /// Loading so many bytes of weights.
    pub(super) fn load(
        name: PartName,
        half: Option<Half>,
        format: Format,
        bytes: u64,
        device: Device,
    ) -> Self {
        Self {
            part: Part::Load(name, half, format, bytes),
            device,
            calls: 0.0,
            inside: Scale::Times(bytes as f64 / GIGABYTE),
            operations: Operations::default(),
            bytes,
        }
    }

    /// Encoding a prompt of so many tokens.
    pub(super) fn text(
        config: &Umt5Config,
        format: Format,
        tokens: usize,
        device: Device,
        operations: Operations,
    ) -> Self {
        let device = device.for_text();
        let tokens = rows(tokens, device);
        let layers = |num_layers| Umt5Config {
            num_layers,
            vocab_size: WORDS,
            ..config.clone()
        };
        let one = layers(1);
        let values = umt5::cost::weights(&one);
        let unpacked = match format.bits {
            Some(_) => umt5::cost::unpacking(device, values, tokens as u64),
            None => Operations::default(),
        };
        let work = umt5::cost::operations(&one, tokens as u64) + unpacked;
        let part = layers(fitting(work, values, [1, config.num_layers]));
        Self {
            device,
            calls: 1.0,
            inside: Scale::Times(f64::from(config.num_layers) / f64::from(part.num_layers)),
            part: Part::Text(part, format, tokens),
            operations,
            bytes: 0,
        }
    }

    /// An expert's keys and values of a prompt of so many tokens.
    pub(super) fn prompt(
        config: &DitConfig,
        format: Format,
        tokens: usize,
        device: Device,
    ) -> Self {
        let of = |config: &DitConfig, tokens: usize| {
            let rows = dit::cost::text_rows(device, tokens, TEXT_LEN)[0];
            let values = format.bits.map_or(0, |_| dit::cost::weights(config));
            let memory = &MemoryPlan::WHOLE;
            dit::cost::prompt(config, rows)
                + dit::cost::unpacking(config, device, memory, values, &[rows], 0, [0, 0])
        };
        let operations = of(config, tokens);
        let tokens = rows(tokens, device);
        let one = with_layers(config, 1);
        let (work, values) = (of(&one, tokens as usize), dit::cost::weights(&one));
        let part = with_layers(config, fitting(work, values, [1, config.num_layers]));
        Self {
            device,
            calls: 1.0,
            inside: Scale::Times(f64::from(config.num_layers) / f64::from(part.num_layers)),
            part: Part::Prompt(part, format, tokens),
            operations,
            bytes: 0,
        }
    }

    /// `times` steps on a grid of tokens, each with a pass for every prompt.
    pub(super) fn steps(
        config: &DitConfig,
        format: Format,
        memory: &MemoryPlan,
        grid: [i32; 3],
        prompts: &[usize],
        device: Device,
        times: u64,
    ) -> Self {
        let of = |config: &DitConfig, memory: &MemoryPlan, grid: [i32; 3], prompts: &[usize]| {
            let tokens = grid.iter().product::<i32>().max(0) as u64;
            let steps = [1, prompts.len() as u64 - 1];
            let starts = match memory.joint_passes || memory.shared_start {
                true => 1,
                false => prompts.len() as u64,
            };
            let keys = |&n: &usize| dit::cost::text_rows(device, n, TEXT_LEN)[1];
            let passes = prompts.iter().map(keys);
            let passes: Operations = passes.map(|n| dit::cost::pass(config, tokens, n)).sum();
            let values = format.bits.map_or(0, |_| dit::cost::weights(config));
            dit::cost::start(config, tokens).times(starts)
                + passes
                + dit::cost::unpacking(config, device, memory, values, &[], tokens, steps)
        };
        let tokens = grid.iter().product::<i32>();
        let part_grid = match tokens > MOST_TOKENS {
            true => FEWER,
            false => grid,
        };
        let chunked = part_grid.iter().product::<i32>() > memory.chunk_rows;
        let joint = memory.joint_passes && prompts.len() > 1 && tokens <= MOST_TOKENS;
        let part_memory = MemoryPlan {
            chunk_rows: if chunked { memory.chunk_rows } else { i32::MAX },
            joint_passes: joint,
            score_bytes: memory.score_bytes,
            ..MemoryPlan::WHOLE
        };
        let passes = if joint { prompts.len() } else { 1 };
        let part_prompts: Vec<usize> = prompts[..passes]
            .iter()
            .map(|&n| rows(n, device) as usize)
            .collect();
        let one = with_layers(config, 1);
        let work = of(&one, &part_memory, part_grid, &part_prompts);
        // In the first layer joint passes are one.
        let least = config.num_layers.min(passes as i32);
        let layers = fitting(work, dit::cost::weights(&one), [least, config.num_layers]);
        let part = with_layers(config, layers);
        let step = of(config, memory, grid, prompts);
        Self {
            device,
            calls: (times * (prompts.len() / passes) as u64) as f64,
            inside: Scale::Work([
                step.times(times),
                of(&part, &part_memory, part_grid, &part_prompts),
            ]),
            part: Part::Step(
                part,
                format,
                part_memory,
                part_grid,
                part_prompts.iter().map(|&n| n as i32).collect(),
            ),
            operations: (step + dit::cost::step(config)).times(times),
            bytes: 0,
        }
    }

    /// One way of the VAE on a grid of latents, in tiles of `tile` where it has any; `operations` are
    /// those of the run, and `of` those of a grid in whole frames.
    pub(super) fn vae(
        config: &VaeConfig,
        half: Half,
        ([frames, rows, columns], tile): ([i32; 3], Option<[i32; 2]>),
        device: Device,
        operations: Operations,
        of: &dyn Fn([i32; 3]) -> Operations,
    ) -> Self {
        let [most_rows, most_columns] = tile.unwrap_or([rows, columns]);
        let mut grid = [
            frames.min(3),
            rows.min(most_rows),
            columns.min(most_columns),
        ];
        while of(grid).total() > OPERATIONS {
            let [frames, rows, columns] = grid;
            let half = |side: i32| ((side + 1) / 2).max(LEAST_SIDE);
            grid = match () {
                () if rows.max(columns) > LEAST_SIDE && rows > columns => {
                    [frames, half(rows), columns]
                }
                () if rows.max(columns) > LEAST_SIDE => [frames, rows, half(columns)],
                () if frames > 2 => [2, rows, columns],
                () => break,
            };
        }
        Self {
            part: Part::Vae(config.clone(), half, grid),
            device,
            calls: 0.0,
            inside: Scale::Work([operations, of(grid)]),
            operations,
            bytes: 0,
        }
    }

    /// Seconds at a machine's rates: those of the part where it was measured.
    pub(super) fn seconds(&self, rates: &Rates) -> f64 {
        let Some(measured) = rates.part(&self.key()) else {
            return rates.seconds(self.operations, self.bytes);
        };
        let more = match self.inside {
            Scale::Times(times) => times,
            Scale::Work([run, part]) => rates.seconds(run, 0) / rates.seconds(part, 0),
        };
        self.calls * measured.outside + more * measured.inside
    }

    /// Whether it is loading.
    pub(super) fn loads(&self) -> bool {
        matches!(self.part, Part::Load(..))
    }

    /// What the part's time is kept by: all that it depends on.
    fn key(&self) -> String {
        let kind = match self.part {
            Part::Load(..) => "load",
            Part::Text(..) => "text",
            Part::Prompt(..) => "prompt",
            Part::Step(..) => "step",
            Part::Vae(_, Half::Encoder, _) => "encoder",
            Part::Vae(_, Half::Decoder, _) => "decoder",
        };
        let all = format!("{:?} {:?}", self.part, self.device);
        let hash = blake3::hash(all.as_bytes());
        format!("{kind} {}", to_hex(&hash.as_bytes()[..12]))
    }

    /// Has its part measured, unless it is known already; says whether it was.
    pub(super) fn measure(&self, rates: &mut Rates, checkpoint: &Checkpoint) -> bool {
        let key = self.key();
        if rates.part(&key).is_some() {
            return false;
        }
        // What cannot be measured counts at the rates of large products.
        let measured = self.time(checkpoint);
        let _ = clear_cache();
        match measured {
            Ok(Some(measured)) => rates.note(key, measured),
            Ok(None) | Err(_) => return false,
        }
        true
    }

    fn time(&self, checkpoint: &Checkpoint) -> Result<Option<Measured>> {
        let device = self.device;
        Ok(Some(match &self.part {
            Part::Load(name, None, ..) => {
                let Some((bytes, seconds)) = checkpoint.time_loading(*name, device, TIME / 4)?
                else {
                    return Ok(None);
                };
                inside(seconds * GIGABYTE / bytes.max(1) as f64)
            }
            Part::Load(_, Some(half), format, bytes) => {
                if format.stored == Format::NONE {
                    return Ok(None);
                }
                let seconds = quickest(&mut || {
                    match half {
                        Half::Encoder => drop(checkpoint.load_vae_encoder(device)?),
                        Half::Decoder => drop(checkpoint.load_vae_decoder(device)?),
                    }
                    Ok(())
                })?;
                inside(seconds * GIGABYTE / (*bytes).max(1) as f64)
            }
            Part::Text(config, format, tokens) => {
                let mut filling = Filling::new(Kind::TextEncoder, *format, device);
                let encoder = Umt5::load(config, &mut filling, device)?;
                let ids: Vec<u32> = (0..*tokens).map(|n| (n % WORDS) as u32).collect();
                inside(quickest(&mut || encoder.encode(&ids).map(drop))?)
            }
            Part::Prompt(config, format, tokens) => {
                let mut filling = Filling::new(Kind::Expert, *format, device);
                let dit = Dit::load(config, &mut filling, device)?;
                let encoded = filled(&[*tokens + 1, config.text_dim], 0.5, Dtype::Float32)?;
                let mut embedded = dit.embed_text(&encoded)?;
                let outside = quickest(&mut || {
                    embedded = dit.embed_text(&encoded)?;
                    Ok(embedded.eval()?)
                })?;
                let copies = (TEXT_LEN as i32 - tokens).max(1);
                let inside =
                    quickest(&mut || Ok(drop(dit.cross_kv_of_embedded(&embedded, copies)?)))?;
                Measured { outside, inside }
            }
            Part::Step(config, format, memory, grid, prompts) => {
                let mut filling = Filling::new(Kind::Expert, *format, device);
                let dit = Dit::load(config, &mut filling, device)?;
                time_step(&dit, memory, *grid, prompts)?
            }
            Part::Vae(config, half, grid) => {
                let format = Format::NO_FILE;
                let mut filling = Filling::new(Kind::Vae, format, device);
                let [frames, rows, columns] = *grid;
                match half {
                    Half::Decoder => {
                        let decoder = VaeDecoder::load(config, &mut filling, device)?;
                        let latents =
                            filled(&[config.z_dim, 1, rows, columns], 0.5, Dtype::Float32)?;
                        inside(quickest(&mut || {
                            let mut stream = decoder.stream(&MemoryPlan::WHOLE);
                            for _ in 0..frames {
                                stream.push(&latents)?.eval()?;
                            }
                            Ok(())
                        })?)
                    }
                    Half::Encoder => {
                        let encoder = VaeEncoder::load(config, &mut filling, device)?;
                        let [height, width] = [rows, columns].map(|side| side * SPATIAL_STRIDE);
                        let picture = [1, height, width, config.in_channels];
                        let picture = Chunk::Pixels(filled(&picture, 0.5, Dtype::Float32)?);
                        inside(quickest(&mut || {
                            let mut stream = encoder.stream(&MemoryPlan::WHOLE);
                            stream.push(&picture)?;
                            for _ in 1..frames {
                                stream.push(&Chunk::Blank)?;
                            }
                            Ok(())
                        })?)
                    }
                }
            }
        }))
    }
}

fn inside(seconds: f64) -> Measured {
    Measured {
        outside: 0.0,
        inside: seconds,
    }
}

/// A step as the denoiser takes it.
fn time_step(dit: &Dit, memory: &MemoryPlan, grid: [i32; 3], prompts: &[i32]) -> Result<Measured> {
    let config = dit.config();
    let latents: Vec<i32> = (0..3)
        .map(|axis| grid[axis] * config.patch_size[axis])
        .collect();
    let latents = [latents[0], latents[1], latents[2]];
    let of = |channels: i32| {
        let shape = [channels, latents[0], latents[1], latents[2]];
        filled(&shape, 0.5, Dtype::Float32)
    };
    let noise = of(config.out_channels)?;
    let condition = of(config.in_channels - config.out_channels)?;
    let rope = Rope::new(grid, config.attention_head_dim);
    let cross = prompts.iter().map(|&tokens| {
        let encoded = filled(&[tokens, config.text_dim], 0.5, Dtype::Float32)?;
        Ok(dit.cross_kv(&encoded, TEXT_LEN as i32)?)
    });
    let cross = cross.collect::<Result<Vec<Vec<CrossKv>>>>()?;
    let time = dit.embed_time(500)?;
    let tokens = dit.embed(&noise, &condition, memory)?;
    let outside = quickest(&mut || {
        let time = dit.embed_time(500)?;
        let tokens = dit.embed(&noise, &condition, memory)?;
        for _ in prompts {
            dit.head(&tokens, &time, latents)?.eval()?;
        }
        Ok(())
    })?;
    let inside = quickest(&mut || {
        let start = dit.start(tokens.clone(), &time, &rope, memory)?;
        match cross.as_slice() {
            [one, two] => {
                dit.finish_both(&start, &time, &rope, [one, two], memory, &mut |_, _| Ok(()))?;
            }
            [one, ..] => {
                dit.finish(start, &time, &rope, one, memory, &mut |_, _| Ok(()))?;
            }
            [] => {}
        }
        Ok(())
    })?;
    Ok(Measured { outside, inside })
}

/// The quickest of some runs: what else the machine does at the moment slows the others.
fn quickest(run: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    quickest_by(&mut || start.elapsed(), run)
}

fn quickest_by(
    now: &mut dyn FnMut() -> Duration,
    run: &mut dyn FnMut() -> Result<()>,
) -> Result<f64> {
    let start = now();
    let mut least = Duration::MAX;
    for _ in 0..TIMES {
        let before = now();
        run().context("cannot measure this machine")?;
        let after = now();
        least = least.min(after.saturating_sub(before));
        if after.saturating_sub(start) >= TIME {
            break;
        }
    }
    Ok(least.as_secs_f64())
}

/// As many tokens as stand for a prompt of `tokens`: with these, weights are unpacked or not alike.
fn rows(tokens: usize, device: Device) -> i32 {
    let tokens = i32::try_from(tokens).unwrap_or(i32::MAX);
    match tokens > device.dense_above {
        true => (tokens.saturating_add(TEXT_ROWS - 1) / TEXT_ROWS * TEXT_ROWS).min(TEXT_LEN as i32),
        false => tokens.max(1),
    }
}

/// Layers of a part, when one computes `work` with so many `values`.
fn fitting(work: Operations, values: u64, [least, most]: [i32; 2]) -> i32 {
    let work = work.total().saturating_add(UNPACKED * work.unpacked);
    let layers = (OPERATIONS / work.max(1)).min(VALUES / values.max(1));
    i32::try_from(layers).unwrap_or(i32::MAX).clamp(least, most)
}

fn with_layers(config: &DitConfig, num_layers: i32) -> DitConfig {
    DitConfig {
        num_layers,
        ..config.clone()
    }
}

fn filled(shape: &[i32], value: f32, dtype: Dtype) -> Result<Array> {
    let array = ops::full::<f32>(shape, Array::from_f32(value))?.as_dtype(dtype)?;
    array.eval()?;
    Ok(array)
}

/// Weights that need no file, held as a file's are.
struct Filling {
    kind: Kind,
    format: Format,
    device: Device,
}

impl Filling {
    fn new(kind: Kind, format: Format, device: Device) -> Self {
        Self {
            kind,
            format,
            device,
        }
    }
}

impl TensorSource for Filling {
    fn tensor(&mut self, _name: &str, shape: &[i32], role: Role) -> Result<Array> {
        let dtype = match role {
            Role::Matmul => self.device.dtype.matmul_dtype(),
            Role::Stored if !self.format.wide => Dtype::Bfloat16,
            Role::Exact | Role::Table | Role::Stored => Dtype::Float32,
        };
        let inputs = shape.iter().skip(1).product::<i32>().max(1);
        filled(shape, 1.0 / inputs as f32, dtype)
    }

    fn weight(&mut self, name: &str, [outputs, inputs]: [i32; 2], role: Role) -> Result<Weight> {
        let shape = [outputs, inputs];
        let sides = shape.map(|side| side as usize);
        let packed = (self.format.bits)
            .filter(|_| role == Role::Matmul && may_quantize(self.kind, name, &sides));
        let Some([bits, group_size]) = packed else {
            return self.tensor(name, &shape, role).map(Weight::Dense);
        };
        let dtype = self.device.dtype.matmul_dtype();
        let side = |value| filled(&[outputs, inputs / group_size], value, dtype);
        let words = Array::from_slice(&[0x7777_7777_u32], &[1]);
        let packed = ops::full::<u32>(&[outputs, inputs * bits / 32], words)?;
        packed.eval()?;
        Ok(Weight::Quantized(Quantized {
            packed,
            scales: side(0.01 / inputs as f32)?,
            biases: side(0.01 / inputs as f32)?,
            group_size,
            bits,
            device: self.device,
        }))
    }
}
