//! Parts from different layouts in one run, and the tokenizers that layouts carry.

use std::fs;
use std::path::{Path, PathBuf};

use image::{Rgb, RgbImage};
use tempfile::TempDir;
use wan_i2v::weights::{Checkpoint, Loading, PartName, Sources};

use crate::layouts::converted::convert;
use crate::layouts::{BF16, F16, F32, assert_identical, device, folder, open, reference, run};
use crate::support::assert_holds;
use crate::support::forms::SPIECE;
use crate::support::isolated::program;
use crate::support::layouts::{Form, Model, Patch};
use crate::support::mlx;

/// A part from each of four layouts, each in a folder of its own.
const FORMS: [Form; 4] = [
    Form::Original(BF16),
    Form::Comfy(F16, "model.diffusion_model."),
    Form::MlxVideo(F32),
    Form::Gguf(F16, Patch::Folded),
];

/// Writes each part of `model` alone and returns their paths.
fn parts(model: &Model) -> (TempDir, [PathBuf; 4]) {
    let folder = tempfile::tempdir().unwrap();
    let paths = PartName::WITH_EXPERTS.map(|part| {
        let form = FORMS[part as usize];
        let root = folder.path().join(part.key());
        let (contents, _) = model.in_form(form);
        let index = part as usize;
        form.write_part(&model.configs[index], &contents[index], part, &root);
        root.join(form.place(part))
    });
    (folder, paths)
}

/// The experts, the VAE and the text encoder, as they are named.
fn sources_of([high, low, vae, text]: &[PathBuf; 4]) -> [Option<PathBuf>; 6] {
    let some = |path: &PathBuf| Some(path.clone());
    [some(high), some(low), some(vae), some(text), None, None]
}

fn open_parts(paths: &[PathBuf; 4], tokenizer: Option<PathBuf>) -> Checkpoint {
    let sources = Sources {
        model: None,
        parts: sources_of(paths),
        tokenizer,
    };
    Checkpoint::open(&sources, Loading::default()).unwrap()
}

#[test]
fn parts_of_four_layouts_are_one_model() {
    let _mlx = mlx();
    let model = Model::random();
    let (_folder, paths) = parts(&model);
    let ours = run(&open_parts(&paths, None), device());
    assert_identical(&ours, &reference(&model), "mixed parts");
}

/// The program's run with `flags`, as PNG frames.
fn frames(work: &Path, output: &str, flags: &[(&str, &Path)]) -> Vec<Vec<u8>> {
    let picture = RgbImage::from_fn(40, 36, |x, y| Rgb([(x * 6) as u8, (y * 7) as u8, 90]));
    picture.save(work.join("start.png")).unwrap();
    let mut command = program();
    command.current_dir(work);
    command.args(["--image", "start.png", "--prompt", "a cat in the rain"]);
    command.args(["--output", output, "--size", "32x32", "--frames", "5"]);
    command.args([
        "--steps",
        "2",
        "--seed",
        "7",
        "--device",
        "cpu",
        "--no-metadata",
    ]);
    for (flag, path) in flags {
        command.arg(flag).arg(path);
    }
    let ran = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{stderr}");
    let mut paths: Vec<PathBuf> = fs::read_dir(work.join(output))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert_eq!(paths.len(), 5);
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// On the command line too, with a tokenizer from a fifth place.
#[test]
fn on_the_command_line() {
    let _mlx = mlx();
    let model = Model::random();
    let (folder, paths) = parts(&model);
    let (plain, _) = crate::layouts::folder(Form::Diffusers(F32), &model);
    let tokenizer = folder.path().join("google/umt5-xxl");
    fs::create_dir_all(&tokenizer).unwrap();
    fs::copy(
        plain.path().join("tokenizer/tokenizer.json"),
        tokenizer.join("tokenizer.json"),
    )
    .unwrap();
    let mut flags: Vec<(&str, &Path)> = PartName::WITH_EXPERTS
        .into_iter()
        .zip(&paths)
        .map(|(part, path)| (part.flag(), path.as_path()))
        .collect();
    flags.push(("--tokenizer", &tokenizer));
    let mixed = frames(folder.path(), "mixed/", &flags);
    let whole = frames(folder.path(), "whole/", &[("--model", plain.path())]);
    assert!(mixed == whole, "the frames differ");

    // A part instead of a model's own.
    let flags = [("--model", plain.path()), ("--vae", &paths[2])];
    let replaced = frames(folder.path(), "replaced/", &flags);
    assert!(replaced == whole, "the frames differ");
}

fn ids(checkpoint: &Checkpoint) -> Vec<u32> {
    let tokenizer = checkpoint.load_tokenizer().unwrap();
    tokenizer
        .encode("A cat, running in the rain.", 512)
        .unwrap()
        .ids
}

/// ComfyUI's and GGUF's text encoders hold the SentencePiece model or its tables.
#[test]
fn tokenizers_inside_text_encoders() {
    let _mlx = mlx();
    let model = Model::random();
    let (with_file, _) = folder(Form::Original(BF16), &model);
    let tokenizer = with_file.path().join("google/umt5-xxl");
    fs::remove_file(tokenizer.join("tokenizer.json")).unwrap();
    fs::write(tokenizer.join("spiece.model"), SPIECE).unwrap();
    let expected = ids(&open(with_file.path()).unwrap());
    assert!(expected.len() > 8 && expected.last() == Some(&1));
    for form in [Form::Comfy(F16, ""), Form::Gguf(F16, Patch::Whole)] {
        let (inside, _) = folder(form, &model);
        assert_eq!(ids(&open(inside.path()).unwrap()), expected, "{form:?}");
        // The text encoder's file alone, beside parts of others.
        let mut paths = FORMS.map(|_| PathBuf::new());
        for part in PartName::WITH_EXPERTS {
            let whole = Form::Original(BF16);
            paths[part as usize] = with_file.path().join(whole.place(part));
        }
        paths[3] = inside.path().join(form.place(PartName::TextEncoder));
        assert_eq!(ids(&open_parts(&paths, None)), expected, "{form:?}");
        let named = open_parts(&paths, Some(tokenizer.clone()));
        assert_eq!(ids(&named), expected, "{form:?}");
    }
    let (without, _) = folder(Form::MlxVideo(BF16), &model);
    let message = format!(
        "{:#}",
        open(without.path())
            .unwrap()
            .load_tokenizer()
            .err()
            .unwrap()
    );
    assert_holds(&message, &["no tokenizer", "--tokenizer"]);
}

/// What is no such part is refused by its flag.
#[test]
fn a_part_in_the_wrong_place() {
    let _mlx = mlx();
    let (_folder, mut paths) = parts(&Model::random());
    paths.swap(2, 3);
    let sources = Sources {
        model: None,
        parts: sources_of(&paths),
        tokenizer: None,
    };
    let error = Checkpoint::open(&sources, Loading::default()).unwrap_err();
    assert_holds(
        &format!("{error:#}"),
        &["umt5-xxl-encoder", "this is a text encoder; expected a VAE"],
    );
}

/// A converted folder has the tokenizer that its source had inside the text encoder.
#[test]
fn tokenizers_are_converted_too() {
    let _mlx = mlx();
    let model = Model::random();
    for form in [Form::Comfy(F16, ""), Form::Gguf(F16, Patch::Whole)] {
        let (source, _) = folder(form, &model);
        let converted = convert(source.path(), [None; 3]);
        let ours = open(&converted.path().join("ours")).unwrap();
        assert_eq!(ids(&ours), ids(&open(source.path()).unwrap()), "{form:?}");
    }
}
