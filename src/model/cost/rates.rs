//! How fast this machine is: short measurements, kept for the next time.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use mlx_rs::transforms::eval;
use mlx_rs::{Array, ops, random};
use serde::{Deserialize, Serialize};

use super::Operations;
use super::kept::{cache_file, keep, read};
use crate::model::MemoryPlan;
use crate::model::layers::{GROUP_SIZE, Linear, Quantized, Weight};
use crate::runtime::{self, Device, Packing};

/// Their name in the cache's folder.
const FILE: &str = "rates.json";
/// Side of the measured product, and tokens and width of the measured attention.
const SIDE: i32 = 2048;
const TOKENS: i32 = 1024;
const HEADS: i32 = 8;
const HEAD_DIM: i32 = 128;
/// Bits of the unpacked weights, of which the size in memory depends little: they are written dense.
const BITS: i32 = 4;
/// Operations that take longer than measuring does.
const LONG: u64 = 20_000_000_000_000;
/// Every kernel is measured for at least this long.
const SECONDS: f64 = 0.2;
/// Devices and precisions whose rates are kept, and parts of networks for each.
const MOST_KEPT: usize = 8;
const MOST_PARTS: usize = 128;

/// What a part of a network took: once for each call, and in its layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Seconds outside the layers.
    pub outside: f64,
    /// Seconds in as many layers as were measured.
    pub inside: f64,
}

impl Measured {
    /// Whether anything can take so long: what a file says may be anything.
    fn is_plausible(&self) -> bool {
        (0.0..1e6).contains(&self.outside) && (1e-12..1e6).contains(&self.inside)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Part {
    key: String,
    #[serde(flatten)]
    measured: Measured,
}

/// Rates of one device at one precision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// What they are of: device, MLX's version, precision.
    pub machine: String,
    /// All that decides how the device computes.
    device: String,
    /// Floating-point operations per second in matrix products.
    pub products: f64,
    /// In attention.
    pub attention: f64,
    /// Bytes per second that are copied.
    pub copies: f64,
    /// Values of quantized weights per second that are unpacked.
    pub unpacking: f64,
    /// Parts of networks at the sizes that runs have, the newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    parts: Vec<Part>,
}

impl Rates {
    /// Seconds that so many operations and loaded bytes take.
    pub fn seconds(&self, operations: Operations, bytes: u64) -> f64 {
        operations.products as f64 / self.products
            + operations.attention as f64 / self.attention
            + operations.unpacked as f64 / self.unpacking
            + bytes as f64 / self.copies
    }

    /// What a part took, if that is known.
    pub fn part(&self, key: &str) -> Option<Measured> {
        let found = self.parts.iter().find(|part| part.key == key)?;
        Some(found.measured)
    }

    /// Notes what a part took. The oldest goes when there are too many.
    pub fn note(&mut self, key: String, measured: Measured) {
        self.parts.retain(|part| part.key != key);
        if !measured.is_plausible() {
            return;
        }
        self.parts.push(Part { key, measured });
        let more = self.parts.len().saturating_sub(MOST_PARTS);
        self.parts.drain(..more);
    }

    /// This machine's rates for a forecast of so much work, and whether it takes long enough to
    /// measure what is not known. A machine that cannot be measured has none.
    pub fn for_work(device: Device, work: Operations) -> Option<(Self, bool)> {
        let is_long = work.total() > LONG;
        match Self::kept(device) {
            Some(kept) => Some((kept, is_long)),
            None => is_long.then(|| Some((Self::of_machine(device, true).ok()?, true)))?,
        }
    }

    fn machine(device: Device) -> String {
        format!(
            "{}, MLX {}, {}",
            runtime::machine(),
            runtime::mlx_version(),
            device.dtype
        )
    }

    fn kept(device: Device) -> Option<Self> {
        let (machine, device) = (Self::machine(device), format!("{device:?}"));
        let all = read::<Self>(&cache_file(FILE)?);
        let found = all
            .into_iter()
            .find(|rates| rates.machine == machine && rates.device == device)?;
        found.are_plausible().then_some(found)
    }

    /// This machine's rates: kept ones unless they are wanted `anew`, or measured in about a second
    /// and kept.
    ///
    /// # Errors
    /// When MLX cannot compute.
    pub fn of_machine(device: Device, anew: bool) -> Result<Self> {
        if let Some(kept) = Self::kept(device).filter(|_| !anew) {
            return Ok(kept);
        }
        let rates = Self::measure(device)?;
        rates.keep();
        Ok(rates)
    }

    /// Keeps them for the next time, if that can be: else they are measured again.
    pub fn keep(&self) {
        let _ = cache_file(FILE).map(|file| self.keep_in(&file));
    }

    /// Puts them into a file, the newest of a few.
    fn keep_in(&self, file: &Path) -> Result<()> {
        keep(file, self, MOST_KEPT, |other: &Self| {
            (&other.machine, &other.device) == (&self.machine, &self.device)
        })
    }

    /// Whether a machine can be so fast: what a file says may be anything.
    fn are_plausible(&self) -> bool {
        let rates = [self.products, self.attention, self.copies, self.unpacking];
        rates.iter().all(|rate| (1e3..1e21).contains(rate))
            && self.parts.iter().all(|part| part.measured.is_plausible())
    }

    fn measure(device: Device) -> Result<Self> {
        let dtype = device.dtype.matmul_dtype();
        let noise = |shape: &[i32]| -> Result<Array> {
            let array = random::normal::<f32>(shape, None, None, None)?.as_dtype(dtype)?;
            array.eval()?;
            Ok(array)
        };
        let square = noise(&[SIDE, SIDE])?;
        let side = f64::from(SIDE);
        let layer = Linear::from_weight(Weight::Dense(square.clone()), None)?.on(device)?;
        let products = per_second(2.0 * side.powi(3), || Ok(layer.forward(&square)?.eval()?))?;
        let heads = noise(&[1, HEADS, TOKENS, HEAD_DIM])?;
        let work = 4.0 * f64::from(TOKENS).powi(2) * f64::from(HEADS * HEAD_DIM);
        let attention = per_second(work, || {
            let scores = device.attention([&heads; 3], 0.1, None, MemoryPlan::WHOLE.score_bytes)?;
            Ok(scores.eval()?)
        })?;
        let (packed, scales, biases) = ops::quantize(&square, GROUP_SIZE as i32, BITS)?;
        eval([&packed, &scales, &biases])?;
        let quantized = Quantized {
            packed,
            scales,
            biases: Some(biases),
            packing: Packing::affine(BITS, GROUP_SIZE as i32),
            factor: None,
            rotation: None,
            device,
        };
        let source = vec![1_f32; (SIDE * SIDE) as usize];
        let copies = per_second(4.0 * side * side, || {
            let copied = Array::from_slice(&source, &[SIDE, SIDE]).as_dtype(dtype)?;
            Ok(copied.eval()?)
        })?;
        let unpacking = per_second(side * side, || Ok(quantized.dequantize()?.eval()?))?;
        Ok(Self {
            machine: Self::machine(device),
            device: format!("{device:?}"),
            products,
            attention,
            copies,
            unpacking,
            parts: Vec::new(),
        })
    }
}

/// The rate of the quickest run: what else the machine does at the moment slows the others.
fn per_second(work: f64, mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    // The first run pays for kernels being made and memory being touched.
    run().context("cannot measure this machine")?;
    let (start, mut quickest) = (Instant::now(), f64::INFINITY);
    while start.elapsed().as_secs_f64() < SECONDS {
        let before = Instant::now();
        run()?;
        quickest = quickest.min(before.elapsed().as_secs_f64());
    }
    Ok(work / quickest)
}

#[cfg(test)]
impl Rates {
    /// All of them `rate`.
    pub(crate) fn even(rate: f64) -> Self {
        Self {
            machine: "a machine".into(),
            device: "a device".into(),
            products: rate,
            attention: rate,
            copies: rate,
            unpacking: rate,
            parts: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read(file: &Path) -> Vec<Rates> {
        super::read(file)
    }

    fn took(inside: f64) -> Measured {
        Measured {
            outside: 0.0,
            inside,
        }
    }

    #[test]
    fn parts_are_few_plausible_and_the_last_one_of_a_key() {
        let mut rates = Rates::even(1e9);
        for number in 0..MOST_PARTS + 3 {
            rates.note(number.to_string(), took(1.0));
        }
        assert_eq!(rates.parts.len(), MOST_PARTS);
        assert!(rates.part("2").is_none() && rates.part("3").is_some());
        rates.note("3".into(), took(2.0));
        assert_eq!(rates.part("3"), Some(took(2.0)));
        for seconds in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e7] {
            rates.note("3".into(), took(seconds));
            assert!(rates.part("3").is_none(), "{seconds}");
        }
        rates.parts[0].measured.outside = -1.0;
        assert!(!rates.are_plausible());
    }

    /// What a file says that no machine can do is not believed.
    #[test]
    fn rates_that_no_machine_has_are_implausible() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("rates.json");
        Rates::even(1e9).keep_in(&file).unwrap();
        let kept = fs::read_to_string(&file).unwrap();
        assert!(read(&file)[0].are_plausible());
        for rate in ["0", "-1", "1e-320", "1e300"] {
            for name in ["products", "attention", "copies", "unpacking"] {
                let mut lies: serde_json::Value = serde_json::from_str(&kept).unwrap();
                lies[0][name] = serde_json::from_str(rate).unwrap();
                fs::write(&file, lies.to_string()).unwrap();
                assert!(!read(&file)[0].are_plausible(), "{name} {rate}");
            }
        }
    }

    #[test]
    fn a_file_keeps_a_few_devices_with_their_parts() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cache/rates.json");
        let of = |device: usize| Rates {
            device: device.to_string(),
            ..Rates::even(1e9)
        };
        assert!(read(&file).is_empty());
        for device in 0..MOST_KEPT + 1 {
            of(device).keep_in(&file).unwrap();
        }
        let mut again = of(3);
        again.note("step".into(), took(0.125));
        again.keep_in(&file).unwrap();
        let kept = read(&file);
        assert_eq!(kept.len(), MOST_KEPT);
        assert_eq!((&kept[0], kept.last()), (&of(1), Some(&again)));
        // Whatever else is there is replaced.
        fs::write(&file, r#"{"machine": "old", "products": 1.0}"#).unwrap();
        again.keep_in(&file).unwrap();
        assert_eq!(read(&file), [again]);
    }
}
