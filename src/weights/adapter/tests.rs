//! Changed weights against sums in float64, on the miniature's own layers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mlx_rs::Array;
use rand_mt::Mt64;
use safetensors::tensor::{Dtype as Stored, TensorView};
use tempfile::TempDir;

use super::{Adapter, Adapters, Form, Source, Wanted};
use crate::model::layers::{Linear, Quantized, Term, Weight};
use crate::model::{Role, TensorSource};
use crate::runtime::{Device, DeviceKind, Precision, to_host};
use crate::sampling::Expert;
use crate::weights::config::PartConfig;
use crate::weights::convert::{self, LocalSource, Options};
use crate::weights::files::Files;
use crate::weights::layout::Layout;
use crate::weights::part::{Loader, Part};
use crate::weights::{Bits, PartName};

const DEVICE: Device = Device::new(DeviceKind::Cpu, Some(Precision::F32));
const Q: &str = "blocks.0.attn1.to_q.weight";
/// What kohya's programs put in front of the names of `Q`'s changes.
const FLAT: &str = "lora_unet_blocks_0_self_attn_q.";
const WIDTH: usize = 128;

/// The miniature, by its files: `tiny` stands above this module.
fn miniature() -> Layout {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tiny/model");
    Layout::of_folder(&Files::from(folder.as_path())).unwrap()
}

/// The miniature's high-noise expert.
fn part() -> Part {
    let layout = miniature();
    let location = layout.part(PartName::HighNoise).unwrap();
    Part::open(location, PartName::HighNoise.kind()).unwrap()
}

fn specs(part: &Part) -> Vec<crate::model::TensorSpec> {
    PartConfig::of(part, PartName::HighNoise)
        .unwrap()
        .specs()
        .unwrap()
}

/// Shape and values.
type Tensor = (Vec<usize>, Vec<f64>);
type Tensors = BTreeMap<String, Tensor>;

/// Values of about `size`, the same in each run.
fn noise(seed: u64, shape: &[usize], size: f64) -> Tensor {
    let mut random = Mt64::new(seed);
    let values = (0..shape.iter().product::<usize>())
        .map(|_| (random.next_u64() as f64 / u64::MAX as f64 - 0.5) * 2.0 * size);
    // As float32 has them, so that both sides start alike.
    (
        shape.to_vec(),
        values.map(|v| f64::from(v as f32)).collect(),
    )
}

/// Tensors by their names behind `module`.
fn behind<'a>(module: &str, tensors: impl IntoIterator<Item = (&'a str, Tensor)>) -> Tensors {
    let named = tensors.into_iter();
    named
        .map(|(name, tensor)| (format!("{module}{name}"), tensor))
        .collect()
}

/// The same of tensors that have names.
fn moved(module: &str, tensors: &Tensors) -> Tensors {
    let named = tensors.iter();
    behind(
        module,
        named.map(|(name, tensor)| (name.as_str(), tensor.clone())),
    )
}

/// A low-rank change of a matrix of the miniature's width, with its factors' names.
fn low_rank(module: &str, [up, down]: [&str; 2]) -> Tensors {
    let factors = [
        (up, noise(1, &[WIDTH, 4], 0.3)),
        (down, noise(2, &[4, WIDTH], 0.3)),
    ];
    behind(module, factors)
}

/// Adapters' files.
struct Bench(TempDir);

impl Bench {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn write(&self, name: &str, tensors: &Tensors) -> PathBuf {
        self.write_with(name, tensors, None)
    }

    /// With a header that says more.
    fn write_with(&self, name: &str, tensors: &Tensors, more: Option<(&str, &str)>) -> PathBuf {
        let path = self.0.path().join(name);
        let bytes: BTreeMap<&String, Vec<u8>> = tensors
            .iter()
            .map(|(name, (_, values))| {
                let bytes = values.iter().flat_map(|v| (*v as f32).to_le_bytes());
                (name, bytes.collect())
            })
            .collect();
        let views = tensors.iter().map(|(name, (shape, _))| {
            let view = TensorView::new(Stored::F32, shape.clone(), &bytes[name]).unwrap();
            (name.as_str(), view)
        });
        let metadata = more.map(|(key, text)| [(key.to_owned(), text.to_owned())].into());
        safetensors::serialize_to_file(views, metadata, &path).unwrap();
        path
    }

    /// One adapter of both experts.
    fn open(&self, tensors: &Tensors, strength: f64) -> anyhow::Result<Adapters> {
        open(&[wanted(self.write("one.safetensors", tensors), strength)])
    }
}

fn wanted(path: impl Into<PathBuf>, strength: f64) -> Wanted {
    Wanted {
        source: Source::Disk(path.into()),
        strength,
        expert: None,
    }
}

fn product(a: &Tensor, b: &Tensor) -> Vec<f64> {
    let (rows, inner, columns) = (a.0[0], a.0[1], b.0[1]);
    let mut out = vec![0.0; rows * columns];
    for i in 0..rows {
        for k in 0..inner {
            for j in 0..columns {
                out[i * columns + j] += a.1[i * inner + k] * b.1[k * columns + j];
            }
        }
    }
    out
}

fn host(array: &Array) -> Vec<f64> {
    to_host(array).unwrap().into_iter().map(f64::from).collect()
}

/// Loads the miniature's expert with adapters.
fn loader<'a>(
    part: &'a Part,
    bits: impl Into<Option<Bits>>,
    adapters: &'a [Adapter],
    merges: bool,
) -> Loader<'a> {
    Loader {
        part,
        device: DEVICE,
        bits: bits.into().map(Into::into),
        adapters,
        merges,
    }
}

/// `Q`, quantized, and what is computed beside it.
fn quantized(mut loader: Loader<'_>) -> (Quantized, Vec<Term>) {
    match loader.weight(Q, [WIDTH as i32; 2], Role::Matmul).unwrap() {
        Weight::Quantized(quantized, terms) => (quantized, terms),
        Weight::Dense(_) => panic!("dense"),
    }
}

/// A tensor without adapters, and with them.
fn loaded(adapters: &Adapters, name: &str, shape: &[usize]) -> [Vec<f64>; 2] {
    let part = part();
    let shape: Vec<i32> = shape.iter().map(|&d| d as i32).collect();
    [&[][..], adapters.of(Expert::HighNoise)].map(|adapters| {
        let mut loader = loader(&part, None, adapters, false);
        host(&loader.tensor(name, &shape, Role::Exact).unwrap())
    })
}

#[track_caller]
fn assert_near(found: &[f64], expected: &[f64], most: f64) {
    assert_eq!(found.len(), expected.len());
    let size = expected.iter().map(|v| v.abs()).fold(0.0, f64::max);
    let worst = found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max);
    assert!(worst <= most * size, "off by {worst} of {size}");
}

fn open(wanted: &[Wanted]) -> anyhow::Result<Adapters> {
    let part = part();
    let experts = [Expert::HighNoise, Expert::LowNoise].map(|expert| (expert, specs(&part)));
    Adapters::open(wanted, &experts)
}

/// What an adapter's tensors and its strength make of a weight.
type Change = Box<dyn Fn(&[f64], &Tensors, f64) -> Vec<f64>>;

/// Tensors of an adapter of `Q` in each form, by their names behind the module's, and the change that
/// they make of a weight.
fn forms() -> Vec<(Form, Tensors, Change)> {
    let set = |tensors: Vec<(&str, Tensor)>| behind("", tensors);
    let one = |value: f64| (vec![], vec![value]);
    let added = |weight: &[f64], delta: Vec<f64>, factor: f64| -> Vec<f64> {
        weight
            .iter()
            .zip(delta)
            .map(|(w, d)| w + factor * d)
            .collect()
    };
    let low = |t: &Tensors| product(&t["lora_up.weight"], &t["lora_down.weight"]);
    vec![
        (
            Form::Lora,
            set(vec![
                ("lora_up.weight", noise(1, &[WIDTH, 4], 0.3)),
                ("lora_down.weight", noise(2, &[4, WIDTH], 0.3)),
                ("alpha", one(2.0)),
            ]),
            Box::new(move |w, t, s| added(w, low(t), s * 2.0 / 4.0)),
        ),
        (
            Form::Dora,
            set(vec![
                ("lora_up.weight", noise(3, &[WIDTH, 4], 0.3)),
                ("lora_down.weight", noise(4, &[4, WIDTH], 0.3)),
                ("dora_scale", {
                    let (_, values) = noise(5, &[WIDTH], 0.5);
                    (
                        vec![WIDTH, 1],
                        values.iter().map(|v| f64::from((v + 1.0) as f32)).collect(),
                    )
                }),
            ]),
            Box::new(move |w, t, s| {
                let moved = added(w, low(t), 1.0);
                let rows = moved
                    .chunks(WIDTH)
                    .zip(w.chunks(WIDTH))
                    .zip(&t["dora_scale"].1);
                rows.flat_map(|((moved, w), magnitude)| {
                    let norm = moved.iter().map(|v| v * v).sum::<f64>().sqrt();
                    let both = moved.iter().zip(w);
                    both.map(|(m, w)| w + s * (m * magnitude / norm - w))
                        .collect::<Vec<_>>()
                })
                .collect()
            }),
        ),
        (
            Form::Loha,
            set(vec![
                ("hada_w1_a", noise(6, &[WIDTH, 3], 0.5)),
                ("hada_w1_b", noise(7, &[3, WIDTH], 0.5)),
                ("hada_w2_a", noise(8, &[WIDTH, 3], 0.5)),
                ("hada_w2_b", noise(9, &[3, WIDTH], 0.5)),
                ("alpha", one(6.0)),
            ]),
            Box::new(move |w, t, s| {
                let first = product(&t["hada_w1_a"], &t["hada_w1_b"]);
                let second = product(&t["hada_w2_a"], &t["hada_w2_b"]);
                let delta = first.iter().zip(second).map(|(a, b)| a * b).collect();
                added(w, delta, s * 6.0 / 3.0)
            }),
        ),
        (
            Form::Lokr,
            set(vec![
                ("lokr_w1", noise(10, &[4, 8], 0.5)),
                ("lokr_w2_a", noise(11, &[32, 2], 0.5)),
                ("lokr_w2_b", noise(12, &[2, 16], 0.5)),
                ("alpha", one(1.0)),
            ]),
            Box::new(move |w, t, s| {
                let right = product(&t["lokr_w2_a"], &t["lokr_w2_b"]);
                let left = &t["lokr_w1"].1;
                let at =
                    |i: usize, j: usize| left[i / 32 * 8 + j / 16] * right[i % 32 * 16 + j % 16];
                let delta = (0..WIDTH * WIDTH)
                    .map(|n| at(n / WIDTH, n % WIDTH))
                    .collect();
                added(w, delta, s * 1.0 / 2.0)
            }),
        ),
        (
            Form::Full,
            set(vec![("diff", noise(13, &[WIDTH, WIDTH], 0.2))]),
            Box::new(move |w, t, s| added(w, t["diff"].1.clone(), s)),
        ),
    ]
}

#[test]
fn every_form_is_what_it_is_in_float64() {
    let bench = Bench::new();
    for (form, tensors, changed) in forms() {
        for strength in [1.0, 0.7, -1.5] {
            let named = moved("diffusion_model.blocks.0.self_attn.q.", &tensors);
            let adapters = bench.open(&named, strength).unwrap();
            let [adapter] = adapters.of(Expert::HighNoise) else {
                panic!("{form}");
            };
            assert_eq!(adapter.forms().keys().copied().collect::<Vec<_>>(), [form]);
            let [before, after] = loaded(&adapters, Q, &[WIDTH; 2]);
            assert_near(&after, &changed(&before, &tensors, strength), 2e-6);
            assert!(
                before.iter().zip(&after).any(|(a, b)| (a - b).abs() > 1e-3),
                "{form}"
            );
        }
    }
}

#[test]
fn several_are_applied_in_their_order_and_none_at_no_strength() {
    let bench = Bench::new();
    let mut all = Vec::new();
    for (index, (_, tensors, changed)) in forms().into_iter().enumerate() {
        let named = moved(FLAT, &tensors);
        let path = bench.write(&format!("{index}.safetensors"), &named);
        all.push((path, tensors, changed));
    }
    let asked: Vec<Wanted> = all.iter().map(|(path, ..)| wanted(path, 0.5)).collect();
    let [before, after] = loaded(&open(&asked).unwrap(), Q, &[WIDTH; 2]);
    let expected = all
        .iter()
        .fold(before.clone(), |weight, (_, tensors, changed)| {
            changed(&weight, tensors, 0.5)
        });
    assert_near(&after, &expected, 4e-6);
    let nothing: Vec<Wanted> = all.iter().map(|(path, ..)| wanted(path, 0.0)).collect();
    let [before, after] = loaded(&open(&nothing).unwrap(), Q, &[WIDTH; 2]);
    assert_eq!(before, after);
}

/// Biases, norms, modulation and the patch embedding.
#[test]
fn whole_changes_reach_every_tensor() {
    let bench = Bench::new();
    let cases = [
        (
            "blocks.1.self_attn.k.diff_b",
            "blocks.1.attn1.to_k.bias",
            vec![WIDTH],
        ),
        ("blocks.1.norm3.diff", "blocks.1.norm2.weight", vec![WIDTH]),
        ("blocks.1.norm3.diff_b", "blocks.1.norm2.bias", vec![WIDTH]),
        (
            "blocks.1.self_attn.norm_q.diff",
            "blocks.1.attn1.norm_q.weight",
            vec![WIDTH],
        ),
        (
            "blocks.1.diff_m",
            "blocks.1.scale_shift_table",
            vec![1, 6, WIDTH],
        ),
        ("head.head.diff_b", "proj_out.bias", vec![64]),
        (
            "time_projection.1.diff_b",
            "condition_embedder.time_proj.bias",
            vec![6 * WIDTH],
        ),
        (
            "patch_embedding.diff",
            "patch_embedding.weight",
            vec![WIDTH, 36, 1, 2, 2],
        ),
    ];
    let numbered = cases.iter().zip(0..);
    let noises = numbered.map(|((key, _, shape), seed)| (*key, noise(seed, shape, 1.0)));
    let tensors = behind("diffusion_model.", noises);
    let adapters = bench.open(&tensors, 0.5).unwrap();
    for (key, name, shape) in &cases {
        let [before, after] = loaded(&adapters, name, shape);
        let delta = &tensors[&format!("diffusion_model.{key}")].1;
        let expected: Vec<f64> = before.iter().zip(delta).map(|(w, d)| w + 0.5 * d).collect();
        assert_near(&after, &expected, 1e-6);
    }
    // A convolution's low-rank form.
    let [up, down] = [
        noise(1, &[WIDTH, 2, 1, 1, 1], 0.5),
        noise(2, &[2, 36, 1, 2, 2], 0.5),
    ];
    let factors = [
        ("lora_up.weight", up.clone()),
        ("lora_down.weight", down.clone()),
    ];
    let tensors = behind("diffusion_model.patch_embedding.", factors);
    let adapters = bench.open(&tensors, 1.0).unwrap();
    let [before, after] = loaded(&adapters, "patch_embedding.weight", &[WIDTH, 36, 1, 2, 2]);
    let (up, down) = ((vec![WIDTH, 2], up.1), (vec![2, 144], down.1));
    let delta = product(&up, &down);
    let expected: Vec<f64> = before.iter().zip(delta).map(|(w, d)| w + d).collect();
    assert_near(&after, &expected, 2e-6);
}

/// Products with a quantized weight and what is computed beside it equal those with its unpacked
/// values and the change in it.
#[test]
fn beside_a_quantized_weight_a_change_is_what_it_is_in_it() {
    let bench = Bench::new();
    let part = part();
    let (_, x) = noise(99, &[5, WIDTH], 1.0);
    let x: Vec<f32> = x.into_iter().map(|v| v as f32).collect();
    let x = Array::from_slice(&x, &[5, WIDTH as i32]);
    for (form, tensors, changed) in forms() {
        let adapters = bench.open(&moved(FLAT, &tensors), 0.8).unwrap();
        let own = adapters.of(Expert::HighNoise);
        for bits in [Bits::Four, Bits::Eight] {
            let (plain, none) = quantized(loader(&part, bits, &[], false));
            assert!(none.is_empty());
            let (held, terms) = quantized(loader(&part, bits, own, false));
            let beside = matches!(form, Form::Lora | Form::Loha | Form::Lokr);
            assert_eq!(terms.len(), usize::from(beside), "{form}");
            if beside {
                // Not a bit of it is quantized anew.
                assert_eq!(host(&plain.packed), host(&held.packed));
                let unpacked = host(&plain.dequantize().unwrap());
                let expected = changed(&unpacked, &tensors, 0.8);
                let expected: Vec<f32> = expected.into_iter().map(|v| v as f32).collect();
                let expected = Array::from_slice(&expected, &[WIDTH as i32; 2]);
                let expected = x.matmul(expected.transpose().unwrap()).unwrap();
                let weight = Weight::Quantized(held, terms);
                let linear = Linear::from_weight(weight, None).unwrap();
                let y = linear.forward(&x).unwrap();
                assert_near(&host(&y), &host(&expected), 1e-5);
            }
            // Taken in, it is quantized once, with the change.
            let (merged, terms) = quantized(loader(&part, bits, own, true));
            assert!(terms.is_empty());
            let [before, _] = loaded(&adapters, Q, &[WIDTH; 2]);
            let expected = changed(&before, &tensors, 0.8);
            let most = if bits == Bits::Four { 0.1 } else { 0.01 };
            assert_near(&host(&merged.dequantize().unwrap()), &expected, most);
        }
    }
}

#[test]
fn forecasts_know_what_is_held_beside() {
    let bench = Bench::new();
    let part = part();
    let specs: Vec<_> = specs(&part)
        .into_iter()
        .filter(|spec| spec.name == Q)
        .collect();
    for (form, tensors, _) in forms() {
        let adapters = bench.open(&moved(FLAT, &tensors), 1.0).unwrap();
        let loader = loader(&part, Bits::Four, adapters.of(Expert::HighNoise), false);
        let held = loader.held(&specs).unwrap();
        let (quantized, terms) = quantized(loader);
        let values: usize = terms.iter().map(|term| term.values()).sum();
        assert_eq!(held.beside, [values as u64, 0, 0], "{form}");
        let arrays = quantized.arrays();
        let bytes: usize = arrays.map(|array| array.nbytes()).sum();
        assert_eq!(held.bytes, (bytes + 4 * values) as u64, "{form}");
    }
}

fn refusal(tensors: &Tensors) -> String {
    let error = Bench::new().open(tensors, 1.0).unwrap_err();
    crate::util::show::chain(&error)
}

#[test]
fn hostile_and_foreign_adapters_are_refused_by_name() {
    let q = |name: &str| format!("diffusion_model.blocks.0.self_attn.q.{name}");
    let good = || low_rank(&q(""), ["lora_up.weight", "lora_down.weight"]);
    let with = |name: String, tensor: Tensor| {
        let mut tensors = good();
        tensors.insert(name, tensor);
        tensors
    };
    let cases: Vec<(Tensors, &[&str])> = vec![
        (
            with(q("alpha"), (vec![], vec![0.0])),
            &["alpha is 0", "makes the adapter nothing"],
        ),
        (
            with(q("alpha"), (vec![], vec![f64::NAN])),
            &["alpha is NaN"],
        ),
        (
            with(q("alpha"), noise(1, &[2], 1.0)),
            &["alpha has shape [2]", "one number"],
        ),
        (
            with(q("lora_A.weight"), noise(1, &[4, WIDTH], 1.0)),
            &["the same of one layer"],
        ),
        (
            with(q("hada_w1_a"), noise(1, &[WIDTH, 4], 1.0)),
            &["several kinds"],
        ),
        (
            with(q("lora_up.weight"), noise(1, &[WIDTH, 5], 1.0)),
            &["expected the same rank"],
        ),
        (
            with(q("lora_up.weight"), noise(1, &[64, 4], 1.0)),
            &["[64, 128]", "another model"],
        ),
        (
            with(
                "blocks.6.self_attn.q.lora_up.weight".into(),
                noise(1, &[4, 4], 1.0),
            ),
            &["7 blocks or more", "this model has 6"],
        ),
        (
            with("blocks.0.self_attn.qq.alpha".into(), (vec![], vec![1.0])),
            &[
                "1 of 3 tensors",
                "blocks.0.self_attn.qq.alpha (nearest layer: blocks.0.self_attn.q)",
            ],
        ),
        (
            with("blocks.0.self_attn.v.alpha".into(), (vec![], vec![1.0])),
            &["found it alone"],
        ),
        (
            with(
                "blocks.0.self_attn.v.lora_up.weight".into(),
                noise(1, &[WIDTH, 4], 1.0),
            ),
            &["without the other factor"],
        ),
        (
            with("blocks.0.norm3.diff".into(), noise(1, &[64], 1.0)),
            &["has shape [64]", "another model"],
        ),
        (
            with("blocks.0.self_attn.q.weight".into(), noise(1, &[64], 1.0)),
            &["change no layer"],
        ),
        (
            [
                (q("lora_up.weight"), (vec![WIDTH, 0], vec![])),
                (q("lora_down.weight"), (vec![0, WIDTH], vec![])),
            ]
            .into(),
            &["expected the same rank"],
        ),
        (
            [(
                "blocks.0.cross_attn.k_img.lora_up.weight".to_owned(),
                noise(1, &[4, 4], 1.0),
            )]
            .into(),
            &["changes nothing", "image branch"],
        ),
    ];
    for (tensors, parts) in cases {
        let error = refusal(&tensors);
        for part in parts {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(error.contains("one.safetensors"), "{error}");
    }
    // What the header does not show, loading does.
    let mut tensors = good();
    tensors.get_mut(&q("lora_up.weight")).unwrap().1[7] = f64::NAN;
    let bench = Bench::new();
    let adapters = bench.open(&tensors, 1.0).unwrap();
    let part = part();
    let mut loader = loader(&part, None, adapters.of(Expert::HighNoise), false);
    let error = loader.tensor(Q, &[WIDTH as i32; 2], Role::Matmul);
    let error = format!("{:#}", error.unwrap_err());
    assert!(
        error.contains("lora_up.weight holds a value that is not finite"),
        "{error}"
    );
}

#[test]
fn names_say_which_expert_is_meant() {
    let bench = Bench::new();
    let q = |prefix: &str| {
        let module = format!("{prefix}blocks.0.attn1.to_q.");
        low_rank(&module, ["lora_B.weight", "lora_A.weight"])
    };
    let counts = |wanted: &[Wanted]| {
        let adapters = open(wanted).unwrap();
        let counts = [Expert::HighNoise, Expert::LowNoise].map(|e| adapters.of(e).len());
        (counts, adapters.warnings)
    };
    let plain = bench.write("style.safetensors", &q("transformer."));
    assert_eq!(counts(&[wanted(&plain, 1.0)]).0, [1, 1]);
    let high = bench.write("style_high_noise.safetensors", &q(""));
    assert_eq!(counts(&[wanted(&high, 1.0)]).0, [1, 0]);
    let mut both = q("transformer.");
    both.extend(q("transformer_2."));
    let both = bench.write("both.safetensors", &both);
    assert_eq!(counts(&[wanted(&both, 1.0)]).0, [1, 1]);
    let low_only = bench.write("of-one.safetensors", &q("transformer_2."));
    assert_eq!(
        open(&[wanted(&low_only, 1.0)])
            .unwrap()
            .of(Expert::LowNoise)
            .len(),
        1
    );
    let given = Wanted {
        expert: Some(Expert::LowNoise),
        ..wanted(&high, 1.0)
    };
    let (found, warnings) = counts(&[given]);
    assert_eq!(found, [0, 1]);
    assert!(warnings[0].contains("given to the low-noise expert; its name says high-noise"));

    let pair = bench.0.path().join("pair");
    std::fs::create_dir(&pair).unwrap();
    std::fs::copy(&high, pair.join("high_noise_model.safetensors")).unwrap();
    assert_eq!(counts(&[wanted(&pair, 1.0)]).0, [1, 0]);
    std::fs::copy(&high, pair.join("low_noise_model.safetensors")).unwrap();
    assert_eq!(counts(&[wanted(&pair, 1.0)]).0, [1, 1]);
    std::fs::copy(&high, pair.join("other.safetensors")).unwrap();
    let error = format!("{:#}", open(&[wanted(&pair, 1.0)]).unwrap_err());
    assert!(
        error.contains("other.safetensors") && error.contains("--lora-high"),
        "{error}"
    );
}

#[test]
fn keys_of_an_image_branch_are_one_warning() {
    let names = ["lora_up.weight", "lora_down.weight"];
    let mut tensors = low_rank("blocks.0.self_attn.q.", names);
    for block in 0..6 {
        for end in ["lora_up", "lora_down"] {
            let name = format!("blocks.{block}.cross_attn.k_img.{end}.weight");
            tensors.insert(name, noise(1, &[4, 4], 0.3));
        }
    }
    let adapters = Bench::new().open(&tensors, 1.0).unwrap();
    assert_eq!(adapters.of(Expert::HighNoise).len(), 1);
    let [warning] = adapters.warnings.as_slice() else {
        panic!("{:?}", adapters.warnings);
    };
    assert!(
        warning.contains("12 tensors for the image branch"),
        "{warning}"
    );
}

/// Converted with an adapter, an expert is what it is when the adapter is taken in while it is loaded.
#[test]
fn a_conversion_puts_changes_in_before_it_quantizes() {
    let bench = Bench::new();
    let layout = miniature();
    let (_, tensors, _) = forms().remove(0);
    let mut named = moved(FLAT, &tensors);
    let conv = noise(5, &[WIDTH, 36, 1, 2, 2], 0.3);
    named.insert("patch_embedding.diff".to_owned(), conv);
    let path = bench.write("style.safetensors", &named);
    let wanted = [wanted(&path, 0.6)];
    let feed = LocalSource::new(&layout).unwrap();
    let mut feed = feed.with_adapters(&wanted).unwrap();
    let options = Options {
        high: Some(convert::Bits::Eight),
        ..Options::default()
    };
    let target = bench.0.path().join("converted");
    convert::convert(&mut feed, &target, &options, &mut |_| ()).unwrap();
    let converted = Layout::of_folder(&Files::from(target.as_path())).unwrap();
    let opened = |layout: &Layout| {
        Part::open(
            layout.part(PartName::HighNoise).unwrap(),
            PartName::HighNoise.kind(),
        )
        .unwrap()
    };
    let (converted, own_part) = (opened(&converted), opened(&layout));
    let adapters = open(&wanted).unwrap();
    let plain = loader(&converted, None, &[], false);
    let own = adapters.of(Expert::HighNoise);
    let merging = loader(&own_part, Bits::Eight, own, true);
    let [converted, merged] = [plain, merging].map(|mut loader| {
        let conv = [WIDTH as i32, 36, 1, 2, 2];
        let conv = loader
            .tensor("patch_embedding.weight", &conv, Role::Exact)
            .unwrap();
        let (q, terms) = quantized(loader);
        assert!(terms.is_empty());
        (host(&q.dequantize().unwrap()), host(&conv))
    });
    assert_eq!(converted.0, merged.0);
    assert_near(&converted.1, &merged.1, 0.01);
}

/// A change beyond float16 leaves no model behind.
#[test]
fn a_conversion_refuses_what_its_type_cannot_hold() {
    let bench = Bench::new();
    let (_, tensors, _) = forms().remove(0);
    let path = bench.write("strong.safetensors", &moved(FLAT, &tensors));
    let feed = LocalSource::new(&miniature()).unwrap();
    let mut feed = feed.with_adapters(&[wanted(path, 1e38)]).unwrap();
    let options = Options::default();
    let target = bench.0.path().join("converted");
    let error = convert::convert(&mut feed, &target, &options, &mut |_| ()).unwrap_err();
    let error = crate::util::show::chain(&error);
    assert!(
        error.contains("strong.safetensors") && error.contains("too large"),
        "{error}"
    );
    assert!(!target.exists());
}

/// Alphas of single modules, by patterns as PEFT reads them: a module's name or its end behind a dot.
#[test]
fn alphas_are_told_by_regular_expressions() {
    let bench = Bench::new();
    let names = ["lora_B.weight", "lora_A.weight"];
    let tensors = low_rank("transformer.blocks.0.attn1.to_q.", names);
    let scaled = |config: &str| {
        let more = Some(("lora_adapter_metadata", config));
        let path = bench.write_with("one.safetensors", &tensors, more);
        let adapters = open(&[wanted(path, 1.0)])?;
        let [before, after] = loaded(&adapters, Q, &[WIDTH; 2]);
        // How often the product was added.
        let delta: Vec<f64> = product(&noise(1, &[WIDTH, 4], 0.3), &noise(2, &[4, WIDTH], 0.3));
        let (mut own, mut all) = (0.0, 0.0);
        for ((before, after), delta) in before.iter().zip(&after).zip(&delta) {
            own += (after - before) * delta;
            all += delta * delta;
        }
        anyhow::Ok((4.0 * own / all * 1e3).round() / 1e3)
    };
    for (patterns, alpha) in [
        (r#"{"to_q": 3}"#, 3.0),
        (r#"{"attn1.to_q": 3}"#, 3.0),
        (r#"{"^blocks.0.attn1.to_q": 3}"#, 3.0),
        (r#"{"blocks\\.\\d+\\.attn1\\.to_q": 3}"#, 3.0),
        (r#"{".*to_(q|k)": 3}"#, 3.0),
        (r#"{"attn\\d.to_[qkv]": 3, "to_q": 5}"#, 3.0),
        (r#"{"o_q": 3, "attn1": 3, "^to_q": 3, "to_q.*x": 3}"#, 8.0),
        (r#"{"blocks\\.(1|2)\\..*": 3}"#, 8.0),
        ("{}", 8.0),
    ] {
        for prefix in ["", "transformer."] {
            let config = format!(
                r#"{{"{prefix}alpha_pattern": {patterns}, "{prefix}lora_alpha": 8,
                "{prefix}rank_pattern": {{"to_q": 99}}, "{prefix}r": 99}}"#
            );
            assert_eq!(scaled(&config).unwrap(), alpha, "{config}");
        }
    }
    for (config, part) in [
        (r#"{"lora_alpha": 8"#, "EOF"),
        ("[8]", "expected a JSON object"),
        (r#"{"transformer.lora_alpha": "8"}"#, "expected a number"),
    ] {
        let error = crate::util::show::chain(&scaled(config).unwrap_err());
        assert!(
            error.contains(part) && error.contains("one.safetensors"),
            "{error}"
        );
    }
    for (patterns, parts) in [
        (r#"{"to_(q": 3}"#, ["to_(q", "regular expression"]),
        (r#"{"to_q": "x"}"#, ["to_q", "expected a number"]),
    ] {
        let error = scaled(&format!(r#"{{"alpha_pattern": {patterns}}}"#)).unwrap_err();
        let error = crate::util::show::chain(&error);
        for part in parts {
            assert!(error.contains(part), "{error}");
        }
        assert!(error.contains("one.safetensors"), "{error}");
    }
}
