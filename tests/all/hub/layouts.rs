//! Which files are needed of repositories as they are published.
//!
//! The names and the sizes of the weights are those of Wan-AI/Wan2.2-I2V-A14B (commit 206a9ee1,
//! sizes to two or three digits) and of Wan-AI/Wan2.2-I2V-A14B-Diffusers (sizes of the T2V sister
//! repository, whose patch embeddings are 1.6 MB smaller); all other sizes are about right.

use wan_i2v::hub::{Hash, Layout, RemoteFile, Selection, named, needed};

fn file(path: &str, size: u64) -> RemoteFile {
    RemoteFile {
        path: path.to_owned(),
        size,
        hash: Some(Hash::git_blob(&"a".repeat(40)).unwrap()),
    }
}

fn original() -> Vec<RemoteFile> {
    let mut files = vec![
        file(".gitattributes", 2_100),
        file("README.md", 24_000),
        file("Wan2.1_VAE.pth", 507_609_880),
        file("assets/comp_effic.png", 202_156),
        file("assets/logo.png", 56_322),
        file("assets/moe_arch.png", 74_900),
        file("configuration.json", 43),
        file("examples/i2v_input.JPG", 250_628),
        file("google/umt5-xxl/special_tokens_map.json", 6_623),
        file("google/umt5-xxl/spiece.model", 4_548_313),
        file("google/umt5-xxl/tokenizer.json", 16_837_417),
        file("google/umt5-xxl/tokenizer_config.json", 61_728),
        file("models_t5_umt5-xxl-enc-bf16.pth", 11_361_920_418),
        file("nohup.out", 1_500_000),
    ];
    let sizes = [
        9_990_000_000,
        9_940_000_000,
        9_940_000_000,
        9_840_000_000,
        9_840_000_000,
        7_600_000_000,
    ];
    for expert in ["high_noise_model", "low_noise_model"] {
        files.push(file(&format!("{expert}/config.json"), 250));
        files.push(file(
            &format!("{expert}/diffusion_pytorch_model.safetensors.index.json"),
            96_805,
        ));
        for (i, size) in sizes.into_iter().enumerate() {
            let name = format!(
                "{expert}/diffusion_pytorch_model-0000{}-of-00006.safetensors",
                i + 1
            );
            files.push(file(&name, size));
        }
    }
    sorted(files)
}

fn diffusers() -> Vec<RemoteFile> {
    let mut files = vec![
        file(".gitattributes", 1_600),
        file("README.md", 24_000),
        file("model_index.json", 500),
        file("scheduler/scheduler_config.json", 750),
        file("text_encoder/config.json", 850),
        file(
            "text_encoder/model-00001-of-00003.safetensors",
            4_935_812_536,
        ),
        file(
            "text_encoder/model-00002-of-00003.safetensors",
            4_983_103_192,
        ),
        file(
            "text_encoder/model-00003-of-00003.safetensors",
            1_442_935_480,
        ),
        file("text_encoder/model.safetensors.index.json", 22_440),
        file("tokenizer/special_tokens_map.json", 6_623),
        file("tokenizer/spiece.model", 4_548_313),
        file("tokenizer/tokenizer.json", 16_837_459),
        file("tokenizer/tokenizer_config.json", 61_758),
        file("vae/config.json", 724),
        file("vae/diffusion_pytorch_model.safetensors", 507_591_892),
    ];
    let middle = [
        4_919_594_456,
        4_919_465_128,
        4_919_594_536,
        4_919_465_224,
        4_919_594_552,
        4_919_465_224,
        4_919_594_552,
        4_919_465_224,
        4_919_594_552,
        4_919_465_224,
    ];
    for expert in ["transformer", "transformer_2"] {
        files.push(file(&format!("{expert}/config.json"), 500));
        files.push(file(
            &format!("{expert}/diffusion_pytorch_model.safetensors.index.json"),
            110_000,
        ));
        let sizes = [4_864_810_208]
            .into_iter()
            .chain(middle)
            .chain([3_095_607_280]);
        for (i, size) in sizes.enumerate() {
            let name = format!(
                "{expert}/diffusion_pytorch_model-{:05}-of-00012.safetensors",
                i + 1
            );
            files.push(file(&name, size));
        }
    }
    sorted(files)
}

fn converted() -> Vec<RemoteFile> {
    sorted(
        [
            ("README.md", 5_000),
            ("config.json", 900),
            ("high_noise_model.safetensors", 8_100_000_000),
            ("low_noise_model.safetensors", 8_100_000_000),
            ("t5_encoder.safetensors", 11_400_000_000),
            ("tokenizer.json", 16_837_417),
            ("vae.safetensors", 507_000_000),
            ("samples/a.mp4", 9_000_000),
        ]
        .map(|(path, size)| file(path, size))
        .to_vec(),
    )
}

fn sorted(mut files: Vec<RemoteFile>) -> Vec<RemoteFile> {
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

fn with(mut files: Vec<RemoteFile>, more: &[&str]) -> Vec<RemoteFile> {
    files.extend(more.iter().map(|path| file(path, 1_000)));
    sorted(files)
}

fn without(files: Vec<RemoteFile>, part: &str) -> Vec<RemoteFile> {
    files
        .into_iter()
        .filter(|file| !file.path.contains(part))
        .collect()
}

fn paths(selection: &Selection) -> Vec<&str> {
    selection
        .files
        .iter()
        .map(|file| file.path.as_str())
        .collect()
}

fn skipped<'a>(files: &'a [RemoteFile], selection: &Selection) -> Vec<&'a str> {
    let left_out = files.iter().filter(|file| !selection.files.contains(file));
    left_out.map(|file| file.path.as_str()).collect()
}

#[test]
fn the_original_repository() {
    let files = original();
    let selection = needed(&files).unwrap();
    assert_eq!(selection.layout, Layout::Original);
    assert!(selection.missing.is_empty());
    assert_eq!(
        skipped(&files, &selection),
        [
            ".gitattributes",
            "README.md",
            "assets/comp_effic.png",
            "assets/logo.png",
            "assets/moe_arch.png",
            "configuration.json",
            "examples/i2v_input.JPG",
            "nohup.out",
        ]
    );
    assert_eq!(selection.bytes() / 1_000_000_000, 126);
    assert_eq!(selection.skipped_bytes, 2_110_149);
}

#[test]
fn the_diffusers_repository() {
    let files = diffusers();
    assert_eq!(files.len(), 43);
    let selection = needed(&files).unwrap();
    assert_eq!(selection.layout, Layout::Diffusers);
    assert!(selection.missing.is_empty());
    assert_eq!(skipped(&files, &selection), [".gitattributes", "README.md"]);
    assert_eq!(selection.bytes() / 1_000_000_000, 126);
}

#[test]
fn a_converted_repository() {
    let files = converted();
    let selection = needed(&files).unwrap();
    assert_eq!(selection.layout, Layout::Converted);
    assert!(selection.missing.is_empty());
    assert_eq!(skipped(&files, &selection), ["README.md", "samples/a.mp4"]);

    // The tokenizer comes from elsewhere; an expert does not.
    let files = without(without(files, "tokenizer"), "low_noise");
    assert_eq!(needed(&files).unwrap().missing, ["low_noise_model"]);

    let sharded = with(
        without(converted(), "high_noise"),
        &[
            "high_noise_model-00001-of-00002.safetensors",
            "high_noise_model-00002-of-00002.safetensors",
            "high_noise_model.safetensors.index.json",
        ],
    );
    assert_eq!(needed(&sharded).unwrap().files.len(), converted().len());
    let error = needed(&without(sharded, "00002-of"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("high_noise_model has 1 of 2 shards; number 2"),
        "{error}"
    );
}

#[test]
fn duplicates_are_left_out() {
    let duplicates = [
        "transformer/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
        "transformer/diffusion_pytorch_model.fp16-00002-of-00002.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.fp16.json",
        "transformer/diffusion_pytorch_model.bin",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/pytorch_model.bin",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "transformer/diffusion_pytorch_model.safetensors",
        "image_encoder/model.safetensors",
        "tokenizer/test.txt",
    ];
    let plain = needed(&diffusers()).unwrap();
    let selection = needed(&with(diffusers(), &duplicates)).unwrap();
    assert_eq!(paths(&selection), paths(&plain));
    assert_eq!(selection.skipped_bytes, plain.skipped_bytes + 10_000);

    let plain = needed(&original()).unwrap();
    let bf16 = "high_noise_model/diffusion_pytorch_model-00001-of-00001-bf16.safetensors";
    let selection = needed(&with(
        original(),
        &[bf16, "Wan2.1_VAE.safetensors", "other.pth"],
    ))
    .unwrap();
    assert_eq!(paths(&selection), paths(&plain));
}

#[test]
fn variants_do_where_there_is_nothing_else() {
    let mut files = original();
    for file in &mut files {
        file.path = file.path.replace("-of-00006.safe", "-of-00006-bf16.safe");
    }
    let selection = needed(&files).unwrap();
    assert_eq!(
        selection.files.len(),
        needed(&original()).unwrap().files.len()
    );

    let one = with(
        without(diffusers(), "vae/diff"),
        &["vae/diffusion_pytorch_model.fp16.safetensors"],
    );
    assert!(
        paths(&needed(&one).unwrap()).contains(&"vae/diffusion_pytorch_model.fp16.safetensors")
    );
    let two = with(one, &["vae/diffusion_pytorch_model.bf16.safetensors"]);
    let error = needed(&two).unwrap_err().to_string();
    assert!(
        error.contains("vae/ holds several sets of weights"),
        "{error}"
    );
    assert!(
        error.contains("diffusion_pytorch_model.bf16, diffusion_pytorch_model.fp16"),
        "{error}"
    );
}

#[test]
fn what_is_not_there_is_told() {
    let error = needed(&without(
        diffusers(),
        "transformer_2/diffusion_pytorch_model-00007",
    ));
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("transformer_2/diffusion_pytorch_model has 11 of 12 shards"),
        "{error}"
    );
    assert!(error.contains("number 7 is not there"), "{error}");

    let parts = without(
        without(without(diffusers(), "transformer_2/"), "tokenizer/"),
        "vae/diff",
    );
    assert_eq!(needed(&parts).unwrap().missing, ["vae", "tokenizer"]);
    let parts = without(without(original(), "low_noise"), "umt5");
    let missing = [
        "low_noise_model",
        "models_t5_umt5-xxl-enc-bf16.pth",
        "google/umt5-xxl",
    ];
    assert_eq!(needed(&parts).unwrap().missing, missing);
}

#[test]
fn hostile_numbers() {
    let huge = with(
        Vec::new(),
        &["model_index.json", "vae/model-00001-of-99999.safetensors"],
    );
    assert!(
        needed(&huge)
            .unwrap_err()
            .to_string()
            .contains("1 of 99999")
    );
    let zero = with(
        Vec::new(),
        &["model_index.json", "vae/model-00001-of-00000.safetensors"],
    );
    assert!(needed(&zero).is_err());
    for odd in [
        "-of-",
        "x-of-00001",
        "a-0000é-of-00001",
        "a-00001-of-é0001",
        "a-00001-of-000",
    ] {
        let files = with(
            Vec::new(),
            &["model_index.json", &format!("vae/{odd}.safetensors")],
        );
        assert_eq!(needed(&files).unwrap().files.len(), 2, "{odd}");
    }
    let mut files = diffusers();
    files[0].size = u64::MAX;
    files[1].size = u64::MAX;
    assert_eq!(needed(&files).unwrap().layout, Layout::Diffusers);
}

#[test]
fn collections_are_to_be_chosen_from() {
    let comfy = with(
        Vec::new(),
        &[
            "README.md",
            "split_files/diffusion_models/wan2.2_i2v_high_noise_14B_fp16.safetensors",
            "split_files/diffusion_models/wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors",
            "split_files/vae/wan_2.1_vae.safetensors",
        ],
    );
    let error = needed(&comfy).unwrap_err().to_string();
    assert!(error.contains("name the files that are wanted"), "{error}");
    assert!(
        error.contains("\n  split_files/vae/wan_2.1_vae.safetensors (1.00 kB)"),
        "{error}"
    );
    assert!(!error.contains("README"), "{error}");
    let gguf: Vec<_> = (0..50)
        .map(|i| file(&format!("HighNoise/{i}.gguf"), 1))
        .collect();
    let error = needed(&gguf).unwrap_err().to_string();
    assert!(error.ends_with("and 10 more"), "{error}");
    assert!(needed(&[]).unwrap_err().to_string().contains("no weights"));
    // One model of another kind.
    let other = with(Vec::new(), &["config.json", "model.safetensors"]);
    assert!(
        needed(&other)
            .unwrap_err()
            .to_string()
            .contains("model.safetensors")
    );

    let pick = |names: &[&str]| {
        named(
            &comfy,
            &names.iter().map(ToString::to_string).collect::<Vec<_>>(),
        )
    };
    let vae = "split_files/vae/wan_2.1_vae.safetensors";
    let selection = pick(&[vae, vae]).unwrap();
    assert_eq!(
        (paths(&selection), selection.skipped_bytes),
        (vec![vae], 3_000)
    );
    assert_eq!(
        pick(&["split_files/diffusion_models"]).unwrap().files.len(),
        2
    );
    let error = pick(&["split_files/vae/wan2.1_vae.safetensors"])
        .unwrap_err()
        .to_string();
    assert!(error.contains(&format!("nearest: {vae}")), "{error}");
    assert!(pick(&[]).is_err() && pick(&["split"]).is_err() && pick(&[""]).is_err());
}

/// What systems leave in folders is uploaded too.
#[test]
fn litter() {
    let litter = [
        "high_noise_model/._diffusion_pytorch_model-00001-of-00006.safetensors",
        "high_noise_model/.DS_Store",
        "._Wan2.1_VAE.pth",
    ];
    let selection = needed(&with(original(), &litter)).unwrap();
    assert_eq!(paths(&selection), paths(&needed(&original()).unwrap()));
}

/// Models with one transformer: Wan2.1 I2V's and Wan2.2 TI2V-5B's repositories, by Wan-AI and for diffusers.
#[test]
fn one_transformer() {
    let rest = [
        "models_t5_umt5-xxl-enc-bf16.pth",
        "google/umt5-xxl/tokenizer.json",
        "config.json",
        "diffusion_pytorch_model.safetensors.index.json",
    ];
    let shards = (1..=3).map(|n| format!("diffusion_pytorch_model-0000{n}-of-00003.safetensors"));
    let shards: Vec<String> = shards.collect();
    let clip = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth";
    for special in [
        &["Wan2.1_VAE.pth", clip, "xlm-roberta-large/tokenizer.json"][..],
        &["Wan2.2_VAE.pth"],
    ] {
        let names: Vec<&str> = shards.iter().map(String::as_str).chain(rest).collect();
        let files = with(with(Vec::new(), &names), special);
        let selection = needed(&files).unwrap();
        assert_eq!(selection.layout, Layout::Original);
        assert_eq!(selection.missing, Vec::<String>::new());
        let chosen = paths(&selection);
        assert!(
            chosen.len() == names.len() + special.len().min(2),
            "{chosen:?}"
        );
        assert!(
            special.iter().take(2).all(|name| chosen.contains(name)),
            "{chosen:?}"
        );
    }
    let one = without(diffusers(), "transformer_2/");
    let image = [
        "image_encoder/config.json",
        "image_encoder/model.safetensors",
    ];
    let selection = needed(&with(one, &image)).unwrap();
    assert_eq!(selection.missing, Vec::<String>::new());
    assert!(image.iter().all(|name| paths(&selection).contains(name)));
}
