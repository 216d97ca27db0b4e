//! Bits of each layer within a size: those with which the layers' errors add up to least.
//!
//! Activations after a norm are near white: then the expected square of a layer's output error is that of its
//! weight's error times the activations' energy, and relative to the output's it is the same share of the weight's energy.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use serde::Serialize;

use super::item::{Errors, Item, encode, float_type};
use super::source::ConvertSource;
use super::state::TensorReport;
use super::{Bits, Event, Options};
use crate::model::TensorSpec;
use crate::weights::PartName;
use crate::weights::part::{Found, Part, Values, may_quantize, quantize_parallel, usizes};
use crate::weights::quantize::{self, Scheme, Search};

/// Bits of layers, by their canonical names.
pub type Assignment = BTreeMap<PartName, BTreeMap<String, Bits>>;

/// The bits that layers are given.
const CHOICES: [Bits; 6] = [
    Bits::Three,
    Bits::Four,
    Bits::Five,
    Bits::Six,
    Bits::Eight,
    Bits::Sixteen,
];
/// Weights of a layer that are tried: their mean error is that of the layer within a percent.
const SAMPLE: usize = 1 << 18;
/// As many lie together; a multiple of every group and block.
const SPAN: usize = 1 << 12;
/// What a tensor takes besides its bytes: in a file's header, an index and the report.
const TENSOR_BYTES: u64 = 800;
/// What a folder has besides tensors: configuration, headers.
const FOLDER_BYTES: u64 = 16 << 10;

/// A layer with what each of [`CHOICES`] would make of it.
#[derive(Clone, Debug)]
struct Layer {
    part: PartName,
    name: String,
    bytes: [u64; CHOICES.len()],
    /// Squared error of its output over the output's square.
    errors: [f64; CHOICES.len()],
}

/// The layers of a part that do the same in each block.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerKind {
    /// The part.
    #[serde(skip)]
    pub part: PartName,
    /// What they are called inside a block.
    pub name: String,
    /// How many were given so many bits.
    pub bits: BTreeMap<u32, usize>,
    /// Root of the mean squared error of their weights, over those.
    pub relative_error: f64,
}

impl LayerKind {
    /// Those of a part, in the order of its tensors.
    pub fn all(
        part: PartName,
        assigned: &BTreeMap<String, Bits>,
        tensors: &[&TensorReport],
    ) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for tensor in tensors {
            let Some(bits) = assigned.get(&tensor.name) else {
                continue;
            };
            let name = inside_block(&tensor.name);
            let at = all.iter().position(|kind| kind.name == name);
            let at = at.unwrap_or_else(|| {
                all.push(Self {
                    part,
                    name: name.to_owned(),
                    bits: BTreeMap::new(),
                    relative_error: 0.0,
                });
                all.len() - 1
            });
            *all[at].bits.entry(bits.number()).or_default() += 1;
            all[at].relative_error += tensor.relative_error.powi(2);
        }
        for kind in &mut all {
            let count = kind.bits.values().sum::<usize>();
            kind.relative_error = (kind.relative_error / count as f64).sqrt();
        }
        all
    }

    /// The mean of their bits.
    pub fn mean_bits(&self) -> f64 {
        let [sum, count] = (self.bits.iter()).fold([0.0; 2], |[sum, count], (&bits, &layers)| {
            [sum + f64::from(bits) * layers as f64, count + layers as f64]
        });
        sum / count
    }
}

/// `attn1.to_q` of `blocks.7.attn1.to_q.weight`.
fn inside_block(name: &str) -> &str {
    let name = name.strip_suffix(".weight").unwrap_or(name);
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let inside = (name.match_indices('.')).find_map(|(at, _)| {
        let (number, rest) = name[at + 1..].split_once('.')?;
        is_number(number).then_some(rest)
    });
    inside.unwrap_or(name)
}

/// Measures every layer that `options` leave open, and gives it bits so that the folder stays within `size`.
///
/// # Errors
/// When the size is too small, or a part cannot be read.
pub fn assign(
    feed: &mut dyn ConvertSource,
    options: &Options,
    size: u64,
    on_event: &mut dyn FnMut(Event),
) -> Result<Assignment> {
    let (mut layers, mut taken) = (Vec::new(), FOLDER_BYTES);
    let tokenizer = feed.rest().tokenizer.as_ref();
    taken += tokenizer.map_or(0, |(_, content)| content.len() as u64);
    on_event(Event::Measuring(feed.total_bytes()));
    for name in feed.parts() {
        for shard in 0..feed.shards(name) {
            let part = feed.open(name, shard, on_event)?;
            on_event(Event::File(name, &part.store().location().to_string()));
            for spec in feed.config(name, &part)?.specs()? {
                let Ok(found) = part.find(&spec.name, &usizes(&spec.shape)) else {
                    // The conversion says what is wrong with it.
                    continue;
                };
                on_event(Event::Read(found.values.byte_len() as u64));
                if options.is_open(name, &spec.name, &found) {
                    taken += 3 * TENSOR_BYTES;
                    layers.push(Layer::measure(name, &spec, &found, &part, options)?);
                } else {
                    let (bits, adapters) = (options.bits(name), feed.adapters(name));
                    let item =
                        Item::plan(&spec, &found, &part, bits, options.group_size, adapters)?;
                    taken += item.byte_len() + TENSOR_BYTES * item.tensors.len() as u64;
                }
            }
        }
    }
    let least = taken + layers.iter().map(|layer| layer.bytes[0]).sum::<u64>();
    ensure!(
        least <= size,
        "--bits auto: {} GB are too little for this model, which takes {:.3} GB with {} bits in every layer \
         that may have them",
        size as f64 / 1e9,
        // Rounded up, so that what is named is enough.
        least.div_ceil(1_000_000) as f64 / 1e3,
        CHOICES[0].number()
    );
    let chosen = choose(&layers, size - taken);
    let mut assignment = Assignment::new();
    for (layer, choice) in layers.into_iter().zip(chosen) {
        let of_part = assignment.entry(layer.part).or_default();
        of_part.insert(layer.name, CHOICES[choice]);
    }
    Ok(assignment)
}

impl Options {
    /// Whether a tensor's bits are to be measured.
    fn is_open(&self, part: PartName, name: &str, found: &Found) -> bool {
        self.size.is_some()
            && self.bits(part).is_none()
            && matches!(found.values, Values::Stored { rotation: None, .. })
            && may_quantize(part.kind(), name, &found.shape)
    }
}

impl Layer {
    /// Tries the choices on weights from all over the layer. What adapters change in them is too little to count.
    fn measure(
        part_name: PartName,
        spec: &TensorSpec,
        found: &Found,
        part: &Part,
        options: &Options,
    ) -> Result<Self> {
        let Values::Stored { entry, scale, .. } = found.values else {
            bail!("{} is quantized already", found.name);
        };
        let elements: usize = found.shape.iter().product();
        let spans = elements.div_ceil(SPAN);
        let step = spans.div_ceil(SAMPLE / SPAN);
        let mut values = Vec::new();
        for start in (0..spans).step_by(step).map(|span| span * SPAN) {
            let range = start..(start + SPAN).min(elements);
            values.extend(part.decode(&found.name, entry, scale, range)?);
        }
        let (mut bytes, mut errors) = ([0; CHOICES.len()], [0.0; CHOICES.len()]);
        for (i, choice) in CHOICES.into_iter().enumerate() {
            let (size, after) = match choice.quantized() {
                Some(bits) => {
                    let scheme = Scheme {
                        bits,
                        group_size: options.group_size,
                    };
                    let packed = quantize_parallel(&values, scheme, Search::LeastSquares)?;
                    (
                        scheme.bytes(elements),
                        quantize::dequantize(&packed, scheme)?,
                    )
                }
                None => {
                    let dtype = float_type(entry.encoding, !scale.is_none(), true, spec.role);
                    (2 * elements, encode(&values, dtype).1)
                }
            };
            let mut error = Errors::default();
            error.add(&values, &after);
            bytes[i] = size as u64;
            errors[i] = error.relative().powi(2);
        }
        Ok(Self {
            part: part_name,
            name: spec.name.clone(),
            bytes,
            errors,
        })
    }

    /// The choices worth taking, the smallest first: each step to the next gains less a byte than the one before.
    fn worthwhile(&self) -> Vec<usize> {
        let mut kept: Vec<usize> = Vec::new();
        for next in 0..CHOICES.len() {
            if kept
                .last()
                .is_some_and(|&last| self.errors[next] >= self.errors[last])
            {
                continue;
            }
            while let [.., before, last] = kept[..]
                && self.gain(before, last) <= self.gain(last, next)
            {
                kept.pop();
            }
            kept.push(next);
        }
        kept
    }

    /// What a byte more gains.
    fn gain(&self, from: usize, to: usize) -> f64 {
        (self.errors[from] - self.errors[to]) / (self.bytes[to] - self.bytes[from]) as f64
    }
}

/// The choice of each layer: from the smallest on, the steps that gain most a byte, as long as they fit into
/// `room`.
fn choose(layers: &[Layer], room: u64) -> Vec<usize> {
    let steps: Vec<Vec<usize>> = layers.iter().map(Layer::worthwhile).collect();
    let mut taken: u64 = layers.iter().map(|layer| layer.bytes[0]).sum();
    let mut gains: Vec<(f64, usize, usize)> = Vec::new();
    for (i, (layer, steps)) in layers.iter().zip(&steps).enumerate() {
        let pairs = steps.windows(2).enumerate();
        gains.extend(pairs.map(|(step, pair)| (layer.gain(pair[0], pair[1]), i, step)));
    }
    gains.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut reached = vec![0; layers.len()];
    for (_, i, step) in gains {
        let more = layers[i].bytes[steps[i][step + 1]] - layers[i].bytes[steps[i][step]];
        // A layer whose last step did not fit has stopped.
        if reached[i] == step && taken + more <= room {
            reached[i] = step + 1;
            taken += more;
        }
    }
    let reached = reached.iter().zip(&steps);
    reached.map(|(&at, steps)| steps[at]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A layer whose error falls by four a bit, from `first` at three.
    fn layer(weights: u64, first: f64) -> Layer {
        let bits = CHOICES.map(|bits| bits.number());
        Layer {
            part: PartName::HighNoise,
            name: String::new(),
            bytes: bits.map(|bits| weights / 8 * u64::from(bits)),
            errors: bits.map(|bits| first * 0.25_f64.powi(bits as i32 - 3)),
        }
    }

    fn sum(layers: &[Layer], chosen: &[usize]) -> (u64, f64) {
        let each = layers.iter().zip(chosen);
        each.fold((0, 0.0), |(bytes, error), (layer, &at)| {
            (bytes + layer.bytes[at], error + layer.errors[at])
        })
    }

    /// Every assignment of four layers: what is chosen is near the best, and the best at its own size.
    #[test]
    fn no_assignment_of_the_same_size_is_better() {
        let layers = [
            layer(4096, 0.1),
            layer(65_536, 0.1),
            layer(4096, 0.02),
            layer(16_384, 0.4),
        ];
        let all: Vec<(u64, f64)> = (0..6_usize.pow(4))
            .map(|n| sum(&layers, &[n % 6, n / 6 % 6, n / 36 % 6, n / 216]))
            .collect();
        let [least, most] = [0, 5].map(|at| sum(&layers, &[at; 4]).0);
        for room in (least..=most + 1000).step_by(997) {
            let (bytes, error) = sum(&layers, &choose(&layers, room));
            assert!(bytes <= room);
            let better = all.iter().any(|one| one.0 < bytes && one.1 < error * 0.999);
            assert!(
                !better || room - bytes < 65_536 / 4,
                "{room}: {bytes} bytes, {error}"
            );
        }
        assert_eq!(choose(&layers, least), [0; 4]);
        assert_eq!(choose(&layers, most), [5; 4]);
    }

    /// 16 bits that lose no less than 8 are not worth their bytes, and a step may go over a poor one.
    #[test]
    fn what_gains_nothing_is_not_taken() {
        let mut flat = layer(4096, 0.1);
        flat.errors[5] = flat.errors[4];
        assert_eq!(choose(&[flat], u64::MAX), [4]);
        let mut poor = layer(4096, 0.1);
        poor.errors[1] = poor.errors[0] * 0.99;
        assert_eq!(poor.worthwhile(), [0, 2, 3, 4, 5]);
    }

    #[test]
    fn layers_are_alike_by_their_place_in_a_block() {
        for (name, kind) in [
            ("blocks.7.attn1.to_q.weight", "attn1.to_q"),
            ("blocks.10.ffn.net.0.proj.weight", "ffn.net.0.proj"),
            (
                "encoder.block.3.layer.1.DenseReluDense.wo.weight",
                "layer.1.DenseReluDense.wo",
            ),
            ("head.weight", "head"),
        ] {
            assert_eq!(inside_block(name), kind);
        }
    }
}
