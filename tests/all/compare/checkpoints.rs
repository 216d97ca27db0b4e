//! Models in every layout, by their tensors' common names.

use std::path::Path;

use tempfile::TempDir;
use wan_i2v::diagnose::compare::{Comparison, Problem, Side, What, affine_tolerance};
use wan_i2v::weights::PartName;
use wan_i2v::weights::container::encoding::Encoding;

use crate::compare::{compared, of, row};
use crate::support::layouts::{Content, Form, Model, Patch};
use crate::support::mlx;

const HIGH: usize = PartName::HighNoise as usize;
const VAE: usize = PartName::Vae as usize;
const WEIGHT: &str = "blocks.1.attn2.to_out.0.weight";

fn written(form: Form, model: &Model, change: impl FnOnce(&mut [Content; 4])) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (mut contents, _) = model.in_form(form);
    change(&mut contents);
    form.write(model, &contents, folder.path());
    folder
}

fn plain(model: &Model) -> TempDir {
    written(Form::Diffusers(Encoding::F32), model, |_| {})
}

fn tensors(model: &Model) -> usize {
    model.parts.iter().map(Vec::len).sum()
}

fn worst(made: &Comparison) -> f64 {
    made.rows
        .iter()
        .map(|row| row.difference.error)
        .fold(0.0, f64::max)
}

/// What holds the same values is the same to the last bit, by every tensor.
#[test]
fn lossless_layouts_are_the_same() {
    let model = Model::random();
    let reference = plain(&model);
    for form in [
        Form::Original(Encoding::Bf16),
        Form::Comfy(Encoding::F16, "model.diffusion_model."),
        Form::MlxVideo(Encoding::F32),
        Form::Gguf(Encoding::F16, Patch::Folded),
        Form::Sharded(Encoding::Bf16),
    ] {
        let other = written(form, &model, |_| {});
        let made = of(reference.path(), other.path());
        assert_eq!(made.what, What::Checkpoints);
        assert_eq!(made.unmatched.len(), 0, "{form:?}: {:?}", made.unmatched);
        assert_eq!(made.rows.len(), tensors(&model), "{form:?}");
        assert_eq!(worst(&made), 0.0, "{form:?}");
        assert!(made.inside);
    }
}

/// What rounds is within the tolerance of its type, and far from that of a finer one; and what it
/// stands for is found exactly.
#[test]
fn rounding_layouts_are_inside() {
    let _mlx = mlx();
    let model = Model::precise();
    let reference = plain(&model);
    for (form, finer) in [
        (Form::Diffusers(Encoding::Bf16), 1e-4),
        (Form::Diffusers(Encoding::F16), 1e-4),
        (Form::Scaled { newer: false }, affine_tolerance(8)),
        (
            Form::MlxQuantized { bits: 4, group: 64 },
            affine_tolerance(6),
        ),
        (
            Form::MlxQuantized {
                bits: 8,
                group: 128,
            },
            1e-4,
        ),
        (Form::Gguf(Encoding::Q4K, Patch::Whole), affine_tolerance(8)),
        (Form::Gguf(Encoding::Q8_0, Patch::Dropped), 1e-4),
    ] {
        let (contents, meant) = model.in_form(form);
        let folder = tempfile::tempdir().unwrap();
        form.write(&model, &contents, folder.path());
        let made = of(reference.path(), folder.path());
        println!("{form:?}: {:.2e}", worst(&made));
        assert!(made.inside, "{form:?}: {:?}", made.rows.first());
        assert!(worst(&made) > finer, "{form:?}: {:.2e}", worst(&made));
        let excesses = made.rows.windows(2);
        assert!(
            excesses
                .clone()
                .all(|two| two[0].excess() >= two[1].excess())
        );
        // MLX's own values are rounded to float32 once more, and of the table `meant` has what is
        // loaded of it, which is bfloat16.
        let meant = plain(&meant);
        let exact = compared(meant.path(), folder.path(), Some(1e-6)).unwrap();
        let others = exact.rows.iter().filter(|row| row.name != "shared.weight");
        for row in others {
            assert!(row.inside, "{form:?}: {row:?}");
        }
    }
}

#[test]
fn experts_that_are_swapped_are_not_the_same() {
    let model = Model::random();
    let reference = plain(&model);
    let swapped = written(Form::Original(Encoding::F32), &model, |parts| {
        parts.swap(0, 1)
    });
    let made = of(reference.path(), swapped.path());
    assert!(!made.inside);
    let outside = |part| {
        let rows = made.rows.iter().filter(move |row| row.part == Some(part));
        rows.filter(|row| !row.inside).count()
    };
    assert!(outside(PartName::HighNoise) > 50);
    assert_eq!(outside(PartName::Vae), 0);
}

/// Zeros from one row on, as a cut copy leaves them.
#[test]
fn the_first_wrong_place_is_named() {
    let model = Model::random();
    let (a, b) = (plain(&model), plain(&model));
    let zeroed = written(Form::Diffusers(Encoding::F32), &model, |parts| {
        let weight = parts[HIGH].get_mut(WEIGHT).unwrap();
        let columns = weight.shape[1];
        weight.bytes[5 * columns * 4..].fill(0);
    });
    assert!(of(a.path(), b.path()).inside);
    let made = of(a.path(), zeroed.path());
    let bad: Vec<_> = made.rows.iter().filter(|row| !row.inside).collect();
    assert_eq!(bad.len(), 1);
    assert_eq!(
        (bad[0].name.as_str(), bad[0].part),
        (WEIGHT, Some(PartName::HighNoise))
    );
    let first = bad[0].difference.first.as_deref().unwrap();
    assert_eq!(first[0], 5);
    assert!(bad[0].difference.cosine.unwrap() < 0.5);
}

/// In mlx-video's layout, whose convolutions have another order of axes: by the canonical index.
#[test]
fn nan_is_named_with_its_canonical_place() {
    let model = Model::random();
    let reference = plain(&model);
    let poisoned = written(Form::MlxVideo(Encoding::F32), &model, |parts| {
        // [outputs, time, rows, columns, inputs]: the last input of the first tap.
        let weight = parts[VAE].get_mut("encoder.conv1.weight").unwrap();
        assert_eq!(weight.shape, [8, 3, 3, 3, 3]);
        weight.bytes[8..12].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    let made = of(reference.path(), poisoned.path());
    let weight = row(&made, "encoder.conv_in.weight");
    assert_eq!(weight.difference.non_finite, [0, 1]);
    assert_eq!(weight.difference.first, Some(vec![0, 2, 0, 0, 0]));
    assert!(!weight.inside && !made.inside);
    assert!(made.rows[0].name == weight.name, "the worst comes first");
}

#[test]
fn missing_and_unexpected_tensors_are_named() {
    let model = Model::random();
    let reference = plain(&model);
    let lacking = written(Form::Diffusers(Encoding::F32), &model, |parts| {
        let weight = parts[HIGH].remove(WEIGHT).unwrap();
        parts[HIGH].insert("blocks.1.attn2.to_out.9.weight".into(), weight);
        let bias = parts[VAE].get_mut("decoder.conv_in.bias").unwrap();
        (bias.shape, bias.bytes) = (vec![1], vec![0; 4]);
    });
    let made = of(reference.path(), lacking.path());
    assert!(!made.inside);
    assert_eq!(made.rows.len(), tensors(&model) - 2);
    let problem = |name: &str| {
        let mut found = made.unmatched.iter().filter(|tensor| tensor.name == name);
        let tensor = found
            .next()
            .unwrap_or_else(|| panic!("{name}: {:?}", made.unmatched));
        assert!(found.next().is_none(), "{name} twice");
        &tensor.problem
    };
    assert_eq!(*problem(WEIGHT), Problem::Missing { side: Side::B });
    let extra = problem("blocks.1.attn2.to_out.9.weight");
    assert_eq!(*extra, Problem::Unexpected { side: Side::B });
    assert!(
        matches!(problem("decoder.conv_in.bias"), Problem::Wrong { side: Side::B, why } if why.contains("[1]"))
    );
}

#[test]
fn parts_are_compared_with_parts_and_with_those_of_models() {
    let model = Model::random();
    let diffusers = plain(&model);
    let comfy = written(Form::Comfy(Encoding::Bf16, "model."), &model, |_| {});
    let at = |folder: &TempDir, place: &str| folder.path().join(place);
    let high = at(
        &comfy,
        &Form::Comfy(Encoding::Bf16, "").place(PartName::HighNoise),
    );
    let low = at(&diffusers, "transformer_2");
    // A folder may be called after anything.
    let elsewhere = tempfile::tempdir().unwrap();
    let moved = elsewhere.path().join("t5-vae/high_noise.safetensors");
    std::fs::create_dir(moved.parent().unwrap()).unwrap();
    std::fs::copy(&high, &moved).unwrap();
    for (a, b) in [
        (at(&diffusers, "transformer"), high.clone()),
        (high.clone(), diffusers.path().to_owned()),
        (moved, diffusers.path().to_owned()),
        (comfy.path().to_owned(), low.clone()),
        (
            at(&diffusers, "text_encoder"),
            at(&comfy, "text_encoders/umt5_xxl.safetensors"),
        ),
    ] {
        let made = of(&a, &b);
        assert!(
            made.inside && worst(&made) == 0.0,
            "{} {}",
            a.display(),
            b.display()
        );
    }
    assert!(!of(&low, &high).inside, "another expert");
    let refuse = |a: &Path, b: &Path, parts: &[&str]| {
        let error = format!("{:#}", compared(a, b, None).unwrap_err());
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    };
    refuse(
        &high,
        &at(&diffusers, "vae"),
        &["an expert", "a VAE", "nothing in common"],
    );
    let dump = tempfile::tempdir().unwrap();
    let array = dump.path().join("noise.npy");
    crate::compare::npy(&array, "<f4", false, &[1], &[0; 4]);
    refuse(
        dump.path(),
        diffusers.path(),
        &["a folder of --dump", "a model"],
    );
    refuse(&array, dump.path(), &["a .npy file", "a folder of --dump"]);
    refuse(&array, &high, &["a .npy file", "an expert"]);
    let empty = tempfile::tempdir().unwrap();
    refuse(empty.path(), dump.path(), &["neither a folder of --dump"]);
    refuse(
        &empty.path().join("x"),
        dump.path(),
        &["no such file or folder"],
    );
}

/// Tensors that are no model's: by their names.
#[test]
fn other_files_are_compared_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let write = |file: &str, tensors: &[(&str, f32)]| {
        let content: Content = tensors
            .iter()
            .map(|(name, value)| {
                let stored = crate::support::layouts::stored(Encoding::F32, &[2], &[1.0, *value]);
                ((*name).to_owned(), stored)
            })
            .collect();
        let path = folder.path().join(file);
        crate::support::containers::safetensors(&path, &content);
        path
    };
    let a = write("a.safetensors", &[("x", 2.0), ("y", 3.0)]);
    let b = write("b.safetensors", &[("x", 2.5), ("z", 3.0)]);
    let made = of(&a, &b);
    assert_eq!(
        (made.what, made.rows.len(), made.inside),
        (What::Files, 1, false)
    );
    assert_eq!(made.rows[0].difference.first, Some(vec![1]));
    let names: Vec<&str> = made.unmatched.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["y", "z"]);
    let c = write("c.safetensors", &[("other", 1.0)]);
    let error = format!("{:#}", compared(&a, &c, None).unwrap_err());
    assert!(
        error.contains("no tensor of") && error.contains("x to y"),
        "{error}"
    );
}
