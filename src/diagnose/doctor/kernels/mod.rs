//! Every kernel that the pipeline uses, at sizes that have broken before.
//!
//! Rows above 32,767: ml-explore/mlx#3631 and #3856 (quantized products), #3360 (attention with a
//! mask), and the black clips of Blaizzy/mlx-video#40. What the program makes of such sizes has to
//! be right; what the kernels themselves do is noted.

mod attention;
mod convolution;
mod moving;
mod pointwise;
mod products;

use anyhow::Result;
use mlx_rs::Array;
use mlx_rs::error::Result as MlxResult;

use super::judge::judge;
use super::{Bound, CheckResult, CheckRunner, Group};
use crate::runtime::{Device, DeviceKind, Precision, on_cpu, to_host};
use crate::util::show::chain;

/// Tokens of a clip of 832 x 480 x 81 with guidance in one batch: rows of the black clips.
const TALL: i32 = 65_520;

/// Makes every check.
pub(super) fn examine(round: &mut CheckRunner<'_>) {
    products::examine(round);
    attention::examine(round);
    pointwise::examine(round);
    convolution::examine(round);
    moving::examine(round);
}

/// A kernel with what it should give.
pub(super) struct Case<'a> {
    /// What it is, with its size.
    name: String,
    /// By how much of the largest value it may be off.
    tolerance: f64,
    /// Values of a row of the result.
    columns: usize,
    expected: &'a [f64],
    /// Whether the program itself never calls it like this.
    only_noted: bool,
}

impl<'a> Case<'a> {
    fn new(name: String, tolerance: f64, columns: usize, expected: &'a [f64]) -> Self {
        Self {
            name,
            tolerance,
            columns,
            expected,
            only_noted: false,
        }
    }

    /// Of values that are moved and not computed with.
    fn exact(name: &str, columns: usize, expected: &'a [f64]) -> Self {
        Self::new(name.to_owned(), 0.0, columns, expected)
    }

    fn only_noted_if(self, is: bool) -> Self {
        Self {
            only_noted: is,
            ..self
        }
    }
}

impl CheckRunner<'_> {
    /// Runs a kernel on the chosen device and judges what it gives; where that is wrong on a GPU, so
    /// is what MLX's CPU backend gives.
    pub(super) fn kernel(&mut self, case: &Case<'_>, run: &dyn Fn() -> MlxResult<Array>) {
        let device = self.settings.device.kind;
        self.check(Group::Kernel, &case.name, case.only_noted, |_| {
            run_case(case, device, run)
        });
    }
}

fn run_case(
    case: &Case<'_>,
    device: DeviceKind,
    run: &dyn Fn() -> MlxResult<Array>,
) -> Result<CheckResult> {
    let found = to_host(&run()?)?;
    let judged = judge(&found, case.expected, case.columns, case.tolerance);
    let mut detail = judged.fault.clone().unwrap_or_default();
    if device == DeviceKind::Gpu && judged.fault.is_some() {
        // A tolerance that is too narrow would show there too.
        detail += &match on_cpu(|| to_host(&run()?)) {
            Ok(cpu) => {
                let cpu = judge(&cpu, case.expected, case.columns, case.tolerance);
                format!("; on MLX's CPU the error is {:.1e}", cpu.error)
            }
            Err(error) => format!("; on MLX's CPU: {}", chain(&error.into())),
        };
    }
    Ok(CheckResult {
        name: case.name.clone(),
        sound: judged.fault.is_none(),
        measured: Some(judged.error),
        bound: Some(Bound::AtMost(case.tolerance)),
        detail,
    })
}

/// An array of host values in a dtype.
fn array(values: &[f32], shape: &[i32], precision: Precision) -> MlxResult<Array> {
    Array::from_slice(values, shape).as_dtype(precision.matmul_dtype())
}

/// An array of float32.
fn exact(values: &[f32], shape: &[i32]) -> Array {
    Array::from_slice(values, shape)
}

/// Some rows of a result, wherever they are.
fn sampled(rows: &Array, places: &[i32]) -> MlxResult<Array> {
    rows.take_axis(Array::from_slice(places, &[places.len() as i32]), 0)
}

/// By how much products may be off. In 16 bits the result is rounded, to a quarter of this.
fn products_tolerance(precision: Precision) -> f64 {
    match precision {
        Precision::Bf16 => 0.5_f64.powi(7),
        Precision::F16 => 0.5_f64.powi(10),
        Precision::F32 => 2e-5,
    }
}

/// By how much a convolution may be off that MLX's Metal backend may compute by Winograd's algorithm,
/// whose transforms magnify float32's rounding.
fn winograd_tolerance() -> f64 {
    0.5_f64.powi(9)
}

/// Whether a run computes in this precision: what every run does in float32, it does anywhere.
fn is_used(device: Device, precision: Precision) -> bool {
    precision == Precision::F32 || precision == device.dtype
}

/// As float64, for what is only moved.
fn doubles(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

/// Those that are checked: the device's own and, for a comparison with other machines' reports,
/// float32 and bfloat16.
fn precisions(device: Device) -> impl Iterator<Item = Precision> {
    let all = Precision::ALL.into_iter();
    all.filter(move |&precision| precision != Precision::F16 || device.dtype == precision)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnose::doctor::reference::uniform;
    use crate::diagnose::doctor::{Check, Heard, Outcome, Settings};
    use crate::pipeline::plan::Budget;
    use crate::runtime::{MAX_KERNEL_ROWS, rows};
    use mlx_rs::ops::{concatenate, zeros_like};

    fn examined(only_noted: bool, kernel: &dyn Fn(&Array) -> MlxResult<Array>) -> Check {
        let x = uniform(1, 40_000 * 4, 1.0);
        let expected = doubles(&x);
        let mut heard = Vec::new();
        let mut hear = |told: Heard<'_>| {
            if let Heard::Check(check) = told {
                heard.push(check.clone());
            }
        };
        let mut round = CheckRunner {
            settings: Settings {
                device: Device::select(Some(DeviceKind::Cpu), None).unwrap(),
                budget: Budget {
                    bytes: 1 << 30,
                    explicit: true,
                },
                quick: true,
                has_weights: true,
            },
            checks: Vec::new(),
            hear: &mut hear,
        };
        let case = Case::exact("a copy", 4, &expected).only_noted_if(only_noted);
        round.kernel(&case, &|| kernel(&exact(&x, &[40_000, 4])));
        let check = round.checks.remove(0);
        assert_eq!(heard, std::slice::from_ref(&check));
        check
    }

    /// What kernels that count rows in an int16 have given.
    #[test]
    fn a_kernel_that_overflows_is_caught() {
        let sound = examined(false, &|x| Ok(x.clone()));
        assert_eq!(
            (sound.outcome, sound.measured),
            (Outcome::Passed, Some(0.0))
        );
        let zeros = |x: &Array| {
            let good = rows(x, 0, MAX_KERNEL_ROWS + 1)?;
            let bad = zeros_like(&rows(x, MAX_KERNEL_ROWS + 1, x.dim(0))?)?;
            concatenate(&[good, bad], 0)
        };
        let check = examined(false, &zeros);
        assert_eq!(check.outcome, Outcome::Failed);
        let why = "7232 of 40000 rows are wrong, from row 32768 to row 39999; 7232 are all zero";
        assert!(check.detail.starts_with(why), "{}", check.detail);
        assert_eq!(examined(true, &zeros).outcome, Outcome::Noted);
        let wrapped = examined(false, &|x| {
            let last = rows(x, 0, 40_000 - 32_768)?;
            concatenate(&[rows(x, 0, 32_768)?, last], 0)
        });
        assert_eq!(wrapped.outcome, Outcome::Failed);
        assert!(
            wrapped.detail.contains("from row 32768"),
            "{}",
            wrapped.detail
        );
    }

    #[test]
    fn what_is_compared_is_computed_by_the_default_device() {
        let device = Device::select(Some(DeviceKind::Cpu), None).unwrap();
        assert_eq!(device.kind, DeviceKind::Cpu);
        let before = mlx_rs::Device::default();
        let inside = on_cpu(mlx_rs::Device::default);
        assert!(inside == mlx_rs::Device::cpu());
        assert!(mlx_rs::Device::default() == before);
        // A panic leaves it as it was, too.
        let _ = std::panic::catch_unwind(|| on_cpu(|| panic!("planned")));
        assert!(mlx_rs::Device::default() == before);
    }

    #[test]
    fn a_kernel_that_fails_is_a_failed_check() {
        let check = examined(false, &|x| x.reshape(&[7]));
        assert_eq!((check.outcome, check.measured), (Outcome::Failed, None));
        assert!(!check.detail.is_empty());
    }
}
