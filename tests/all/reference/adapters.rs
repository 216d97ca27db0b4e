//! Adapters in every form that trainers write, against diffusers and PEFT, on case b's experts.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use mlx_rs::Array;
use safetensors::tensor::{Dtype, TensorView};
use serde::Deserialize;
use tempfile::TempDir;
use wan_i2v::clip::{GuideScale, Settings, Switch};
use wan_i2v::model::MemoryPlan;
use wan_i2v::model::dit::Dit;
use wan_i2v::pipeline::{Denoiser, Silent, initial_noise};
use wan_i2v::runtime::to_host;
use wan_i2v::sampling::{Sigmas, Solver};
use wan_i2v::weights::adapter::{Source, Wanted};
use wan_i2v::weights::naming::Kind;
use wan_i2v::weights::part::may_quantize;
use wan_i2v::weights::quantize::Search;
use wan_i2v::weights::{Bits, Checkpoint, Expert, Loading, Sources, quantize};

use super::dit::{encoded_text, hidden, rope};
use super::run::{inputs, plan};
use crate::support::golden::{BOTH, Case, F32, Golden, golden_dir, relative_error};
use crate::support::portable;
use crate::support::scratch::{Tensor, read_tensors, write_tensors};

const EXPERTS: [(&str, Expert); 2] = [("high", Expert::HighNoise), ("low", Expert::LowNoise)];

/// A file of an adapter, without its values.
#[derive(Deserialize)]
struct File {
    strength: f64,
    metadata: HashMap<String, String>,
    tensors: BTreeMap<String, Vec<usize>>,
}

/// The case, its checkpoint and the adapters' golden data.
struct Fixture {
    case: Case,
    checkpoint: TempDir,
    golden: Golden,
    forms: BTreeMap<String, Vec<File>>,
    files: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let case = Case::load("b");
        let json = fs::read(golden_dir("adapters").join("forms.json")).unwrap();
        Self {
            checkpoint: case.checkpoint(),
            golden: Golden::load("adapters"),
            forms: serde_json::from_slice(&json).unwrap(),
            files: tempfile::tempdir().unwrap(),
            case,
        }
    }

    /// Writes the files of a form.
    fn adapters(&self, form: &str) -> Vec<Wanted> {
        let write = |(i, file): (usize, &File)| {
            let path = self.files.path().join(format!("{form}.{i}.safetensors"));
            let component = format!("adapter.{form}.{i}");
            let bytes: BTreeMap<&str, Vec<u8>> = file
                .tensors
                .iter()
                .map(|(name, shape)| {
                    let values = portable::weights("b", &component, name, shape);
                    let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                    (name.as_str(), bytes)
                })
                .collect();
            let views = file.tensors.iter().map(|(name, shape)| {
                let view = TensorView::new(Dtype::F32, shape.clone(), &bytes[name.as_str()]);
                (name, view.unwrap())
            });
            let metadata = Some(file.metadata.clone());
            safetensors::serialize_to_file(views, metadata, &path).unwrap();
            Wanted {
                source: Source::Disk(path),
                strength: file.strength,
                expert: None,
            }
        };
        self.forms[form].iter().enumerate().map(write).collect()
    }

    fn open(&self, loading: Loading) -> Checkpoint {
        open(self.checkpoint.path(), loading)
    }

    /// An expert's velocity at t = 937.
    fn velocity(&self, dit: &Dit) -> Array {
        let cross = dit.cross_kv(&encoded_text(&self.case), 512).unwrap();
        let time = dit.embed_time(937).unwrap();
        let rope = rope(&self.case, dit);
        let hidden = hidden(&self.case);
        dit.forward(&hidden, &time, &rope, &cross, &MemoryPlan::WHOLE)
            .unwrap()
    }

    fn latents(&self, checkpoint: &Checkpoint, plan: &Settings) -> Array {
        let (prompts, condition) = inputs(&self.case, checkpoint, F32);
        let noise = initial_noise(plan.seed, 16, plan.latent_grid(&checkpoint.vae));
        let memory = MemoryPlan::WHOLE;
        Denoiser::new(checkpoint, F32, memory, prompts, condition, noise, plan)
            .unwrap()
            .run(None, &mut Silent)
            .unwrap()
    }

    /// A run as step-distilled adapters have it.
    fn distilled(&self) -> Settings {
        Settings {
            steps: 4,
            switch: Switch(Some(2)),
            sigmas: Sigmas::List(vec![1.0, 0.9375, 0.83333, 0.625]),
            solver: Solver::Euler,
            guide_scale: GuideScale {
                low: 1.0,
                high: 1.0,
            },
            ..plan(&self.case)
        }
    }
}

fn open(folder: &Path, loading: Loading) -> Checkpoint {
    Checkpoint::open(&Sources::folder(folder), loading).unwrap()
}

fn dense(adapters: Vec<Wanted>) -> Loading {
    Loading {
        adapters,
        ..Loading::default()
    }
}

fn packed(bits: Bits, adapters: Vec<Wanted>) -> Loading {
    Loading {
        high: Some(bits.into()),
        low: Some(bits.into()),
        ..dense(adapters)
    }
}

#[test]
fn every_form_of_adapter() {
    let fixture = Fixture::new();
    let plain = fixture.open(Loading::default());
    let before = EXPERTS.map(|(_, expert)| {
        let dit = plain.load_expert(expert, F32).unwrap();
        to_host(&fixture.velocity(&dit)).unwrap()
    });
    for form in fixture.forms.keys() {
        let checkpoint = fixture.open(dense(fixture.adapters(form)));
        assert!(checkpoint.adapters().warnings.is_empty(), "{form}");
        for ((label, expert), before) in EXPERTS.iter().zip(&before) {
            let name = format!("{form}/{label}/output");
            for device in BOTH {
                let dit = checkpoint.load_expert(*expert, device).unwrap();
                let velocity = fixture.velocity(&dit);
                fixture.golden.check("adapter", &name, &velocity, 1e-4);
            }
            let moved = relative_error(before, fixture.golden.floats(&name));
            assert!(moved > 0.01, "{name} changes little: {moved}");
        }
    }
}

#[test]
fn whole_runs_with_adapters() {
    let fixture = Fixture::new();
    for (form, latents, plan) in [
        ("two", "two/latents", plan(&fixture.case)),
        ("original", "original/distilled", fixture.distilled()),
    ] {
        let checkpoint = fixture.open(dense(fixture.adapters(form)));
        let found = fixture.latents(&checkpoint, &plan);
        fixture.golden.check("adapter", latents, &found, 2e-3);
    }
}

/// What is computed beside quantized weights is what the changes are in the values that those stand
/// for: it is as far from the unquantized reference as the weights' own rounding takes the run, and
/// nearer than with the changes rounded too.
#[test]
fn runs_beside_quantized_weights() {
    let fixture = Fixture::new();
    let adapters = fixture.adapters("original");
    let plan = fixture.distilled();
    let host = |checkpoint: &Checkpoint| to_host(&fixture.latents(checkpoint, &plan)).unwrap();
    let reference = fixture.golden.floats("original/distilled");
    let plain = host(&fixture.open(Loading::default()));
    for (bits, most) in [(Bits::Four, 0.08), (Bits::Eight, 0.004)] {
        let meant = fixture.case.checkpoint();
        for part in ["transformer", "transformer_2"] {
            unpack(&meant.path().join(part), bits);
        }
        let meant = host(&open(meant.path(), dense(adapters.clone())));
        let beside = host(&fixture.open(packed(bits, adapters.clone())));
        let merged = host(&fixture.open(Loading {
            merges: true,
            ..packed(bits, adapters.clone())
        }));
        let without = relative_error(&host(&fixture.open(packed(bits, Vec::new()))), &plain);
        let error = relative_error(&beside, &meant);
        let [beside, merged] = [&beside, &merged].map(|found| relative_error(found, reference));
        println!(
            "measured adapter beside {bits:?}: {error:.1e} from the same values; from the \
             unquantized {beside:.2e}, merged {merged:.2e}, without adapter {without:.2e}"
        );
        assert!(error < 1e-5, "{bits:?}: {error:.2e}");
        assert!(beside < most && beside < merged, "{bits:?}: {beside:.2e}");
    }
}

/// Writes the values that an expert's weights are in `bits`.
fn unpack(folder: &Path, bits: Bits) {
    let path = folder.join("diffusion_pytorch_model.safetensors");
    let mut tensors = read_tensors(&path);
    for (name, tensor) in &mut tensors {
        if may_quantize(Kind::Expert, name, &tensor.shape) {
            let packed = quantize::quantize(&tensor.values(), bits, Search::MinMax).unwrap();
            let values = quantize::dequantize(&packed, bits).unwrap();
            *tensor = Tensor::f32(&tensor.shape.clone(), &values);
        }
    }
    write_tensors(&path, &tensors);
}
