//! The parts of the networks by which a forecast's times are measured: the calls that a run makes, with
//! its sizes, on a few layers of weights that need no file.
//!
//! What a forecast asks for is a [`Work`]: a part, and how much more of it the run does. Where a part
//! was not measured, its operations count at the rates of large products.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mlx_rs::memory::clear_cache;
use mlx_rs::{Array, Dtype, ops};
use ndarray::Array3;

use crate::model::clip_vision::{ClipVision, ClipVisionConfig};
use crate::model::cost::{Measured, Operations, Rates};
use crate::model::dit::{self, CrossKv, Dit, DitConfig, Rope};
use crate::model::layers::{Quantized, Weight};
use crate::model::umt5::{self, Umt5, Umt5Config};
use crate::model::vae::{Chunk, VaeConfig, VaeDecoder, VaeEncoder};
use crate::model::{MemoryPlan, Role, TensorSource, clip_vision};
use crate::pipeline::TEXT_LEN;
use crate::runtime::{self, Device, Mode};
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
const LEAST_SIDE: i32 = 12;
/// What a half of the VAE is to compute, if the least frames are not more: those of 8 x 8 latents reach half the
/// rate of larger ones.
const VAE_OPERATIONS: u64 = 600_000_000_000;
/// What a part is to compute, if one layer is not more.
const OPERATIONS: u64 = 150_000_000_000;
/// Operations that take as long as unpacking a value does.
const UNPACKED: u64 = 200;
/// What its layers' matrices are to have.
const VALUES: u64 = 500_000_000;
/// A part is measured for so long, or so often if that is sooner, and twice at least: the first run touches
/// new memory.
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
    /// Reading a gigabyte of a part's files that are not in memory.
    Read(PartName),
    /// Loading a gigabyte of a part's weights, which take so many bytes.
    Load(PartName, Option<Half>, Format, u64),
    /// The text encoder on so many tokens.
    Text(Umt5Config, Format, i32),
    /// An expert's keys and values of a prompt of so many tokens.
    Prompt(DitConfig, Format, i32),
    /// A step of an expert on a grid of tokens, with prompts of so many: two are one pass.
    Step(DitConfig, Format, MemoryPlan, [i32; 3], Vec<i32>),
    /// The image encoder on a picture.
    Features(ClipVisionConfig),
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
    /// Reading so many bytes of files that are not in memory.
    pub(super) fn read(name: PartName, bytes: u64, device: Device) -> Self {
        Self {
            part: Part::Read(name),
            device,
            calls: 0.0,
            inside: Scale::Times(bytes as f64 / GIGABYTE),
            operations: Operations::default(),
            bytes: 0,
        }
    }

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
        let unpacked = match format.packing {
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

    /// The features of pictures.
    pub(super) fn features(
        config: &ClipVisionConfig,
        device: Device,
        operations: Operations,
    ) -> Self {
        let part = ClipVisionConfig {
            num_hidden_layers: config.num_hidden_layers.min(3),
            ..config.clone()
        };
        let one = clip_vision::cost::operations(&part);
        Self {
            part: Part::Features(part),
            device,
            calls: 0.0,
            inside: Scale::Work([operations, one]),
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
            let values = format.packing.map_or(0, |_| dit::cost::weights(config));
            let memory = &MemoryPlan::WHOLE;
            dit::cost::prompt(config, rows)
                + dit::cost::unpacking(config, device, memory, values, &[rows], [0, 0], [0, 0])
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
            let passes: Operations = passes
                .map(|n| dit::cost::pass(config, tokens, [n, 0]))
                .sum();
            let values = format.packing.map_or(0, |_| dit::cost::weights(config));
            dit::cost::start(config, tokens).times(starts)
                + passes
                + dit::cost::unpacking(config, device, memory, values, &[], [tokens, 0], steps)
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
        while of(grid).total() > VAE_OPERATIONS {
            let [frames, rows, columns] = grid;
            let half = |side: i32| ((side + 1) / 2).max(LEAST_SIDE);
            grid = match () {
                () if frames > 2 => [2, rows, columns],
                () if rows.max(columns) <= LEAST_SIDE => break,
                () if rows > columns => [frames, half(rows), columns],
                () => [frames, rows, half(columns)],
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
        matches!(self.part, Part::Load(..) | Part::Read(..))
    }

    /// What the part's time is kept by: all that it depends on.
    fn key(&self) -> String {
        let kind = match self.part {
            Part::Read(..) => "read",
            Part::Load(..) => "load",
            Part::Text(..) => "text",
            Part::Prompt(..) => "prompt",
            Part::Step(..) => "step",
            Part::Features(..) => "features",
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
        // Under a limit on memory OpenBLAS, for which no budget is made here, ends the process.
        if rates.part(&key).is_some() || runtime::has_limits() {
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
            Part::Read(name) => {
                let Some((bytes, seconds)) = checkpoint.time_reading(*name)? else {
                    return Ok(None);
                };
                inside(seconds * GIGABYTE / bytes as f64)
            }
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
            Part::Features(config) => {
                let mut filling = Filling::new(Kind::ImageEncoder, Format::NO_FILE, device);
                let encoder = ClipVision::load(config, &mut filling, device)?;
                let side = config.image_size as usize;
                let picture = Array3::from_elem((side, side, 3), 0.5);
                inside(quickest(&mut || encoder.encode(picture.view()).map(drop))?)
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
                let inside = quickest(&mut || {
                    dit.cross_kv_of_embedded(&embedded, copies)?;
                    Ok(())
                })?;
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
                        let [_, height, width] = config.pixel_grid(*grid);
                        let picture = [1, height, width, 3];
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
    let beside = config.in_channels - config.out_channels;
    let condition = (beside > 0).then(|| of(beside)).transpose()?;
    let condition = condition.as_ref();
    let rope = Rope::new(grid, config.attention_head_dim);
    let cross = prompts.iter().map(|&tokens| {
        let encoded = filled(&[tokens, config.text_dim], 0.5, Dtype::Float32)?;
        Ok(dit.cross_kv(&encoded, TEXT_LEN as i32)?)
    });
    let cross = cross.collect::<Result<Vec<Vec<CrossKv>>>>()?;
    let time = dit.embed_time(500)?;
    let tokens = dit.embed(&noise, condition, 0, memory)?;
    let outside = quickest(&mut || {
        let time = dit.embed_time(500)?;
        let tokens = dit.embed(&noise, condition, 0, memory)?;
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
    for run_number in 0..TIMES {
        let before = now();
        run().context("cannot measure this machine")?;
        let after = now();
        least = least.min(after.saturating_sub(before));
        if run_number > 0 && after.saturating_sub(start) >= TIME {
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
    fn stands_in(&self) -> bool {
        true
    }

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
        let packing = (self.format.packing)
            .filter(|_| role == Role::Matmul && may_quantize(self.kind, name, &sides));
        let Some(packing) = packing else {
            return self.tensor(name, &shape, role).map(Weight::Dense);
        };
        let [inputs, groups] = [inputs, inputs / packing.group_size];
        let words = Array::from_slice(&[0x7777_7777_u32], &[1]);
        let words_of_row = packing.words(inputs as usize) as i32;
        let packed = ops::full::<u32>(&[outputs, words_of_row], words)?;
        packed.eval()?;
        let (scales, biases) = match packing.mode {
            Mode::Affine => {
                let dtype = self.device.dtype.matmul_dtype();
                let side = || filled(&[outputs, groups], 0.01 / inputs as f32, dtype);
                (side()?, Some(side()?))
            }
            Mode::Mxfp8 | Mode::Mxfp4 | Mode::Nvfp4 => {
                // Some hundredths, as an exponent or as a float8.
                let scales =
                    ops::full::<u8>(&[outputs, groups], Array::from_slice(&[0x20_u8], &[1]))?;
                scales.eval()?;
                (scales, None)
            }
        };
        Ok(Weight::Quantized(
            Quantized {
                packed,
                scales,
                biases,
                packing,
                factor: None,
                rotation: None,
                device: self.device,
            },
            Vec::new(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::vae;
    use crate::runtime::{DeviceKind, Packing, Precision};
    use crate::tiny;
    use crate::weights::{Bits, Loading, published};
    use std::cell::Cell;

    const DEVICE: Device = Device::new(DeviceKind::Cpu, None);
    const DENSE: Format = Format {
        stored: "bf16",
        packing: None,
        wide: true,
    };
    const PACKED: Format = Format {
        packing: Some(Packing::affine(4, 64)),
        ..DENSE
    };

    fn steps(grid: [i32; 3], prompts: &[usize], times: u64) -> Work {
        let memory = MemoryPlan::of_tokens(grid.iter().product());
        let config = published::expert();
        Work::steps(&config, PACKED, &memory, grid, prompts, DEVICE, times)
    }

    /// Rates at which a part takes as long as is said.
    fn taking(works: &[(&Work, [f64; 2])]) -> Rates {
        let mut rates = Rates::even(1e12);
        for (work, [outside, inside]) in works {
            let (outside, inside) = (*outside, *inside);
            rates.note(work.key(), Measured { outside, inside });
        }
        rates
    }

    #[test]
    fn the_quickest_of_a_few_runs_counts() {
        // Each run takes the next of these milliseconds.
        let least = |runs: &[u64]| {
            let (clock, run) = (Cell::new(0), Cell::new(0));
            let seconds = quickest_by(&mut || Duration::from_millis(clock.get()), &mut || {
                clock.set(clock.get() + runs[run.get()]);
                run.set(run.get() + 1);
                Ok(())
            });
            ((seconds.unwrap() * 1e3).round() as u64, run.get())
        };
        assert_eq!(least(&[9000, 8000, 1]), (8000, 2));
        assert_eq!(least(&[300, 60, 50, 1]), (50, 3));
        assert_eq!(least(&[9, 8, 7, 6, 5, 4, 3, 2, 4, 1]), (2, TIMES));
        let fails = quickest_by(&mut || Duration::ZERO, &mut || anyhow::bail!("no memory"));
        assert!(fails.is_err());
    }

    #[test]
    fn prompts_of_about_the_same_length_are_one_part() {
        let of = |tokens| rows(tokens, DEVICE);
        assert_eq!(
            [1, 2, 3, 16, 17, 126, 512].map(of),
            [1, 2, 16, 16, 32, 128, 512]
        );
        assert_eq!([0, usize::MAX].map(of), [1, 512]);
        let never = Device {
            dense_above: 768,
            ..DEVICE
        };
        assert_eq!(rows(126, never), 126);
    }

    #[test]
    fn a_part_has_as_many_layers_as_take_a_moment() {
        let of = |work, values, most| fitting(Operations::product(1, 1, work), values, [1, most]);
        assert_eq!(of(1, 1, 30), 30);
        assert_eq!(of(OPERATIONS / 2 / 3, 1, 30), 3);
        assert_eq!(of(1, VALUES / 4, 30), 4);
        assert_eq!(of(OPERATIONS, u64::MAX, 30), 1);
        let unpacked = Operations::unpacking(OPERATIONS / UNPACKED / 2);
        assert_eq!(fitting(unpacked, 1, [1, 30]), 2);
    }

    #[test]
    fn layers_calls_and_bytes_are_multiplied() {
        let text = Work::text(
            &published::text_encoder(),
            PACKED,
            126,
            DEVICE,
            Operations::product(1, 1, 1_000_000_000_000),
        );
        let Part::Text(part, _, 128) = &text.part else {
            panic!("{text:?}");
        };
        let (layers, all) = (f64::from(part.num_layers), 24.0);
        // Until it is measured, its operations count.
        assert_eq!(text.seconds(&taking(&[])), 2.0);
        let rates = taking(&[(&text, [0.0, 3.0])]);
        assert!((text.seconds(&rates) - 3.0 * all / layers).abs() < 1e-9);

        let load = Work::load(PartName::HighNoise, None, PACKED, 8_000_000_000, DEVICE);
        assert!(load.loads() && !text.loads());
        let rates = taking(&[(&load, [0.0, 0.5])]);
        assert_eq!(load.seconds(&rates), 4.0);

        let step = |times| steps([2, 4, 4], &[24, 126], times);
        let Part::Step(part, ..) = &step(1).part else {
            panic!("{:?}", step(1));
        };
        assert_eq!(part.num_layers, 2);
        let rates = taking(&[(&step(1), [0.25, 1.0])]);
        let once = step(1).seconds(&rates);
        // What is outside the layers comes once a step, however many there are. The first layer's
        // self-attention (4 * 5120² values) is one for both passes, the rest of it is not.
        let [own, rest] = [4.0 * 5120.0, 2.0 * 5120.0 + 2.0 * 13_824.0];
        let more = (39.5 * own + 40.0 * rest) / (1.5 * own + 2.0 * rest);
        assert!(((once - 0.25) / more - 1.0).abs() < 0.01, "{once} {more}");
        assert!((step(7).seconds(&rates) / once - 7.0).abs() < 1e-9);
    }

    /// A long clip is told from fewer tokens, and a longer one takes longer.
    #[test]
    fn longer_clips_are_told_from_the_same_part() {
        let clips =
            [[9, 30, 52], [21, 30, 52], [21, 45, 80]].map(|grid| steps(grid, &[24, 126], 1));
        let rates = taking(&[(&clips[0], [0.0, 1.0])]);
        let seconds = clips.map(|clip| clip.seconds(&rates));
        assert!(seconds[0] > 100.0 && seconds.is_sorted(), "{seconds:?}");
        // Attention grows with the square.
        assert!(seconds[1] / seconds[0] > 21.0 / 9.0, "{seconds:?}");
        assert!(rates.part(&steps([2, 4, 4], &[24, 126], 1).key()).is_none());
    }

    #[test]
    fn whatever_decides_the_speed_makes_another_key() {
        let text = |device, format, tokens| {
            let config = published::text_encoder();
            Work::text(&config, format, tokens, device, Operations::default()).key()
        };
        let first = text(DEVICE, PACKED, 20);
        assert_eq!(text(DEVICE, PACKED, 30), first);
        let bf16 = Device::new(DeviceKind::Cpu, Some(Precision::Bf16));
        let dense = Device {
            dense_above: 5,
            ..DEVICE
        };
        for other in [
            text(DEVICE, PACKED, 40),
            text(DEVICE, DENSE, 20),
            text(bf16, PACKED, 20),
            text(dense, PACKED, 20),
        ] {
            assert_ne!(other, first);
        }
    }

    #[test]
    fn a_large_frame_is_told_from_a_small_one() {
        let (config, of) = (published::vae(), |grid| {
            vae::cost::decode_operations(&published::vae(), grid, None)
        });
        let work =
            |grid, tile| Work::vae(&config, Half::Decoder, (grid, tile), DEVICE, of(grid), &of);
        let Part::Vae(.., grid) = work([21, 60, 104], None).part else {
            panic!();
        };
        assert!(grid[0] == 2 && grid[1..].iter().all(|side| (12..=26).contains(side)));
        assert!(of(grid).total() <= VAE_OPERATIONS || grid == [2, 12, 12]);
        let Part::Vae(.., grid) = work([1, 4, 104], Some([4, 12])).part else {
            panic!();
        };
        assert_eq!(grid, [1, 4, 12]);
    }

    /// Every part of a forecast can be measured: its weights are those that the network asks for.
    #[test]
    fn all_of_the_miniature_is_measured() {
        for bits in [Loading::default(), Loading::all(Bits::Four)] {
            let checkpoint = Checkpoint::embedded(tiny::FILES, bits).unwrap();
            let forecast = super::super::tests::forecast_of(&checkpoint);
            let mut rates = Rates::even(1e12);
            for work in forecast.phases.iter().flat_map(|phase| &phase.works) {
                let known = rates.part(&work.key()).is_some();
                assert_eq!(work.measure(&mut rates, &checkpoint), !known, "{work:?}");
                assert!(rates.part(&work.key()).is_some(), "{work:?}");
                assert!(!work.measure(&mut rates, &checkpoint));
            }
        }
    }
}
