//! Our own layout, written from the others, and quantization while loading.

use std::collections::BTreeSet;
use std::path::Path;

use tempfile::TempDir;
use wan_i2v::diagnose::compare::{Input, compare};
use wan_i2v::weights::container::encoding::Encoding;
use wan_i2v::weights::convert::{self, Bits, Converted, Event, LocalSource, Options};
use wan_i2v::weights::layout::Layout;
use wan_i2v::weights::naming::Kind;
use wan_i2v::weights::quantize::Search;
use wan_i2v::weights::{Checkpoint, Loading, PartName, Scheme, Sources, quantize};

use crate::layouts::{
    BF16, F16, F32, Made, assert_identical, device, folder, reference, rms_error, run, run_folder,
};
use crate::support::assert_holds;
use crate::support::forms::is_linear;
use crate::support::layouts::{Content, Form, Model, Patch, Stored};
use crate::support::mlx;

/// Bits for the high-noise expert, the low-noise expert and the text encoder; small files, so
/// that a part has several.
fn options(bits: [Option<Bits>; 3]) -> Options {
    let [high, low, text] = bits;
    Options {
        high,
        low,
        text,
        file_bytes: 1 << 20,
        ..Options::default()
    }
}

/// A folder `ours` from another layout.
pub fn convert(source: &Path, bits: [Option<Bits>; 3]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let layout = Layout::of_path(source, None).unwrap();
    let mut feed = LocalSource::new(&layout).unwrap();
    let target = folder.path().join("ours");
    convert::convert(&mut feed, &target, &options(bits), &mut |_| ()).unwrap();
    folder
}

fn ours(folder: &TempDir) -> Made {
    run_folder(&folder.path().join("ours"))
}

/// The forms' conversions to 16 bits lose nothing of values that have no more.
fn check_16_bits(forms: &[Form]) {
    let _mlx = mlx();
    let model = Model::random();
    let expected = reference(&model);
    for &form in forms {
        let (source, _) = folder(form, &model);
        for bits in [None, Some(Bits::Sixteen)] {
            let converted = convert(source.path(), [bits; 3]);
            let what = format!("{form:?} in {bits:?}");
            assert_identical(&ours(&converted), &expected, &what);
            let shards = std::fs::read_dir(converted.path().join("ours")).unwrap();
            assert!(shards.count() > 12, "{what}: not in shards");
        }
    }
}

#[test]
fn from_diffusers_and_the_original() {
    check_16_bits(&[Form::Diffusers(F32), Form::Original(BF16)]);
}

#[test]
fn from_comfy_and_mlx_video() {
    let prefix = "model.diffusion_model.";
    check_16_bits(&[Form::Comfy(F16, prefix), Form::MlxVideo(BF16)]);
}

#[test]
fn from_gguf() {
    check_16_bits(&[Form::Gguf(F16, Patch::Folded)]);
}

/// What is no plain type becomes bfloat16, which rounds; what MLX quantized stays as it is.
#[test]
fn from_quantized_layouts() {
    let _mlx = mlx();
    let model = Model::random();
    for (form, most) in [
        (Form::Scaled { newer: false }, 0.01),
        (Form::Gguf(Encoding::Q5K, Patch::Whole), 0.01),
        (Form::Gguf(Encoding::Nvfp4, Patch::Whole), 0.0),
        (Form::MlxQuantized { bits: 4, group: 32 }, 0.0),
    ] {
        let (source, _) = folder(form, &model);
        let before = run_folder(source.path());
        let after = ours(&convert(source.path(), [None; 3]));
        let error = rms_error(&after.latents, &before.latents);
        println!("measured conversion of {form:?}: {error:.2e}");
        assert!(error <= most, "{form:?}: {error:.2e}");
    }
}

/// Our quantization of the linear layers inside the blocks, as values.
fn quantized(model: &Model, bits: [Option<quantize::Bits>; 3], search: Search) -> Model {
    let mut model = model.clone();
    for (part, bits) in [(0, bits[0]), (1, bits[1]), (3, bits[2])] {
        let Some(bits) = bits else { continue };
        for tensor in &mut model.parts[part] {
            let block = match PartName::WITH_EXPERTS[part].kind() {
                Kind::TextEncoder => "encoder.block.",
                _ => "blocks.",
            };
            if tensor.name.starts_with(block) && is_linear(tensor) {
                let packed = quantize::quantize(&tensor.values, bits, search).unwrap();
                tensor.values = quantize::dequantize(&packed, bits).unwrap();
            }
        }
    }
    model
}

/// Converted and loaded with bits, a model makes the clip of the values which they stand for: the same of 8 bits,
/// and a nearer one converted to fewer.
fn check_bits(bits: [Bits; 3], most: f64) {
    let _mlx = mlx();
    let model = Model::random();
    let (source, _) = folder(Form::Comfy(BF16, ""), &model);
    let converted = ours(&convert(source.path(), bits.map(Some)));
    let [high, low, text] = bits.map(Bits::quantized);
    let scheme = |bits: Option<quantize::Bits>| bits.map(Into::into);
    let load = Loading {
        high: scheme(high),
        low: scheme(low),
        text: scheme(text),
        ..Loading::default()
    };
    let checkpoint = Checkpoint::open(&Sources::folder(source.path()), load).unwrap();
    let loaded = run(&checkpoint, device());
    if bits.iter().all(|bits| bits.number() >= 8) {
        assert_identical(&converted, &loaded, &format!("{bits:?}"));
    }
    let unquantized = reference(&model);
    for (made, search) in [
        (&converted, Search::LeastSquares),
        (&loaded, Search::MinMax),
    ] {
        let meant = reference(&quantized(&model, [high, low, text], search));
        let error = rms_error(&made.latents, &meant.latents);
        assert!(
            error < 1e-4,
            "{bits:?}, {search:?}: {error:.2e} from the values"
        );
        let error = rms_error(&made.latents, &unquantized.latents);
        println!("measured {bits:?}, {search:?}: latents {error:.2e} from the unquantized");
        assert!(error > 1e-4 && error < most, "{bits:?}: {error:.2e}");
    }
}

#[test]
fn of_8_bits() {
    check_bits([Bits::Eight; 3], 0.02);
}

#[test]
fn of_4_bits() {
    check_bits([Bits::Four; 3], 0.3);
}

#[test]
fn of_mixed_bits() {
    check_bits([Bits::Four, Bits::Eight, Bits::Sixteen], 0.2);
}

#[test]
fn of_3_bits() {
    check_bits([Bits::Three, Bits::Five, Bits::Eight], 0.5);
}

#[test]
fn of_6_bits() {
    check_bits([Bits::Six; 3], 0.1);
}

/// A conversion of `source` that ends after so many bytes were read, as by a loss of power.
fn interrupt(source: &Path, target: &Path, options: &Options, most: u64) {
    let layout = Layout::of_path(source, None).unwrap();
    let mut read = None;
    let stopped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut feed = LocalSource::new(&layout).unwrap();
        let _ = convert::convert(&mut feed, target, options, &mut |event| match event {
            Event::Total(_) => read = Some(0),
            Event::Read(bytes) => {
                // What was measured before is not counted.
                read = read.map(|read| read + bytes);
                assert!(read.is_none_or(|read| read <= most), "interrupted");
            }
            _ => {}
        });
    }));
    assert!(stopped.is_err());
}

/// Converts, and says whether layers were measured.
fn convert_to(
    source: &Path,
    target: &Path,
    options: &Options,
) -> anyhow::Result<(Converted, bool)> {
    let layout = Layout::of_path(source, None)?;
    let mut measured = false;
    let converted = convert::convert(
        &mut LocalSource::new(&layout)?,
        target,
        options,
        &mut |event| measured |= matches!(event, Event::Measuring(_)),
    )?;
    Ok((converted, measured))
}

fn folder_bytes(folder: &Path) -> u64 {
    let files = std::fs::read_dir(folder).unwrap();
    files
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum()
}

/// Bits by measured errors: as large as was said, better than the same bits everywhere, the same after an
/// interruption, and loaded as any other.
#[test]
fn within_a_size() {
    let _mlx = mlx();
    let model = Model::random();
    let (source, _) = folder(Form::Comfy(BF16, ""), &model);
    let work = tempfile::tempdir().unwrap();
    let place = |name: &str| work.path().join(name);
    let fixed = options([Some(Bits::Five); 3]);
    convert_to(source.path(), &place("five"), &fixed).unwrap();
    // What a folder has besides tensors is estimated, here a large share.
    let size = folder_bytes(&place("five")) * 11 / 10;
    let within = |size| Options {
        size: Some(size),
        ..options([None; 3])
    };
    let (converted, measured) = convert_to(source.path(), &place("auto"), &within(size)).unwrap();
    assert!(measured && !converted.layers.is_empty());
    let bytes = folder_bytes(&place("auto"));
    assert!(bytes <= size && bytes > size * 8 / 10, "{bytes} of {size}");
    let given: BTreeSet<u32> = (converted.layers.iter())
        .flat_map(|kind| kind.bits.keys().copied())
        .collect();
    assert!(given.len() > 1, "{:?}", converted.layers);
    let [auto, five] = ["auto", "five"].map(|name| {
        let made = run_folder(&place(name));
        rms_error(&made.latents, &reference(&model).latents)
    });
    println!(
        "measured within a size: latents {auto:.2e} from the unquantized, of 5 bits everywhere {five:.2e}"
    );
    assert!(auto > 0.0 && auto < 2.0 * five, "{auto} {five}");

    interrupt(source.path(), &place("again"), &within(size), 500_000);
    let (_, measured) = convert_to(source.path(), &place("again"), &within(size)).unwrap();
    assert!(!measured, "measured again");
    for file in std::fs::read_dir(place("auto")).unwrap() {
        let name = file.unwrap().file_name();
        let [one, other] =
            ["auto", "again"].map(|folder| std::fs::read(place(folder).join(&name)).unwrap());
        assert!(one == other, "{}", name.display());
    }

    // One's own bits stay what was said.
    let text = Options {
        text: Some(Bits::Eight),
        ..within(size)
    };
    let (converted, _) = convert_to(source.path(), &place("text"), &text).unwrap();
    assert!(
        converted
            .layers
            .iter()
            .all(|kind| kind.part != PartName::TextEncoder)
    );

    let refused = convert_to(source.path(), &place("none"), &within(1000)).unwrap_err();
    // Nothing is in the way of the corrected command.
    assert!(!place("none.partial").exists());
    let message = format!("{refused:#}");
    let least = message
        .split("takes ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    let least: f64 = least.unwrap().parse().unwrap();
    let least = (least * 1e9).round() as u64;
    convert_to(source.path(), &place("least"), &within(least)).unwrap();
    assert!(folder_bytes(&place("least")) <= least);
}

/// What an older version began is gone on with where it would have written the same.
#[test]
fn what_an_older_version_began() {
    let _mlx = mlx();
    let (source, _) = folder(Form::Comfy(BF16, ""), &Model::random());
    let work = tempfile::tempdir().unwrap();
    for (bits, goes_on) in [(Bits::Four, false), (Bits::Eight, true)] {
        let target = work.path().join(bits.number().to_string());
        let options = options([Some(bits); 3]);
        interrupt(source.path(), &target, &options, 500_000);
        let path = target
            .with_extension("partial")
            .join("conversion-state.json");
        let mut state: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        state["identity"].as_object_mut().unwrap().remove("scales");
        state.as_object_mut().unwrap().remove("assignment");
        std::fs::write(&path, state.to_string()).unwrap();
        let found = convert_to(source.path(), &target, &options);
        match goes_on {
            true => assert!(found.is_ok()),
            false => assert_holds(
                &format!("{:#}", found.unwrap_err()),
                &["4.partial", "an older version", "hint: remove the folder"],
            ),
        }
    }
}

/// Groups of 32 lose less, in a folder that says so.
#[test]
fn groups_of_32() {
    let _mlx = mlx();
    let model = Model::random();
    let (source, _) = folder(Form::Comfy(BF16, ""), &model);
    let work = tempfile::tempdir().unwrap();
    let errors = [64, 32].map(|group_size| {
        let options = Options {
            group_size,
            ..options([Some(Bits::Four); 3])
        };
        let target = work.path().join(group_size.to_string());
        convert_to(source.path(), &target, &options).unwrap();
        let config = std::fs::read(target.join("config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(config["quantization"]["group_size"], group_size);
        let scheme = Scheme {
            bits: quantize::Bits::Four,
            group_size,
        };
        let checkpoint =
            Checkpoint::open(&Sources::folder(source.path()), Loading::all(scheme)).unwrap();
        let loaded = run(&checkpoint, device());
        // Loaded with the bits that it has, whatever its groups; with others it is refused.
        Checkpoint::open(
            &Sources::folder(&target),
            Loading::all(quantize::Bits::Four),
        )
        .unwrap();
        let other = Scheme {
            group_size: 32,
            ..scheme
        };
        let other = Checkpoint::open(&Sources::folder(&target), Loading::all(other));
        assert_eq!(other.is_ok(), group_size == 32);
        [run_folder(&target), loaded]
            .map(|made| rms_error(&made.latents, &reference(&model).latents))
    });
    println!("measured 4 bits: latents {errors:?} from the unquantized");
    assert!(
        errors[1][0] < errors[0][0] && errors[1][1] < errors[0][1],
        "{errors:?}"
    );
}

/// nvfp4, mxfp8 and rotated int8 as ComfyUI has them: a conversion without bits keeps the weights, one to 16
/// bits unpacks them.
#[test]
fn from_small_floats_and_rotated_bytes() {
    let _mlx = mlx();
    let form = Form::Comfy(BF16, "");
    let model = Model::random();
    let (mut contents, _) = model.in_form(form);
    let bytes = |count: usize, seed: usize| -> Vec<u8> {
        (0..count)
            .map(|i| (((i + seed) * 2_654_435_761) >> 7) as u8)
            .collect()
    };
    let set = |content: &mut Content, name: &str, encoding, shape: &[usize], bytes: Vec<u8>| {
        let (shape, name) = (shape.to_vec(), name.to_owned());
        content.insert(
            name,
            Stored {
                encoding,
                shape,
                bytes,
            },
        );
    };
    for content in &mut contents[..2] {
        for (module, format) in [
            ("blocks.0.ffn.0", r#"{"format": "nvfp4"}"#),
            ("blocks.0.ffn.2", r#"{"format": "mxfp8"}"#),
            (
                "blocks.1.ffn.0",
                r#"{"format": "int8_tensorwise", "convrot": true, "convrot_groupsize": 64}"#,
            ),
        ] {
            let weight = format!("{module}.weight");
            let [rows, columns] = *content[&weight].shape else {
                panic!("{weight} is no matrix");
            };
            let of = |end: &str| format!("{module}.{end}");
            let text = format.as_bytes();
            set(
                content,
                &of("comfy_quant"),
                Encoding::U8,
                &[text.len()],
                text.to_vec(),
            );
            let tiles = |group: usize| {
                [
                    rows.next_multiple_of(128),
                    (columns / group).next_multiple_of(4),
                ]
            };
            match module {
                "blocks.0.ffn.0" => {
                    let half = [rows, columns / 2];
                    set(
                        content,
                        &weight,
                        Encoding::U8,
                        &half,
                        bytes(rows * columns / 2, 1),
                    );
                    let [high, wide] = tiles(16);
                    // Some hundredths, in float8.
                    let scales = bytes(high * wide, 2).iter().map(|b| 0x18 + b % 8).collect();
                    set(
                        content,
                        &of("weight_scale"),
                        Encoding::F8E4M3,
                        &[high, wide],
                        scales,
                    );
                    let second = 0.2_f32.to_le_bytes().to_vec();
                    set(content, &of("weight_scale_2"), F32, &[], second);
                }
                "blocks.0.ffn.2" => {
                    let codes = bytes(rows * columns, 3).iter().map(|b| b & 0xbf).collect();
                    set(content, &weight, Encoding::F8E4M3, &[rows, columns], codes);
                    let [high, wide] = tiles(32);
                    let scales = bytes(high * wide, 4).iter().map(|b| 119 + b % 4).collect();
                    set(
                        content,
                        &of("weight_scale"),
                        Encoding::U8,
                        &[high, wide],
                        scales,
                    );
                }
                _ => {
                    set(
                        content,
                        &weight,
                        Encoding::I8,
                        &[rows, columns],
                        bytes(rows * columns, 5),
                    );
                    let scales =
                        (0..rows).flat_map(|row| (1e-4 * (1 + row % 5) as f32).to_le_bytes());
                    set(
                        content,
                        &of("weight_scale"),
                        F32,
                        &[rows, 1],
                        scales.collect(),
                    );
                }
            }
        }
    }
    let source = tempfile::tempdir().unwrap();
    form.write(&model, &contents, source.path());
    let before = run_folder(source.path());
    assert!(rms_error(&before.latents, &reference(&model).latents) > 0.01);
    let kept = convert(source.path(), [None; 3]);
    assert_identical(&ours(&kept), &before, "kept");
    let again = ours(&convert(&kept.path().join("ours"), [None; 3]));
    assert_identical(&again, &before, "converted again");
    let [stored, own] =
        [source.path(), &kept.path().join("ours")].map(|path| Input::open(path).unwrap());
    let compared = compare(&stored, &own, Some(1e-6), &mut |_| {}).unwrap();
    let blocks = compared.rows.iter().filter(|row| row.name.contains("ffn"));
    for row in blocks {
        assert!(row.inside, "{row:?}");
    }
    let unpacked = ours(&convert(source.path(), [Some(Bits::Sixteen); 3]));
    let error = rms_error(&unpacked.latents, &before.latents);
    println!("measured small floats and rotated bytes in 16 bits: {error:.2e}");
    assert!(error > 0.0 && error < 0.02, "{error:.2e}");
    // Fewer bits than they have: all but nvfp4 are quantized, in groups.
    let four = convert(source.path(), [Some(Bits::Four), Some(Bits::Four), None]);
    let error = rms_error(&ours(&four).latents, &before.latents);
    println!("measured small floats and rotated bytes in 4 bits: {error:.2e}");
    assert!(error > 1e-3 && error < 0.5, "{error:.2e}");
}
