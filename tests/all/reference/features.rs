//! The models of Wan2.1 that look at pictures by CLIP, against diffusers' pipeline.

use image::RgbImage;
use mlx_rs::Array;
use ndarray::{Array3, Axis};
use wan_i2v::media::Resize;
use wan_i2v::media::picture::Picture;
use wan_i2v::model::MemoryPlan;
use wan_i2v::pipeline::{Condition, Ends, Silent, decode_clip, encode_condition};
use wan_i2v::runtime::{Device, to_host};
use wan_i2v::weights::adapter::{Source, Wanted};
use wan_i2v::weights::{Bits, Checkpoint, Conditioning, Expert, Loading, PartName, Sources};

use super::family::{latents, open};
use super::run::plan;
use crate::support::golden::{BOTH, Case, F32, golden_dir, relative_error};
use crate::support::scratch::{Tensor, write_tensors};

/// In few rows at a time.
const CHUNKS: MemoryPlan = MemoryPlan {
    chunk_rows: 5,
    joint_passes: false,
    ..MemoryPlan::WHOLE
};

/// The case's pictures at their own size: the start, and for two the same upside down.
fn pictures(case: &Case, checkpoint: &Checkpoint) -> Vec<Picture> {
    let first = Picture::open(&golden_dir(case.name).join("start.png")).unwrap();
    let mut turned = first.pixels().to_owned();
    turned.invert_axis(Axis(0));
    let last = Picture::from_pixels(turned).unwrap();
    let mut pictures = vec![first, last];
    pictures.truncate(checkpoint.family.conditioning.features());
    pictures
}

fn condition(
    case: &Case,
    checkpoint: &Checkpoint,
    device: Device,
    memory: &MemoryPlan,
) -> Condition {
    let settings = plan(case);
    let (width, height) = (settings.width as usize, settings.height as usize);
    let side = checkpoint.image_encoder.as_ref().unwrap().image_size as usize;
    let pictures = pictures(case, checkpoint);
    let resized = |width, height, how| -> Vec<Array3<f32>> {
        let all = pictures.iter();
        all.map(|picture| picture.resized(width, height, how).unwrap())
            .collect()
    };
    let frames = resized(width, height, Resize::Lanczos);
    let squares = resized(side, side, Resize::Bicubic);
    let ends = Ends {
        first: frames[0].view(),
        last: frames.get(1).map(|last| last.view()),
        squares: &squares,
    };
    encode_condition(
        checkpoint,
        device,
        memory,
        ends,
        &settings,
        None,
        &mut Silent,
    )
    .unwrap()
}

fn run(name: &'static str, family: &str, pictures: usize) {
    let case = Case::load(name);
    let (_folder, checkpoint) = open(&case);
    assert_eq!(checkpoint.family.name, family);
    assert_eq!(
        checkpoint.family.conditioning,
        Conditioning::Features { pictures }
    );
    assert_eq!(checkpoint.feature_rows(), 17 * pictures as u64);
    assert_eq!(checkpoint.part_names(), PartName::WITH_FEATURES);
    for device in BOTH {
        let made = condition(&case, &checkpoint, device, &MemoryPlan::WHOLE);
        case.golden
            .check(name, "condition/y", &made.beside.unwrap(), 2e-4);
        let features = made.features.unwrap();
        let shape = case.golden.shape("clip/tokens").to_owned();
        let features = features.reshape(&shape).unwrap();
        case.golden.check(name, "clip/tokens", &features, 1e-5);
    }
    for memory in [MemoryPlan::WHOLE, CHUNKS] {
        let made = condition(&case, &checkpoint, F32, &memory);
        let found = latents(&case, &checkpoint, made, memory);
        case.golden.check(name, "run/latents", &found, 2e-3);
        let mut bytes = Vec::new();
        let mut push = |frame: &RgbImage| {
            bytes.extend_from_slice(frame.as_raw());
            Ok(())
        };
        decode_clip(
            &checkpoint,
            F32,
            &memory,
            &found,
            None,
            &mut Silent,
            &mut push,
        )
        .unwrap();
        let expected = case.golden.bytes("run/frames_u8");
        assert_eq!(bytes.len(), expected.len());
        let off = |(a, b): (&u8, &u8)| a.abs_diff(*b);
        let worst = bytes.iter().zip(expected).map(off).max().unwrap();
        println!("measured {name} frames: {worst} levels");
        assert!(worst <= 1, "{worst}");
    }
}

#[test]
fn image_to_video_of_wan21() {
    run("family/i2v21", "Wan2.1 I2V-14B", 1);
}

#[test]
fn first_and_last_frame_to_video() {
    run("family/flf2v", "Wan2.1 FLF2V-14B", 2);
}

/// An adapter's change of a picture's values, beside the reference's own: by the original's and diffusers'
/// names, dense and quantized. Its keys stay what they are.
#[test]
fn adapters_change_the_image_branch() {
    let case = Case::load("family/i2v21");
    let folder = case.checkpoint();
    let width = case.golden.shape("dit/high/image")[1] as usize;
    let down = case.input("adapter.down", &[2, width as i32], 0.2);
    let up = case.input("adapter.up", &[width as i32, 2], 0.2);
    let rows = case.golden.array("dit/high/image");
    let change = rows.matmul(down.transpose().unwrap()).unwrap();
    let change = change.matmul(up.transpose().unwrap()).unwrap();
    for (at, names) in [
        [
            "diffusion_model.blocks.0.cross_attn.v_img.lora_down",
            "lora_up",
        ],
        ["transformer.blocks.0.attn2.add_v_proj.lora_A", "lora_B"],
    ]
    .into_iter()
    .enumerate()
    {
        let [first, second] = names;
        let second = format!("{}.{second}", first.rsplit_once('.').unwrap().0);
        let tensor = |name: &str, shape: &[usize], array: &Array| {
            (
                format!("{name}.weight"),
                Tensor::f32(shape, &to_host(array).unwrap()),
            )
        };
        let tensors = [
            tensor(first, &[2, width], &down),
            tensor(&second, &[width, 2], &up),
        ];
        let path = folder.path().join(format!("adapter-{at}.safetensors"));
        write_tensors(&path, &tensors.into());
        let wanted = Wanted {
            source: Source::Disk(path),
            strength: 1.0,
            expert: None,
        };
        for bits in [None, Some(Bits::Eight)] {
            let loading = Loading {
                high: bits.map(Into::into),
                low: bits.map(Into::into),
                adapters: vec![wanted.clone()],
                ..Loading::default()
            };
            let checkpoint = Checkpoint::open(&Sources::folder(folder.path()), loading).unwrap();
            assert_eq!(checkpoint.warnings(), Vec::<String>::new());
            let dit = checkpoint.load_expert(Expert::Single, F32).unwrap();
            let features = dit.config().image_dim.unwrap();
            let tokens = case.golden.array("clip/tokens");
            let tokens = tokens.reshape(&[-1, features]).unwrap();
            let (keys, values) = dit.image_kv(&tokens).unwrap().remove(0);
            // Eight bits round the weights.
            let tolerance = if bits.is_some() { 0.02 } else { 1e-5 };
            for (name, found, change) in [
                ("dit/high/cross_k_img", keys, None),
                ("dit/high/cross_v_img", values, Some(&change)),
            ] {
                let found = found.transpose_axes(&[0, 2, 1, 3]).unwrap();
                let found = found.reshape(&[-1, width as i32]).unwrap();
                let mut expected = case.golden.array(name);
                if let Some(change) = change {
                    expected = expected.add(change).unwrap();
                }
                let [found, expected] = [&found, &expected].map(|a| to_host(a).unwrap());
                let error = relative_error(&found, &expected);
                println!("measured {name} with an adapter, {bits:?}: {error:.2e}");
                assert!(error < tolerance, "{name}: {error}");
            }
        }
    }
}
