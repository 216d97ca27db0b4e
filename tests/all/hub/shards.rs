//! Shards and indexes that do not hold what they should, found while a model is streamed.

use crate::hub::Bench;
use crate::hub::models::{Model, shard};
use crate::support::scratch::{Tensor, Tensors};

/// A bench with the experts alone, and one file of them changed.
fn damaged(path: &str, change: impl FnOnce(&mut Tensors)) -> Bench {
    let mut model = Model::sharded().only(&["transformer", "transformer_2"]);
    model.edit(path, change);
    Bench::serving(&model)
}

/// The first tensor of a file that satisfies a condition.
fn first(tensors: &Tensors, fits: impl Fn(&Tensor) -> bool) -> String {
    let mut found = tensors.iter().filter(|(_, tensor)| fits(tensor));
    found.next().unwrap().0.clone()
}

#[test]
fn an_index_that_lacks_a_tensor() {
    let mut model = Model::sharded();
    let lacking = "blocks.3.attn1.to_q.weight";
    let index = format!(
        "transformer_2/{}",
        "diffusion_pytorch_model.safetensors.index.json"
    );
    model.edit_json(&index, |index| {
        let map = index["weight_map"].as_object_mut().unwrap();
        map.remove(lacking).unwrap();
    });
    let bench = Bench::serving(&model);
    let error = bench.convert_error();
    assert!(
        error.contains("low-noise expert") && error.contains(lacking),
        "{error}"
    );
    assert_eq!(bench.asked(), [], "before a shard is fetched");
}

#[test]
fn shards_that_lack_or_add_or_distort_a_tensor() {
    let second = format!("transformer/{}", shard(2));
    let third = format!("transformer/{}", shard(3));

    let mut name = String::new();
    let bench = damaged(&second, |tensors| {
        name = first(tensors, |_| true);
        tensors.remove(&name);
    });
    let error = bench.convert_error();
    assert!(
        error.contains(&name) && error.contains("high-noise expert"),
        "{error}"
    );

    let bench = damaged(&second, |tensors| {
        let tensor = tensors[&first(tensors, |_| true)].clone();
        tensors.insert("blocks.0.attn3.to_q.weight".into(), tensor);
    });
    let error = bench.convert_error();
    assert!(
        error.contains("blocks.0.attn3.to_q.weight") && error.contains(&shard(2)),
        "{error}"
    );
    assert_eq!(bench.asked().len(), 2, "the third shard is not fetched");

    let bench = damaged(&second, |tensors| {
        name = first(tensors, |tensor| tensor.shape.len() == 2);
        tensors.get_mut(&name).unwrap().shape.reverse();
        tensors.get_mut(&name).unwrap().shape.push(1);
    });
    let error = bench.convert_error();
    assert!(
        error.contains(&format!("{name} has shape")) && error.contains(&shard(2)),
        "{error}"
    );

    // NaN in every float type there is.
    let bench = damaged(&third, |tensors| {
        name = first(tensors, |tensor| tensor.shape.len() == 2);
        let bytes = &mut tensors.get_mut(&name).unwrap().bytes;
        let end = bytes.len();
        bytes[end - 4..].fill(0xff);
    });
    let error = bench.convert_error();
    assert!(
        error.contains(&format!("{name} holds a value that is not finite"))
            && error.contains(&shard(3)),
        "{error}"
    );
}
