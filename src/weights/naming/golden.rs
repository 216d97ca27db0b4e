//! What the projects themselves call the tensors of a tiny model (`scripts/golden_names.py`).

use std::collections::BTreeMap;

use super::{Kind, Naming};

/// One tensor of the tiny model.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub canonical: String,
    pub shape: Vec<usize>,
    pub names: BTreeMap<Naming, String>,
    /// Its shape in mlx-video's folders.
    pub mlx_shape: Vec<usize>,
}

impl Tensor {
    /// Its name and shape in one naming.
    pub fn stored(&self, naming: Naming) -> (&str, &[usize]) {
        let shape = match naming {
            Naming::MlxVideo => &self.mlx_shape,
            _ => &self.shape,
        };
        (&self.names[&naming], shape)
    }
}

/// Every tensor of one network.
pub fn tensors(kind: Kind) -> Vec<Tensor> {
    let part = match kind {
        Kind::Expert => "expert",
        Kind::Vae => "vae",
        Kind::TextEncoder => "text",
        // Its names are in tests/golden/family/clip.
        Kind::ImageEncoder => unimplemented!(),
    };
    of_part(part)
}

/// Every tensor of the VAE of Wan2.2 TI2V-5B, in diffusers' and the original naming.
pub fn wan22_vae() -> Vec<Tensor> {
    of_part("vae22")
}

fn of_part(part: &str) -> Vec<Tensor> {
    let text = include_str!("../../../tests/data/names.json");
    let parts: BTreeMap<String, Vec<String>> = serde_json::from_str(text).unwrap();
    parts[part].iter().flat_map(|line| module(line)).collect()
}

/// The tensors of a line "canonical original mlx-video [llama.cpp] leaf:SHAPE[>MLX SHAPE] ...".
fn module(line: &str) -> Vec<Tensor> {
    const NAMINGS: [Naming; 4] = [
        Naming::Diffusers,
        Naming::Original,
        Naming::MlxVideo,
        Naming::LlamaCpp,
    ];
    let (leaves, names): (Vec<&str>, Vec<&str>) = line.split(' ').partition(|w| w.contains(':'));
    let mut modules: Vec<&str> = Vec::new();
    for name in names {
        modules.push(if name == "=" {
            modules[modules.len() - 1]
        } else {
            name
        });
    }
    let tensor = |leaf: &str| {
        let (leaf, shapes) = leaf.split_once(':').unwrap();
        let (shape, mlx) = shapes.split_once('>').unwrap_or((shapes, shapes));
        let full = |module: &&str| match leaf {
            "" => (*module).to_owned(),
            _ => format!("{module}.{leaf}"),
        };
        let sizes = |text: &str| text.split('x').map(|d| d.parse().unwrap()).collect();
        Tensor {
            canonical: full(&modules[0]),
            shape: sizes(shape),
            names: NAMINGS.into_iter().zip(modules.iter().map(full)).collect(),
            mlx_shape: sizes(mlx),
        }
    };
    leaves.into_iter().map(tensor).collect()
}
