//! Saved runs. What is not a state's checksum is made right first: damage never gets past it.
#![no_main]

#[allow(dead_code)]
#[path = "../../../src/clip"]
mod clip {
    mod identity;
    pub use identity::Identity;
}
#[allow(dead_code)]
#[path = "../../../src/persist/format.rs"]
mod format;

libfuzzer_sys::fuzz_target!(|file: &[u8]| {
    let _ = format::parse(file);
    let _ = format::parse(&sealed(file).unwrap_or_default());
});

/// The file with the checksum that it should have.
fn sealed(file: &[u8]) -> Option<Vec<u8>> {
    let tensors = safetensors::SafeTensors::deserialize(file).ok()?;
    let (_, metadata) = safetensors::SafeTensors::read_metadata(file).ok()?;
    let mut texts = metadata.metadata().clone()?;
    let mut views = tensors.tensors();
    views.sort_by(|a, b| a.0.cmp(&b.0));
    let mut checksum = format::Checksum::new(texts.get(format::KEY)?);
    for (name, view) in &views {
        checksum.add(name, view.shape(), view.data());
    }
    texts.insert(format::CHECKSUM.to_owned(), checksum.hex());
    safetensors::serialize(views, Some(texts)).ok()
}
