use wan_i2v::model::umt5::Umt5;
use wan_i2v::runtime::Precision;

use crate::support::golden::{BOTH, Case, F32};

#[test]
fn encoder_output() {
    for name in Case::ALL {
        let case = Case::load(name);
        let config = case.config("text_encoder");
        for device in BOTH {
            let mut source = case.source("text_encoder", Precision::F32);
            let encoder = Umt5::load(&config, &mut source, device).unwrap();
            for length in ["short", "medium", "long"] {
                let encoded = encoder.encode(&case.ids(length)).unwrap();
                let tensor = format!("umt5/out_{length}");
                case.golden.check(name, &tensor, &encoded, 1e-4);
            }
        }
    }
}

#[test]
fn ids_outside_the_vocabulary_are_refused() {
    let case = Case::load("a");
    let config = case.config("text_encoder");
    let encoder = Umt5::load(
        &config,
        &mut case.source("text_encoder", Precision::F32),
        F32,
    )
    .unwrap();
    let error = encoder.encode(&[3, 1024]).unwrap_err().to_string();
    assert!(error.contains("token id 1024"), "{error}");
    assert!(encoder.encode(&[]).is_err());
}
