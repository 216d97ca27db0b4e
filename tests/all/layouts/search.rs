//! Finding the parts in folders that hold more than one model.

use std::fs;
use std::path::Path;

use tempfile::TempDir;
use wan_i2v::weights::layout::{Layout, TokenizerAt};
use wan_i2v::weights::{Checkpoint, Loading, PartName, Sources};

use crate::layouts::{BF16, F16, assert_identical, folder, open, run_folder};
use crate::support::assert_holds;
use crate::support::containers::safetensors;
use crate::support::folders::TOKENIZER;
use crate::support::forms::SPIECE;
use crate::support::layouts::{Content, Form, Model, stored};
use crate::support::mlx;

/// A ComfyUI folder with what else lies there: a LoRA that carries two whole tensors, a CLIP
/// vision model, an upscaler, notes.
fn crowded() -> TempDir {
    let (folder, _) = folder(Form::Comfy(F16, ""), &Model::random());
    let put = |path: &str, names: &[&str]| {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let content: Content = names
            .iter()
            .map(|name| ((*name).to_owned(), stored(F16, &[2, 2], &[0.5; 4])))
            .collect();
        safetensors(&path, &content);
    };
    put(
        "loras/wan2.2_i2v_lightx2v_high_noise.safetensors",
        &[
            "diffusion_model.blocks.0.self_attn.q.lora_down.weight",
            "diffusion_model.blocks.0.self_attn.q.lora_up.weight",
            "diffusion_model.patch_embedding.weight",
            "diffusion_model.text_embedding.0.weight",
        ],
    );
    put(
        "clip_vision/clip_vision_h.safetensors",
        &[
            "vision_model.embeddings.class_embedding",
            "vision_model.encoder.layers.0.self_attn.q_proj.weight",
        ],
    );
    put("upscale_models/x4.pth.safetensors", &["conv_first.weight"]);
    fs::create_dir_all(folder.path().join("controlnet/deep/er")).unwrap();
    fs::write(folder.path().join("vae/put_vae_here"), "").unwrap();
    folder
}

fn error(root: &Path) -> String {
    format!("{:#}", open(root).unwrap_err())
}

fn copy(folder: &TempDir, from: &str, to: &str) {
    let to = folder.path().join(to);
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::copy(folder.path().join(from), to).unwrap();
}

#[test]
fn a_crowded_folder_is_no_obstacle() {
    let _mlx = mlx();
    let (plain, _) = folder(Form::Comfy(F16, ""), &Model::random());
    let crowded = crowded();
    let expected = run_folder(plain.path());
    assert_identical(&run_folder(crowded.path()), &expected, "crowded");
}

#[test]
fn two_candidates_are_named() {
    let _mlx = mlx();
    let folder = crowded();
    copy(
        &folder,
        "vae/wan_2.1_vae.safetensors",
        "vae/Wan2_1_VAE_bf16.safetensors",
    );
    assert_holds(
        &error(folder.path()),
        &[
            "Wan2_1_VAE_bf16.safetensors",
            "wan_2.1_vae.safetensors",
            "VAE",
            "--vae",
        ],
    );
    fs::remove_file(folder.path().join("vae/Wan2_1_VAE_bf16.safetensors")).unwrap();
    let high = "diffusion_models/wan2.2_i2v_high_noise_14B.safetensors";
    copy(&folder, high, "unet/Wan2_2-I2V-A14B-HIGH_KJ.safetensors");
    assert_holds(
        &error(folder.path()),
        &[high, "unet/Wan2_2-I2V-A14B-HIGH_KJ", "--high"],
    );
}

#[test]
fn experts_need_high_or_low_in_their_path() {
    let _mlx = mlx();
    let folder = crowded();
    let high = "diffusion_models/wan2.2_i2v_high_noise_14B.safetensors";
    copy(&folder, high, "diffusion_models/a.safetensors");
    fs::remove_file(folder.path().join(high)).unwrap();
    assert_holds(
        &error(folder.path()),
        &[
            "high-noise expert",
            "--high",
            "a.safetensors: an expert",
            "neither high nor low",
        ],
    );

    // The folder's name will do.
    copy(
        &folder,
        "diffusion_models/a.safetensors",
        "HighNoise/a.safetensors",
    );
    fs::remove_file(folder.path().join("diffusion_models/a.safetensors")).unwrap();
    open(folder.path()).unwrap();

    let alone = folder.path().join("HighNoise/a.safetensors");
    let plain = folder.path().join("a.safetensors");
    fs::rename(alone, &plain).unwrap();
    let message = format!("{:#}", Layout::of_path(&plain, None).unwrap_err());
    assert_holds(
        &message,
        &["a.safetensors", "say which with --part high or --part low"],
    );
}

/// Words that only contain the letters say nothing.
#[test]
fn high_and_low_are_words() {
    let _mlx = mlx();
    let folder = crowded();
    let high = "diffusion_models/wan2.2_i2v_high_noise_14B.safetensors";
    for (name, part) in [
        (
            "highnoise-flow/model.safetensors",
            Some(PartName::HighNoise),
        ),
        ("yellow/follow-slow.safetensors", None),
        ("slow_motion/wan22_I2V_H1GH.safetensors", None),
        (
            "Wan2.2-I2V-A14B-LowNoise/thigh.safetensors",
            Some(PartName::LowNoise),
        ),
        (
            "a/wan22-HIGH-workflow.safetensors",
            Some(PartName::HighNoise),
        ),
    ] {
        copy(&folder, high, name);
        let layout = Layout::of_path(&folder.path().join(name), None).ok();
        let found = PartName::WITH_EXPERTS
            .into_iter()
            .find(|&part| layout.as_ref().is_some_and(|l| l.part(part).is_some()));
        assert_eq!(found, part, "{name}");
    }
}

/// The tokenizer that the text encoder's file holds belongs to it; others may be any model's.
#[test]
fn a_stray_tokenizer_is_not_taken() {
    let _mlx = mlx();
    let folder = crowded();
    fs::create_dir_all(folder.path().join("LLM/other")).unwrap();
    fs::write(folder.path().join("LLM/other/tokenizer.json"), TOKENIZER).unwrap();
    let layout = Layout::of_path(folder.path(), None).unwrap();
    assert!(matches!(layout.tokenizer, Some(TokenizerAt::InTextEncoder)));
}

#[test]
fn of_two_tokenizers_the_user_chooses() {
    let _mlx = mlx();
    let (folder, _) = folder(Form::MlxVideo(BF16), &Model::random());
    for name in ["one", "two"] {
        fs::create_dir(folder.path().join(name)).unwrap();
        fs::write(folder.path().join(name).join("spiece.model"), SPIECE).unwrap();
    }
    let message = match open(folder.path()).and_then(|checkpoint| checkpoint.load_tokenizer()) {
        Ok(_) => panic!("one was taken"),
        Err(error) => format!("{error:#}"),
    };
    assert_holds(
        &message,
        &["--tokenizer", "one/spiece.model", "two/spiece.model"],
    );
    fs::remove_dir_all(folder.path().join("two")).unwrap();
    open(folder.path()).unwrap().load_tokenizer().unwrap();
}

/// What is named on the command line is not searched for: that settles what a folder leaves open.
#[test]
fn named_parts_settle_it() {
    let _mlx = mlx();
    let folder = crowded();
    let vae = "vae/wan_2.1_vae.safetensors";
    copy(&folder, vae, "vae/other.safetensors");
    for name in ["one", "two"] {
        fs::create_dir_all(folder.path().join(name)).unwrap();
        fs::write(folder.path().join(name).join("tokenizer.json"), TOKENIZER).unwrap();
    }
    let mut sources = Sources::folder(folder.path());
    sources.parts[PartName::Vae as usize] = Some(folder.path().join(vae));
    sources.tokenizer = Some(folder.path().join("one"));
    let checkpoint = Checkpoint::open(&sources, Loading::default()).unwrap();
    checkpoint.load_tokenizer().unwrap();
}

/// A damaged file of another model is no obstacle; one that may be a missing part is named.
#[test]
fn damaged_files_are_passed_over() {
    let _mlx = mlx();
    let folder = crowded();
    fs::write(folder.path().join("vae/broken.safetensors"), [7; 100]).unwrap();
    fs::write(folder.path().join("vae/empty.gguf"), []).unwrap();
    open(folder.path()).unwrap();
    let vae = folder.path().join("vae/wan_2.1_vae.safetensors");
    let bytes = fs::read(&vae).unwrap();
    fs::write(&vae, &bytes[..bytes.len() - 1]).unwrap();
    let message = error(folder.path());
    assert_holds(
        &message,
        &[
            "no VAE",
            "--vae",
            "wan_2.1_vae.safetensors",
            "download it again",
        ],
    );
}

/// One file for everything is not read; it is said why the parts are missed.
#[test]
fn whole_checkpoints_in_one_file_are_passed_over() {
    let _mlx = mlx();
    let folder = tempfile::tempdir().unwrap();
    let (contents, _) = Model::random().in_form(Form::Comfy(F16, "model.diffusion_model."));
    let [expert, _, vae, _] = contents;
    let vae = vae
        .into_iter()
        .map(|(name, tensor)| (format!("vae.{name}"), tensor));
    let whole: Content = expert.into_iter().chain(vae).collect();
    safetensors(&folder.path().join("wan_high.safetensors"), &whole);
    let message = error(folder.path());
    assert_holds(
        &message,
        &["wan_high.safetensors: several parts in one file"],
    );
}
