//! What a clip's content depends on.

use anyhow::Result;
use sha2::{Digest, Sha256};

use super::Job;
use crate::clip::{Identity, Item, Stage};
use crate::model::MemoryPlan;
use crate::runtime::{Device, Tuning};
use crate::text::clean;
use crate::util::hex::to_hex;
use crate::util::show::Show;
use crate::weights::PartName;
use crate::weights::adapter::Adapter;

impl Job {
    /// Everything that the clip depends on: what another run must have in common with this one to
    /// resume it, and what only the file depends on. The clip's format and its place are not of it.
    ///
    /// # Errors
    /// When the model's files cannot be read any more.
    pub fn identity(&self, device: Device, memory: &MemoryPlan) -> Result<Identity> {
        use Stage::{Decode, Denoise, File, Image, Text};
        let Self {
            request,
            checkpoint,
            picture,
            last,
            prompts,
            settings,
            ..
        } = self;
        let tokens = format!("{:?}", [Some(&prompts.prompt), prompts.negative.as_ref()]);
        let tokens = to_hex(&Sha256::digest(tokens));
        let computing = [Text, Image, Denoise, Decode];
        let mut items = vec![
            Item::new(
                "the picture",
                &[Image],
                picture
                    .as_ref()
                    .map_or("none", |picture| picture.pixel_hash()),
            ),
            Item::new("--prompt", &[Denoise], clean(&request.prompt)),
            Item::new(
                "--negative-prompt",
                &[Denoise],
                clean(&settings.negative_prompt),
            ),
            Item::new("the prompts' tokens", &[Denoise], tokens),
        ];
        items.extend(settings.items());
        items.extend([
            Item::new("--device", &computing, device.kind),
            Item::new("--dtype", &computing, device.dtype),
            Item::new("--no-metadata", &[File], !request.metadata),
        ]);
        if !settings.cache.polynomial.is_empty() {
            let polynomial = format!("{:?}", settings.cache.polynomial);
            items.push(Item::new("TeaCache's polynomial", &[Denoise], polynomial));
        }
        // What a device takes by itself goes with the dtype and the tuning.
        if device.dense_above != device.own_dense_above() {
            items.push(Item::new(
                "--dense-above",
                &[Text, Denoise],
                device.dense_above,
            ));
        }
        if device.tuning != Tuning::NONE {
            items.push(Item::tuning(&device.tuning));
        }
        if let Some(last) = last {
            items.push(Item::new("the last picture", &[Image], last.pixel_hash()));
        }
        for &name in checkpoint.part_names() {
            let stages: &[Stage] = match name {
                PartName::TextEncoder => &[Text],
                PartName::Vae => &[Image, Decode],
                PartName::ImageEncoder => &[Image],
                PartName::HighNoise | PartName::LowNoise | PartName::Transformer => &[Denoise],
            };
            let part = checkpoint.part_fingerprint(name)?;
            items.push(Item::new(format!("the {name}"), stages, part));
            let bits = checkpoint.loading().of(name);
            let bits = bits.map_or("as stored".to_owned(), |scheme| scheme.to_string());
            items.push(Item::new(format!("bits of the {name}"), stages, bits));
        }
        for &(expert, _) in &checkpoint.experts {
            let adapters = checkpoint.adapters().of(expert);
            if !adapters.is_empty() {
                let merged = if checkpoint.loading().merges {
                    ", merged"
                } else {
                    ""
                };
                let name = format!("--lora of the {}", expert.in_words());
                let all = |of: &dyn Fn(&Adapter) -> String| {
                    let all: Vec<String> = adapters.iter().map(of).collect();
                    all.join(", ") + merged
                };
                let value = all(&|one| format!("{} x {}", one.fingerprint(), one.strength()));
                // A hash is no name, and a file of the same name may be another.
                let shown = all(&|one| {
                    let hash: String = one.fingerprint().chars().take(12).collect();
                    format!("{} ({hash}) x {}", one.file_name().shown(), one.strength())
                });
                items.push(Item {
                    shown: Some(shown),
                    ..Item::new(name, &[Denoise], value)
                });
            }
        }
        let boundary = checkpoint.boundary_timestep;
        items.push(Item::new(
            "the boundary between the experts",
            &[Denoise],
            boundary,
        ));
        // Not the memory that it was fitted to, which may differ from run to run, but the choices that
        // followed: sums of other parts round otherwise.
        let encoding = format!("{:?}", memory.encode_tiling);
        let decoding = format!("{:?}", memory.decode_tiling);
        for (name, stages, choice) in [
            (
                "joint passes",
                &[Denoise] as &[Stage],
                memory.joint_passes.to_string(),
            ),
            (
                "a shared start of passes",
                &[Denoise],
                memory.shared_start.to_string(),
            ),
            ("rows at once", &[Denoise], memory.chunk_rows.to_string()),
            (
                "bytes of scores at once",
                &[Image, Denoise, Decode],
                memory.score_bytes.to_string(),
            ),
            ("tiles of the VAE's encoder", &[Image], encoding),
            ("tiles of the VAE's decoder", &[Decode], decoding),
        ] {
            let item = Item::new(format!("{name} (--memory-budget)"), stages, choice);
            items.push(Item {
                by_budget: true,
                ..item
            });
        }
        Ok(items.into())
    }
}
