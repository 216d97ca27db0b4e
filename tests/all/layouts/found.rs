//! What people have on their disks: what systems leave in folders, unfinished downloads, other models,
//! and forms of other programs.

use std::fs;
use std::path::{Path, PathBuf};

use wan_i2v::model::TensorSpec;
use wan_i2v::model::vae::VaeConfig;
use wan_i2v::weights::config::PartConfig;
use wan_i2v::weights::container::encoding::Encoding;
use wan_i2v::weights::naming::{Detected, Kind, Naming};
use wan_i2v::weights::{Checkpoint, Loading, PartName, Sources, published};

use crate::layouts::{BF16, F16, F32, assert_identical, damaged, folder, open, run_folder};
use crate::support::containers::{safetensors, torch};
use crate::support::folders::TOKENIZER;
use crate::support::isolated::program;
use crate::support::layouts::{Content, Form, Model, Stored, decode, encode, stored};
use crate::support::{TINY, assert_holds, mlx};

const COMFY: Form = Form::Comfy(F16, "");

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let below = |path: PathBuf| match path.is_dir() {
        true => files(&path),
        false => vec![path],
    };
    entries.flat_map(below).collect()
}

/// What a command says that fails with 1.
#[track_caller]
fn refusal(arguments: &[&str], path: &Path) -> String {
    let mut command = program();
    let output = command.args(arguments).arg(path).output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert_eq!(output.status.code(), Some(1), "{text:?}");
    text.concat()
}

/// macOS' companions of every file on drives of other systems are nobody's files.
#[test]
fn what_systems_leave_in_folders_is_ignored() {
    let _mlx = mlx();
    for form in [Form::Sharded(F32), Form::Original(BF16), COMFY] {
        let (folder, _) = folder(form, &Model::random());
        let plain = run_folder(folder.path());
        let mut companion = b"\0\x05\x16\x07\0\x02\0\0Mac OS X        ".to_vec();
        companion.resize(4096, 0);
        for file in files(folder.path()) {
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            fs::write(file.with_file_name(format!("._{name}")), &companion).unwrap();
            fs::write(file.with_file_name(".DS_Store"), "\0\0\0\x01Bud1").unwrap();
            fs::write(file.with_file_name("Thumbs.db"), "").unwrap();
        }
        assert_identical(&run_folder(folder.path()), &plain, "with companions");
        let mut convert = program();
        let target = folder.path().join("converted");
        convert.arg("convert").arg(folder.path()).arg(&target);
        assert!(convert.output().unwrap().status.success());
        assert!(
            files(&target)
                .iter()
                .all(|file| !file.to_string_lossy().contains("._"))
        );
    }
    let alone = tempfile::tempdir().unwrap();
    let path = alone.path().join("._high.safetensors");
    fs::write(&path, b"\0\x05\x16\x07\0\x02\0\0Mac OS X        ").unwrap();
    assert_holds(
        &refusal(&["inspect"], &path),
        &["AppleDouble", "\nhint: name the file"],
    );
}

/// A download into a file of full length that did not end.
#[test]
fn weights_that_have_not_come_are_refused_by_name() {
    let _mlx = mlx();
    for part in PartName::WITH_EXPERTS {
        let (folder, _) = folder(COMFY, &Model::random());
        let path = folder.path().join(COMFY.place(part));
        let mut bytes = fs::read(&path).unwrap();
        let half = bytes.len() * 3 / 4;
        bytes[half..].fill(0);
        // ComfyUI's text encoder has its tokenizer last; then nothing is left to tell the rest by.
        fs::write(&path, bytes).unwrap();
        let beside = path.with_extension("safetensors.aria2");
        fs::write(beside, "").unwrap();
        fs::write(folder.path().join("tokenizer.json"), TOKENIZER).unwrap();
        let name = COMFY.place(part);
        let said: [&str; 3] = [&name, "is all zeros", "safetensors.aria2 lies beside it"];
        let tokenizer = folder.path().join("tokenizer.json");
        let tokenizer = tokenizer.to_str().unwrap();
        assert_holds(&refusal(&["inspect"], folder.path()), &said);
        let arguments = ["doctor", "--quick", "--tokenizer", tokenizer, "--model"];
        assert_holds(&refusal(&arguments, folder.path()), &said);
        let target = folder.path().join("converted");
        let source = folder.path().to_str().unwrap();
        assert_holds(&refusal(&["convert", source], &target), &said);
        assert!(!target.exists());
        let picture = folder.path().join("start.png");
        image::RgbImage::new(32, 32).save(&picture).unwrap();
        let (picture, output) = (picture.to_str().unwrap(), folder.path().join("clip.mp4"));
        #[rustfmt::skip]
        let arguments = [
            "--model", source, "--tokenizer", tokenizer, "--image", picture, "--prompt", "a", "--output",
        ];
        let message = refusal(&arguments, &output);
        assert_holds(&message, &said);
        assert!(!message.contains("encoding"), "{message}");
    }
}

/// Zeros that the file says are meant, as measurements have them.
#[test]
fn zeros_that_are_meant_are_taken() {
    let _mlx = mlx();
    let (folder, _) = folder(COMFY, &Model::random());
    let path = folder.path().join(COMFY.place(PartName::Vae));
    let bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&bytes[8..8 + length]).unwrap();
    let meant = format!(
        "{{\"__metadata__\":{{\"wan_i2v_zeros\":\"measured\"}},{}",
        &header[1..]
    );
    let zeros = vec![0; bytes.len() - 8 - length];
    let file = [
        &(meant.len() as u64).to_le_bytes(),
        meant.as_bytes(),
        &zeros,
    ]
    .concat();
    fs::write(&path, file).unwrap();
    open(folder.path()).unwrap().check_filled().unwrap();
}

/// As ModelTC/LightX2V writes experts: e4m3 with a scale for each row, which is a column or not. The values
/// that this stands for are returned.
pub fn scale_rows(content: &mut Content, column: bool) -> Content {
    let mut plain = content.clone();
    let linear = |name: &String, tensor: &Stored| {
        let of_block = ["attn.", ".ffn."].iter().any(|part| name.contains(part));
        of_block && name.ends_with(".weight") && tensor.shape.len() == 2
    };
    let names = content.iter().filter(|(name, tensor)| linear(name, tensor));
    let names: Vec<String> = names.map(|(name, _)| name.clone()).collect();
    assert_eq!(names.len(), 20);
    for name in names {
        let weight = content.remove(&name).unwrap();
        let values = decode(weight.encoding, &weight.bytes);
        let (mut bytes, mut scales, mut meant) = (Vec::new(), Vec::new(), Vec::new());
        for row in values.chunks(weight.shape[1]) {
            let scale = row.iter().fold(1e-5_f32, |most, v| most.max(v.abs())) / 448.0;
            let small: Vec<f32> = row.iter().map(|value| value / scale).collect();
            let encoded = encode(Encoding::F8E4M3, &small);
            let decoded = decode(Encoding::F8E4M3, &encoded);
            meant.extend(decoded.into_iter().map(|value| value * scale));
            bytes.extend(encoded);
            scales.push(scale);
        }
        let shape = match column {
            true => vec![weight.shape[0], 1],
            false => vec![weight.shape[0]],
        };
        let scale = name.replace(".weight", ".weight_scale");
        content.insert(scale, stored(F32, &shape, &scales));
        plain.insert(name.clone(), stored(F32, &weight.shape, &meant));
        let encoding = Encoding::F8E4M3;
        let small = Stored {
            encoding,
            bytes,
            ..weight
        };
        content.insert(name, small);
    }
    plain
}

#[test]
fn float8_with_a_scale_for_each_row() {
    let _mlx = mlx();
    let (mut rows, _) = Model::random().in_form(COMFY);
    let mut plain = rows.clone();
    for (expert, column) in [(0, true), (1, false)] {
        plain[expert] = scale_rows(&mut rows[expert], column);
    }
    let model = Model::random();
    let write = |contents: &[Content; 4]| {
        let folder = tempfile::tempdir().unwrap();
        COMFY.write(&model, contents, folder.path());
        folder
    };
    let (rows_folder, plain_folder) = (write(&rows), write(&plain));
    assert_identical(
        &run_folder(rows_folder.path()),
        &run_folder(plain_folder.path()),
        "a scale for each row",
    );
    // What is wrong with a scale is said of the scale, and its weight is not unexpected.
    let scale = "blocks.0.ffn.0.weight_scale".to_owned();
    rows[0].insert(scale, stored(F32, &[256, 2], &[1.0; 512]));
    let message = refusal(&["inspect"], write(&rows).path());
    assert_holds(
        &message,
        &["has the scale blocks.0.ffn.0.weight_scale, f32 of shape [256, 2]"],
    );
    assert!(!message.contains("unexpected"), "{message}");
}

/// A tensor of ones.
fn ones(shape: &[usize]) -> Stored {
    stored(F16, shape, &vec![1.0; shape.iter().product()])
}

/// The expert of another model, by what it has more.
type More = fn(&mut Content);

const OTHERS: [(&str, More); 5] = [
    ("Fun-Control", |t| {
        channels(t, 52);
        t.insert("ref_conv.weight".into(), ones(&[256, 16, 2, 2]));
    }),
    ("Wan VACE", |t| add(t, "vace_blocks.0.before_proj.weight")),
    ("Wan2.2 Animate", |t| {
        add(t, "face_adapter.fuser_blocks.0.linear1_kv.weight")
    }),
    ("S2V", |t| add(t, "casual_audio_encoder.weights")),
    ("TurboDiffusion", |t| {
        add(t, "blocks.0._checkpoint_wrapped_module.ffn.0.int8_weight")
    }),
];

fn add(content: &mut Content, name: &str) {
    content.insert(name.into(), ones(&[4, 4]));
}

fn channels(content: &mut Content, channels: usize) {
    let weight = ones(&[256, channels, 1, 2, 2]);
    content.insert("patch_embedding.weight".into(), weight);
}

/// Inspect, convert and a run say the same of the experts of other models.
#[test]
fn experts_of_other_models_are_named() {
    let _mlx = mlx();
    for (what, more) in OTHERS {
        let folder = damaged(COMFY, &Model::random(), |contents| more(&mut contents[0]));
        let path = folder.path().join(COMFY.place(PartName::HighNoise));
        let hint = "\nhint: take Wan-AI/Wan2.2-I2V-A14B";
        // An adapter is described, and no model's part all the same.
        if what != "a LoRA" {
            assert_holds(&refusal(&["inspect"], &path), &[what]);
        }
        assert_holds(&refusal(&["inspect"], folder.path()), &[what]);
        let source = path.to_str().unwrap();
        let target = folder.path().join("converted");
        assert_holds(&refusal(&["convert", source], &target), &[what, hint]);
        let error = format!("{:#}", open(folder.path()).unwrap_err());
        assert!(
            error.contains(what) || error.contains("passed over"),
            "{error}"
        );
    }
}

/// A repository of another model, whose one expert has no name, is called what it is.
#[test]
fn repositories_of_other_models_are_named() {
    let _mlx = mlx();
    for (what, more) in OTHERS {
        let form = Form::Original(BF16);
        let (folder, _) = folder(form, &Model::random());
        for expert in ["high_noise_model", "low_noise_model"] {
            fs::remove_dir_all(folder.path().join(expert)).unwrap();
        }
        let (mut contents, _) = Model::random().in_form(COMFY);
        more(&mut contents[0]);
        let file = "diffusion_pytorch_model.safetensors";
        safetensors(&folder.path().join(file), &contents[0]);
        for arguments in [&["inspect"][..], &["plan", "--model"]] {
            let message = refusal(arguments, folder.path());
            assert_holds(&message, &[what, "\nhint: take Wan-AI/Wan2.2-I2V-A14B"]);
            assert!(!message.contains("download it too"), "{message}");
        }
    }
}

#[test]
fn what_is_no_part_and_what_is_in_another_form_is_named() {
    let _mlx = mlx();
    let quantized = |end: &str, encoding: Encoding| {
        let (mut contents, _) = Model::random().in_form(COMFY);
        let bytes = vec![1; 16 * encoding.block_bytes()];
        let shape = vec![4, 4];
        let name = format!("blocks.0.ffn.0.{end}");
        contents[0].insert(
            name,
            Stored {
                encoding,
                shape,
                bytes,
            },
        );
        contents[0].clone()
    };
    let named = |names: &[&str]| {
        names
            .iter()
            .map(|name| ((*name).to_owned(), ones(&[4, 4])))
            .collect()
    };
    let folder = tempfile::tempdir().unwrap();
    let form = "\nhint: take the model in fp16";
    let files: [(Content, &str, &str); 13] = [
        (
            quantized("weight._data._data", Encoding::U8),
            "quanto",
            form,
        ),
        (quantized("weight.absmax", F32), "bitsandbytes", form),
        (quantized("SCB", F32), "bitsandbytes to int8", form),
        (
            quantized("weight_packed", Encoding::U8),
            "compressed-tensors",
            form,
        ),
        (quantized("_weight_qdata", Encoding::I8), "torchao", form),
        (
            named(&["diffusion_model.blocks.0.self_attn.q.lora_down.weight"]),
            "a LoRA",
            "hint: give it with --lora",
        ),
        (
            named(&["vision_model.encoder.layers.0.q.weight"]),
            "a vision encoder, but not CLIP ViT-H/14's",
            "take clip_vision_h.safetensors",
        ),
        (
            named(&["visual.transformer.resblocks.0.attn.in_proj_weight"]),
            "a vision encoder, but not CLIP ViT-H/14's",
            "take clip_vision_h.safetensors",
        ),
        (
            named(&["decoder.1.weight", "encoder.0.weight"]),
            "tiny autoencoder",
            "taew2_1 or the VAE of Wan2.1",
        ),
        (
            named(&[
                "decoder.0.weight",
                "decoder.7.conv.weight",
                "encoder.0.weight",
            ]),
            "taew2_2_super",
            "taew2_2",
        ),
        (
            named(&["double_blocks.0.img_attn.qkv.weight"]),
            "Flux",
            "A14B",
        ),
        (
            named(&["model.diffusion_model.input_blocks.0.0.weight"]),
            "SDXL",
            "A14B",
        ),
        (
            named(&[
                "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                "encoder.block.1.layer.0.SelfAttention.q.weight",
            ]),
            "a T5 text encoder (of Flux or SD3), not UMT5",
            "umt5_xxl",
        ),
    ];
    for (content, what, hint) in files {
        let path = folder.path().join("high_noise.safetensors");
        safetensors(&path, &content);
        // An adapter is described, and no model's part all the same.
        if what != "a LoRA" {
            assert_holds(&refusal(&["inspect"], &path), &[what]);
        }
        let target = folder.path().join("converted");
        let source = path.to_str().unwrap();
        assert_holds(&refusal(&["convert", source], &target), &[what, hint]);
    }
}

/// A clone without git-lfs, and pages saved under a model's name.
#[test]
fn what_stands_in_a_models_place_is_named() {
    let _mlx = mlx();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:cd\nsize 9890000000\n";
    for form in [Form::Sharded(BF16), Form::Original(BF16), COMFY] {
        let (folder, _) = folder(form, &Model::random());
        for file in files(folder.path()) {
            let end = file.extension().unwrap_or_default();
            if end == "safetensors" || end == "pth" {
                fs::write(file, pointer).unwrap();
            }
        }
        let message = refusal(&["inspect"], folder.path());
        assert_holds(
            &message,
            &[
                "a Git LFS pointer of a file of 9890000000 bytes",
                "git lfs pull",
            ],
        );
        let error = format!("{:#}", open(folder.path()).unwrap_err());
        assert_holds(&error, &["a Git LFS pointer"]);
    }
    let (folder, _) = folder(Form::Original(BF16), &Model::random());
    fs::write(
        folder.path().join("google/umt5-xxl/tokenizer.json"),
        pointer,
    )
    .unwrap();
    let error = open(folder.path()).unwrap().load_tokenizer().err().unwrap();
    assert_holds(
        &format!("{error:#}"),
        &["tokenizer.json", "a Git LFS pointer"],
    );
}

/// A whole VAE of Wan2.2 TI2V-5B's kind under its original names.
fn wan22_vae() -> Content {
    let names = Detected {
        residual: true,
        ..Detected::plain(Kind::Vae, Naming::Original)
    };
    let config = VaeConfig {
        base_dim: 4,
        decoder_base_dim: Some(6),
        ..published::wan22_vae()
    };
    let specs = PartConfig::Vae(config).specs().unwrap();
    let tensor = |spec: TensorSpec| {
        let shape: Vec<usize> = spec.shape.iter().map(|&side| side as usize).collect();
        (names.name(&spec.name).unwrap(), ones(&shape))
    };
    specs.into_iter().map(tensor).collect()
}

/// Candidates that cannot work by shape or kind are no rivals of those that can.
#[test]
fn what_cannot_work_is_passed_over() {
    let _mlx = mlx();
    let (folder, _) = folder(COMFY, &Model::random());
    let expected = run_folder(folder.path());
    let (mut contents, _) = Model::random().in_form(COMFY);
    channels(&mut contents[0], 16);
    let put = |name: &str, content: &Content| safetensors(&folder.path().join(name), content);
    put(
        "diffusion_models/wan2.2_t2v_high_noise_14B.safetensors",
        &contents[0],
    );
    contents[2].insert("conv2.bias".into(), ones(&[47]));
    put("vae/other_vae.safetensors", &contents[2]);
    put("vae/wan2.2_vae.safetensors", &wan22_vae());
    contents[3]
        .retain(|name, _| !name.contains("block.1.layer.0.SelfAttention.relative_attention_bias"));
    contents[3].remove("spiece_model");
    put("text_encoders/t5xxl_fp16.safetensors", &contents[3]);
    assert_identical(
        &run_folder(folder.path()),
        &expected,
        "beside what cannot work",
    );
}

/// Endings of other tools, and shards whose index was not downloaded.
#[test]
fn other_endings_and_shards_without_an_index() {
    let _mlx = mlx();
    let (folder, _) = folder(COMFY, &Model::random());
    let expected = run_folder(folder.path());
    let rename = |from: &str, to: &str| {
        fs::rename(folder.path().join(from), folder.path().join(to)).unwrap();
    };
    rename(&COMFY.place(PartName::HighNoise), "HIGH_NOISE.SAFETENSORS");
    rename(&COMFY.place(PartName::TextEncoder), "umt5_xxl.sft");
    let (contents, _) = Model::random().in_form(COMFY);
    fs::remove_file(folder.path().join(COMFY.place(PartName::Vae))).unwrap();
    torch(&folder.path().join("vae/pytorch_model.bin"), &contents[2]);
    let low = COMFY.place(PartName::LowNoise);
    fs::remove_file(folder.path().join(low)).unwrap();
    let shard = |n: usize| {
        let name = format!("low-{n:05}-of-00002.safetensors");
        folder.path().join("diffusion_models").join(name)
    };
    for n in [1, 2] {
        let half = contents[1].iter().skip(n - 1).step_by(2);
        let half: Content = half
            .map(|(name, tensor)| (name.clone(), tensor.clone()))
            .collect();
        safetensors(&shard(n), &half);
    }
    assert_identical(&run_folder(folder.path()), &expected, "other endings");
    let alone = wan_i2v::weights::layout::Layout::of_path(&shard(2), None).unwrap();
    assert_eq!(alone.part(PartName::LowNoise).unwrap().names.len(), 2);
    fs::remove_file(shard(1)).unwrap();
    let error = format!("{:#}", open(folder.path()).unwrap_err());
    assert_holds(&error, &["low-00001-of-00002.safetensors: not found"]);
}

/// As lpalbou/mlx-gen saves experts: diffusers' names but for two, the patch embedding's input
/// channels last, shards `0.safetensors` and so on with an index, and no configuration.
#[test]
fn mlx_gen() {
    let _mlx = mlx();
    let (folder, _) = folder(Form::Diffusers(BF16), &Model::random());
    let expected = run_folder(folder.path());
    let (contents, _) = Model::random().in_form(Form::Diffusers(BF16));
    for (part, place) in ["transformer", "transformer_2"].into_iter().enumerate() {
        let root = folder.path().join(place);
        fs::remove_dir_all(&root).unwrap();
        fs::create_dir(&root).unwrap();
        let mut halves = [Content::new(), Content::new()];
        let mut map = serde_json::Map::new();
        for (i, (name, tensor)) in contents[part].iter().enumerate() {
            let mut tensor = tensor.clone();
            if name == "patch_embedding.weight" {
                let [outputs, inputs, _, rows, columns] = tensor.shape[..] else {
                    panic!("{:?}", tensor.shape);
                };
                let values = decode(BF16, &tensor.bytes);
                let area = rows * columns;
                let last = (0..values.len()).map(|at| {
                    let (output, at) = (at / (inputs * area), at % (inputs * area));
                    let (pixel, input) = (at / inputs, at % inputs);
                    values[(output * inputs + input) * area + pixel]
                });
                let last: Vec<f32> = last.collect();
                tensor = stored(BF16, &[outputs, 1, rows, columns, inputs], &last);
            }
            let name = name.replace(".ffn.net.0.proj.", ".ffn.net.0.");
            let name = name.replace(".ffn.net.2.", ".ffn.net.1.");
            map.insert(name.clone(), format!("{}.safetensors", i % 2).into());
            halves[i % 2].insert(name, tensor);
        }
        for (i, half) in halves.iter().enumerate() {
            safetensors(&root.join(format!("{i}.safetensors")), half);
        }
        let index = serde_json::json!({ "metadata": {}, "weight_map": map });
        let name = "model.safetensors.index.json";
        fs::write(root.join(name), index.to_string()).unwrap();
    }
    assert_identical(&run_folder(folder.path()), &expected, "mlx-gen");
}

/// Experts that are named the other way round, and a tokenizer that is too small for the text encoder.
#[test]
fn what_seems_to_be_mixed_up_is_warned_of() {
    let _mlx = mlx();
    let (folder, _) = folder(Form::Original(BF16), &Model::random());
    let checkpoint = open(folder.path()).unwrap();
    checkpoint.load_tokenizer().unwrap();
    assert_eq!(checkpoint.warnings(), Vec::<String>::new());
    let tokenizer = Path::new(TINY).join("tokenizer/tokenizer.json");
    fs::copy(
        tokenizer,
        folder.path().join("google/umt5-xxl/tokenizer.json"),
    )
    .unwrap();
    let mut sources = Sources::folder(folder.path());
    let [high, low] = ["high_noise_model", "low_noise_model"].map(|name| folder.path().join(name));
    sources.parts[PartName::HighNoise as usize] = Some(low);
    sources.parts[PartName::LowNoise as usize] = Some(high);
    let checkpoint = Checkpoint::open(&sources, Loading::default()).unwrap();
    checkpoint.load_tokenizer().unwrap();
    let warnings = checkpoint.warnings();
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    assert_holds(
        &warnings[0],
        &["low_noise_model is taken as the high-noise expert"],
    );
    assert_holds(&warnings[1], &["its name says high-noise expert"]);
    assert_holds(&warnings[2], &["169 ids and the text encoder 1024"]);
}

/// Experts of text-to-video beside those of image-to-video: the model of which both are there is meant, and
/// each file is called what it is.
#[test]
fn of_several_models_the_whole_one_is_meant() {
    let _mlx = mlx();
    let (folder, _) = folder(COMFY, &Model::random());
    let (mut contents, _) = Model::random().in_form(COMFY);
    contents
        .iter_mut()
        .take(2)
        .for_each(|content| channels(content, 16));
    let path = |expert: &str| {
        let name = format!("diffusion_models/wan2.2_t2v_{expert}_noise_14B.safetensors");
        folder.path().join(name)
    };
    safetensors(&path("high"), &contents[0]);
    let text = refusal(&["inspect"], &path("high"));
    assert_holds(&text, &["Wan2.2 T2V-A14B", "no low-noise expert"]);
    assert_eq!(open(folder.path()).unwrap().family.name, "Wan2.2 I2V-A14B");
    // Two whole models cannot be told apart.
    safetensors(&path("low"), &contents[1]);
    let error = format!("{:#}", open(folder.path()).unwrap_err());
    assert_holds(
        &error,
        &["2 files could be the high-noise expert", "--high PATH"],
    );
    for expert in ["high", "low"] {
        let own = format!("diffusion_models/wan2.2_i2v_{expert}_noise_14B.safetensors");
        fs::remove_file(folder.path().join(own)).unwrap();
    }
    assert_eq!(open(folder.path()).unwrap().family.name, "Wan2.2 T2V-A14B");
}
