//! Headers of NumPy's files.
#![no_main]

#[allow(dead_code)]
#[path = "../../../src/util/npy.rs"]
mod npy;

libfuzzer_sys::fuzz_target!(|file: &[u8]| {
    if let Ok(header) = npy::Header::read(&mut &file[..]) {
        let _ = header.element();
        // What was understood is written as it was understood.
        let mut written = Vec::new();
        let plain = !header.fortran_order && !header.descr.contains(['\'', '\\']);
        if plain && npy::Header::write(&mut written, &header.descr, &header.shape).is_ok() {
            assert_eq!(npy::Header::read(&mut &written[..]).unwrap(), header);
        }
    }
});
