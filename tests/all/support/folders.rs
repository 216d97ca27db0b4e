//! Writes the folders that people keep models in.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use wan_i2v::weights::PartName;
use wan_i2v::weights::config::PartConfig;

use super::containers::{gguf, safetensors, shards, torch, write};
use super::layouts::{Content, Form, Model};

pub const TOKENIZER: &[u8] = include_bytes!("../../data/tokenizer/tokenizer.json");

impl Form {
    /// Where a part lies below a model's folder: a file, or a folder of one part.
    pub fn place(self, part: PartName) -> String {
        let high_low = |high: &str, low: &str| match part {
            PartName::HighNoise => high.to_owned(),
            _ => low.to_owned(),
        };
        match (self, part) {
            (Form::Diffusers(_) | Form::Sharded(_), PartName::Vae) => "vae".into(),
            (Form::Diffusers(_) | Form::Sharded(_), PartName::TextEncoder) => "text_encoder".into(),
            (Form::Diffusers(_) | Form::Sharded(_), _) => high_low("transformer", "transformer_2"),
            (Form::Original(_), PartName::Vae) => "Wan2.1_VAE.pth".into(),
            (Form::Original(_), PartName::TextEncoder) => "models_t5_umt5-xxl-enc-bf16.pth".into(),
            (Form::Original(_), _) => high_low("high_noise_model", "low_noise_model"),
            (Form::MlxVideo(_) | Form::MlxQuantized { .. }, PartName::Vae) => {
                "vae.safetensors".into()
            }
            (Form::MlxVideo(_) | Form::MlxQuantized { .. }, PartName::TextEncoder) => {
                "t5_encoder.safetensors".into()
            }
            (Form::MlxVideo(_) | Form::MlxQuantized { .. }, _) => high_low(
                "high_noise_model.safetensors",
                "low_noise_model.safetensors",
            ),
            (_, PartName::Vae) => "vae/wan_2.1_vae.safetensors".into(),
            (Form::Gguf(..), PartName::TextEncoder) => {
                "text_encoders/umt5-xxl-encoder-Q8_0.gguf".into()
            }
            (Form::Gguf(..), _) => high_low(
                "unet/Wan2.2-I2V-A14B-HighNoise-Q4_K_M.gguf",
                "unet/Wan2.2-I2V-A14B-LowNoise-Q4_K_M.gguf",
            ),
            (_, PartName::TextEncoder) => "text_encoders/umt5_xxl.safetensors".into(),
            (_, _) => high_low(
                "diffusion_models/wan2.2_i2v_high_noise_14B.safetensors",
                "diffusion_models/wan2.2_i2v_low_noise_14B.safetensors",
            ),
        }
    }

    /// Writes a model's folder, with the configurations and the tokenizer that the layout has.
    pub fn write(self, model: &Model, contents: &[Content; 4], root: &Path) {
        for part in PartName::WITH_EXPERTS {
            self.write_part(
                &model.configs[part as usize],
                &contents[part as usize],
                part,
                root,
            );
        }
        let tokenizer = match self {
            Form::Diffusers(_) | Form::Sharded(_) => {
                let index =
                    json!({ "_class_name": "WanImageToVideoPipeline", "boundary_ratio": 0.9 });
                write(&root.join("model_index.json"), &index);
                "tokenizer/tokenizer.json"
            }
            Form::Original(_) => "google/umt5-xxl/tokenizer.json",
            _ => return,
        };
        let path = root.join(tokenizer);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, TOKENIZER).unwrap();
    }

    /// Writes one part.
    pub fn write_part(self, config: &PartConfig, content: &Content, part: PartName, root: &Path) {
        let path = root.join(self.place(part));
        let folder = match path.extension() {
            Some(_) => path.parent().unwrap().to_owned(),
            None => path.clone(),
        };
        fs::create_dir_all(&folder).unwrap();
        let stem = match part {
            PartName::TextEncoder => "model",
            _ => "diffusion_pytorch_model",
        };
        match (self, part) {
            (Form::Diffusers(_), _) => {
                safetensors(&folder.join(format!("{stem}.safetensors")), content);
                write(&folder.join("config.json"), &json!(config));
            }
            (Form::Sharded(_), _) => {
                shards(&folder, stem, content);
                write(&folder.join("config.json"), &json!(config));
            }
            (Form::Original(_), PartName::HighNoise | PartName::LowNoise) => {
                shards(&folder, stem, content);
                let mut json = original_config(config);
                json["_class_name"] = "WanModel".into();
                write(&folder.join("config.json"), &json);
            }
            (Form::Original(_), _) => torch(&path, content),
            (Form::MlxVideo(_) | Form::MlxQuantized { .. }, _) => {
                safetensors(&path, content);
                if part == PartName::HighNoise {
                    write(&root.join("config.json"), &self.mlx_config(config));
                }
            }
            (Form::Gguf(..), PartName::Vae) => safetensors(&path, content),
            (Form::Gguf(..), _) => gguf(&path, content, part),
            _ => safetensors(&path, content),
        }
    }

    fn mlx_config(self, config: &PartConfig) -> Value {
        let mut json = original_config(config);
        for (key, value) in [
            ("model_version", json!("2.2")),
            ("patch_size", json!([1, 2, 2])),
            ("text_dim", json!(256)),
            ("boundary", json!(0.9)),
            ("dual_model", json!(true)),
            ("sample_guide_scale", json!([3.5, 3.5])),
            ("t5_dim", json!(256)),
        ] {
            json[key] = value;
        }
        if let Form::MlxQuantized { bits, group } = self {
            json["quantization"] = json!({ "group_size": group, "bits": bits });
        }
        json
    }
}

/// The keys that the original and mlx-video have in common.
fn original_config(config: &PartConfig) -> Value {
    let PartConfig::Expert(c) = config else {
        panic!("only experts have one");
    };
    json!({
        "model_type": "i2v", "dim": c.dim(), "eps": 1e-6, "ffn_dim": c.ffn_dim,
        "freq_dim": c.freq_dim, "in_dim": c.in_channels, "out_dim": c.out_channels,
        "num_heads": c.num_attention_heads, "num_layers": c.num_layers, "text_len": 512,
    })
}
