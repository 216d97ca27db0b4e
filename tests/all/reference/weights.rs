//! What the strict loader hands out is what is in the file.

use wan_i2v::model::{Role, TensorSource};
use wan_i2v::runtime::{Device, Precision, to_host};
use wan_i2v::weights::part::{Loader, Part};
use wan_i2v::weights::store::Location;

use crate::support::checkpoint::{kind, parts, specs};
use crate::support::golden::{Case, F32, golden_dir};
use crate::support::portable;

#[test]
fn every_tensor_of_every_part() {
    for name in ["b", "d"] {
        let case = Case::load(name);
        let folder = case.checkpoint();
        let bf16 = Device {
            dtype: Precision::Bf16,
            ..F32
        };
        let (mut tensors, mut worst) = (0, 0.0_f64);
        for part in parts(&golden_dir(name)) {
            let location = Location::at(&folder.path().join(part)).unwrap();
            let opened = Part::open(&location, kind(part)).unwrap();
            let loader = |device| Loader {
                part: &opened,
                device,
                bits: None,
                adapters: &[],
                merges: false,
            };
            let (mut exact, mut mixed) = (loader(F32), loader(bf16));
            for spec in specs(&golden_dir(name), part).unwrap() {
                let shape: Vec<usize> = spec.shape.iter().map(|&d| d as usize).collect();
                let expected = portable::weights(name, part, &spec.name, &shape);
                let loaded = exact.tensor(&spec.name, &spec.shape, Role::Matmul).unwrap();
                assert_eq!(to_host(&loaded).unwrap(), expected, "{part} {}", spec.name);
                let rounded = mixed.tensor(&spec.name, &spec.shape, Role::Matmul).unwrap();
                for (rounded, exact) in to_host(&rounded).unwrap().iter().zip(&expected) {
                    worst = worst.max(f64::from((rounded - exact).abs()));
                    // Half a unit in the last of bfloat16's 8 bits.
                    assert!((rounded - exact).abs() <= exact.abs() / 256.0);
                }
                tensors += 1;
            }
        }
        println!("measured {name} weights: {tensors} tensors exact, bf16 off by {worst:.1e}");
    }
}

/// Names and shapes of our constructors are those that diffusers and transformers save.
#[test]
fn tensor_lists_are_the_reference_libraries() {
    for name in Case::ALL {
        let json = std::fs::read(golden_dir(name).join("manifest.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&json).unwrap();
        for part in parts(&golden_dir(name)) {
            let expected = manifest[part].as_object().unwrap();
            let ours = specs(&golden_dir(name), part).unwrap();
            assert_eq!(ours.len(), expected.len(), "{name} {part}");
            for spec in ours {
                let shape = serde_json::json!(spec.shape);
                assert_eq!(
                    expected.get(&spec.name),
                    Some(&shape),
                    "{part} {}",
                    spec.name
                );
            }
        }
    }
}
