//! A tensor that is missing, misnamed, misshapen or damaged is reported by the name that the
//! layout itself has for it.

use std::fs;

use wan_i2v::runtime::Device;
use wan_i2v::weights::container::encoding::Encoding;
use wan_i2v::weights::convert::Bits;
use wan_i2v::weights::{Checkpoint, Expert, PartName};

use crate::layouts::converted::convert;
use crate::layouts::{BF16, F16, F32, device, folder, open};
use crate::support::assert_holds;
use crate::support::layouts::{Content, Form, Model, Patch, Stored};
use crate::support::mlx;

/// A tensor of each part, by its canonical name.
const TENSORS: [(PartName, &str); 4] = [
    (PartName::HighNoise, "blocks.1.attn2.to_out.0.weight"),
    (PartName::LowNoise, "blocks.0.ffn.net.2.bias"),
    (PartName::Vae, "decoder.mid_block.resnets.0.conv2.bias"),
    (
        PartName::TextEncoder,
        "encoder.block.1.layer.1.DenseReluDense.wi_0.weight",
    ),
];

fn load(checkpoint: &Checkpoint, part: PartName, device: Device) -> anyhow::Result<()> {
    match part {
        PartName::HighNoise => checkpoint.load_expert(Expert::HighNoise, device).map(drop),
        PartName::LowNoise => checkpoint.load_expert(Expert::LowNoise, device).map(drop),
        PartName::Vae => checkpoint.load_vae_decoder(device).map(drop),
        PartName::TextEncoder => checkpoint.load_text_encoder(device).map(drop),
        PartName::ImageEncoder => checkpoint.load_image_encoder(device).map(drop),
        PartName::Transformer => checkpoint.load_expert(Expert::Single, device).map(drop),
    }
}

/// Makes the first value NaN.
fn poison(tensor: &mut Stored) {
    let (at, bytes): (usize, &[u8]) = match tensor.encoding {
        Encoding::F32 => (0, &[0, 0, 0xc0, 0x7f]),
        Encoding::F16 | Encoding::Q8_0 | Encoding::Q4_0 | Encoding::Q4K | Encoding::Q5K => {
            (0, &[0, 0x7e])
        }
        Encoding::Q6K => (208, &[0, 0x7e]),
        Encoding::Bf16 => (0, &[0xc0, 0x7f]),
        Encoding::F8E4M3 => (0, &[0x7f]),
        other => panic!("{other:?} holds no NaN"),
    };
    tensor.bytes[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The other two thirds of a weight that MLX quantized.
fn scales(name: &str) -> String {
    name.replace(".weight", ".scales")
}

fn check(form: Form) {
    let _mlx = mlx();
    let device = device();
    let model = Model::random();
    let (contents, _) = model.in_form(form);
    let (folder, _) = folder(form, &model);
    let root = folder.path();
    let write = |part: PartName, content: &Content| {
        form.write_part(&model.configs[part as usize], content, part, root);
    };
    for (part, canonical) in TENSORS {
        let name = form.name(part, canonical);
        let whole = &contents[part as usize];
        let mut content = whole.clone();
        let tensor = content.remove(&name).unwrap();
        let place = root.join(form.place(part)).display().to_string();
        let refused = |content: &Content, texts: &[&str]| {
            write(part, content);
            let message = format!("{:#}", open(root).unwrap_err());
            assert_holds(&message, &[&place]);
            assert_holds(&message, texts);
        };
        refused(&content, &[&format!("missing: {name} [")]);

        let typo = name.replace("weight", "wieght").replace("bias", "bais");
        content.insert(typo.clone(), tensor.clone());
        let nearest = format!("(nearest name in the file: {typo}");
        refused(&content, &[&format!("missing: {name} ["), &nearest]);
        refused(&content, &[&format!("unexpected: {typo} [")]);

        content = whole.clone();
        let shape = &mut content.get_mut(&name).unwrap().shape;
        let found = match **shape {
            [length] => vec![length / 2, 2],
            [rows, columns] => vec![rows / 2, 2 * columns],
            _ => panic!("{name}: {shape:?}"),
        };
        shape.clone_from(&found);
        refused(&content, &[&format!("{name} has shape {found:?}")]);

        content = whole.clone();
        let quantized = tensor.encoding == Encoding::U32;
        let holder = if quantized {
            scales(&name)
        } else {
            name.clone()
        };
        poison(content.get_mut(&holder).unwrap());
        write(part, &content);
        let error = load(&open(root).unwrap(), part, device).unwrap_err();
        assert_holds(&format!("{error:#}"), &[&place, &name, "not finite"]);

        write(part, whole);
        load(&open(root).unwrap(), part, device).unwrap();
    }
}

#[test]
fn diffusers() {
    check(Form::Diffusers(F32));
    check(Form::Sharded(BF16));
}

#[test]
fn original() {
    check(Form::Original(BF16));
}

#[test]
fn comfy() {
    check(Form::Comfy(F16, "model.diffusion_model."));
}

#[test]
fn fp8_scaled() {
    check(Form::Scaled { newer: false });
}

#[test]
fn mlx_video() {
    check(Form::MlxVideo(BF16));
    check(Form::MlxQuantized { bits: 4, group: 64 });
}

#[test]
fn gguf() {
    check(Form::Gguf(Encoding::Q8_0, Patch::Whole));
    check(Form::Gguf(Encoding::Q6K, Patch::Folded));
}

/// A scale that is not one finite number would change every weight of its layer.
#[test]
fn scales_of_float8() {
    let _mlx = mlx();
    let model = Model::random();
    for newer in [false, true] {
        let form = Form::Scaled { newer };
        let end = if newer {
            "weight_scale"
        } else {
            "scale_weight"
        };
        let name = format!("blocks.0.self_attn.q.{end}");
        let (contents, _) = model.in_form(form);
        let (folder, _) = folder(form, &model);
        let refused = |edit: &dyn Fn(&mut Stored), text: &str| {
            let mut content = contents[0].clone();
            edit(content.get_mut(&name).unwrap());
            form.write_part(
                &model.configs[0],
                &content,
                PartName::HighNoise,
                folder.path(),
            );
            let message = format!("{:#}", open(folder.path()).unwrap_err());
            assert_holds(&message, &[&name, text]);
        };
        refused(&poison, "is NaN");
        refused(
            &|scale| {
                scale.shape = vec![2];
                scale.bytes = [0; 8].into();
            },
            "expected one number",
        );
    }
}

/// A folder of ours: its names, and shards whose index is checked too.
#[test]
fn converted() {
    let _mlx = mlx();
    let (source, _) = folder(Form::Diffusers(F32), &Model::random());
    let folder = convert(source.path(), [Some(Bits::Eight), None, None]);
    let root = folder.path().join("ours");
    let name = "blocks.1.ffn.fc2.weight";
    let index_path = root.join("high_noise_model.safetensors.index.json");
    let index = fs::read_to_string(&index_path).unwrap();
    let json: serde_json::Value = serde_json::from_str(&index).unwrap();
    let shard = root.join(json["weight_map"][name].as_str().unwrap());
    let whole = fs::read(&shard).unwrap();
    // Replaces a text in the shard's header by one of the same length, and in the index.
    let refused = |from: &str, to: &str, parts: &[&str]| {
        assert_eq!(from.len(), to.len());
        let header = String::from_utf8_lossy(&whole[8..]);
        let at = 8 + header.find(from).unwrap();
        let mut bytes = whole.clone();
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        fs::write(&shard, bytes).unwrap();
        let message = format!("{:#}", open(&root).unwrap_err());
        assert_holds(&message, &["ours"]);
        assert_holds(&message, parts);
    };
    let typo = "blocks.1.ffn.fc2.wieght";
    refused(
        name,
        typo,
        &[
            "high_noise_model.safetensors.index.json",
            name,
            "does not hold it",
        ],
    );
    fs::write(&index_path, index.replace(name, typo)).unwrap();
    let nearest = format!("nearest name in the file: {typo}");
    refused(name, typo, &[&format!("missing: {name} ["), &nearest]);
    fs::write(&index_path, index).unwrap();
    refused(
        "[256,64]",
        "[64,256]",
        &["has shape [64, 256]", "no quantization of"],
    );
    fs::write(&shard, whole).unwrap();
    open(&root).unwrap();
}
