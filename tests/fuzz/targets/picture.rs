//! Start pictures: PNG, JPEG and WebP.
#![no_main]

#[allow(dead_code)]
#[path = "../../../src/media"]
mod media {
    pub mod picture;
    mod resize;
    mod truncation;
}
#[allow(dead_code)]
#[path = "../../../src/util/mod.rs"]
mod util;

use media::picture::Picture;

libfuzzer_sys::fuzz_target!(|file: &[u8]| {
    if let Ok(picture) = Picture::decode(file) {
        assert!(picture.width() > 0 && picture.height() > 0);
    }
});
