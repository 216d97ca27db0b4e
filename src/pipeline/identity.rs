//! What a clip's latents depend on.

use anyhow::Result;
use sha2::{Digest, Sha256};

use super::Job;
use crate::clip::Identity;
use crate::model::vae::{choose_decode_tiling, choose_encode_tiling};
use crate::runtime::Backend;
use crate::text::clean;
use crate::util::hex::to_hex;
use crate::weights::PartName;

impl Job {
    /// What another run must have in common with this one to go on from it: whatever the clip's
    /// pixels depend on. The frame rate, the clip's format and its place are not of it.
    ///
    /// # Errors
    /// When the model's files cannot be read any more.
    pub fn identity(&self, backend: Backend) -> Result<Identity> {
        let Self {
            request,
            checkpoint,
            picture,
            last,
            prompts,
            plan,
            ..
        } = self;
        let guided = plan.guide_scale.needs_negative();
        let negative = if guided { &plan.negative_prompt } else { "" };
        let tokens = format!("{:?}", [Some(&prompts.prompt), prompts.negative.as_ref()]);
        let mut identity = Identity::from([
            ("the picture", picture.pixel_hash().to_owned()),
            ("--prompt", clean(&request.prompt)),
            ("--negative-prompt", clean(negative)),
            ("the prompts' tokens", to_hex(&Sha256::digest(tokens))),
            ("--size", format!("{}x{}", plan.width, plan.height)),
            ("--frames", plan.frames.to_string()),
            ("--steps", plan.steps.to_string()),
            ("--solver", plan.solver.to_string()),
            ("--shift", plan.shift.to_string()),
            (
                "--guide-scale",
                format!("{},{}", plan.guide_scale.low, plan.guide_scale.high),
            ),
            (
                "--guide-interval",
                format!("{},{}", plan.guide_interval.start, plan.guide_interval.end),
            ),
            ("--cache", format!("{:?}", plan.cache)),
            ("--resize", format!("{:?}", request.resize)),
            ("--device", backend.device.to_string()),
            ("--dtype", backend.precision.to_string()),
        ]);
        identity.set_seed(plan.seed);
        // What a device takes by itself goes with the dtype.
        let usual = Backend::new(backend.device, Some(backend.precision)).dense_above;
        if backend.dense_above != usual {
            identity.add("--dense-above", backend.dense_above.to_string());
        }
        if let Some(last) = last {
            identity.add("the last picture", last.pixel_hash().to_owned());
        }
        for name in PartName::ALL {
            let part = checkpoint.part_fingerprint(name)?;
            identity.add(format!("the {name}"), part.to_owned());
            let bits = checkpoint.load_bits().of(name);
            let bits = bits.map_or("as stored".to_owned(), |bits| bits.number().to_string());
            identity.add(format!("bits of the {name}"), bits);
        }
        let boundary = checkpoint.boundary_timestep.to_string();
        identity.add("the boundary between the experts", boundary);
        // Not the memory that it was fitted to, which may differ from run to run, but the choices that
        // followed: sums of other parts round otherwise.
        let grid = plan.latent_grid();
        let joint = backend.joins(checkpoint.high.tokens(grid));
        let encoding = choose_encode_tiling(&checkpoint.vae, backend, grid);
        let decoding = choose_decode_tiling(&checkpoint.vae, backend, grid);
        for (what, choice) in [
            ("joint passes", joint.to_string()),
            ("rows at once", backend.chunk_rows.to_string()),
            ("bytes of scores at once", backend.score_bytes.to_string()),
            ("tiles of the VAE's encoder", format!("{encoding:?}")),
            ("tiles of the VAE's decoder", format!("{decoding:?}")),
        ] {
            identity.add(format!("{what} (--memory-budget)"), choice);
        }
        Ok(identity)
    }
}
