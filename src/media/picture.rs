//! Reading the start picture.

use std::io::{Cursor, Read};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use image::codecs::tiff::TiffDecoder;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};
use ndarray::{Array3, ArrayView3, s};
use sha2::{Digest, Sha256};

use super::colour::Conversion;
use super::resize::{self, Fit, Resize, within};
use super::system;
use super::truncation::is_truncated;
use crate::util::hex::to_hex;
use crate::util::show::Show;
use crate::util::suggest;

/// The most pixels a picture may have (about 134 million). It is held as three f32 a pixel, so
/// this is 1.6 GB; every phone or camera picture is well below, decompression bombs are above.
pub(super) const MAX_PIXELS: u64 = 1 << 27;

/// The longest side that is read: resizing takes memory by it, and no camera or scanner makes more.
const MAX_SIDE: u32 = 65_535;

/// The largest file that is read, in bytes: more than [`MAX_PIXELS`] need in any format.
const MAX_FILE: u64 = 2 << 30;

/// Bytes at a file's beginning that tell its format.
const MAGIC: u64 = 32;

/// What the decoder may allocate beside its output, in bytes.
const MAX_ALLOC: u64 = 2 << 30;

/// A decoded picture: RGB, upright, opaque.
///
/// Equal to what the reference reads with `Image.open(path).convert("RGB")`, with these exceptions:
/// the EXIF orientation is applied (as diffusers' `load_image` does, so that a phone picture is
/// upright); 16-bit pictures keep their precision; transparent pixels are laid over white, where
/// the reference reveals whatever colour lies hidden beneath them; colours of other profiles are
/// converted to sRGB, where the reference takes their numbers for sRGB's.
#[derive(Clone, Debug)]
pub struct Picture {
    /// `[height, width, 3]` in [0, 1], in standard layout, no side zero.
    pixels: Array3<f32>,
    sha256: Option<String>,
}

impl Picture {
    /// Reads a PNG, JPEG, WebP, TIFF, BMP or GIF file, told apart by its content, whatever its name; on a
    /// Mac what the system reads as well, HEIC and AVIF.
    ///
    /// Grey, palette, 16-bit, transparent and CMYK pictures are converted; of an animation the
    /// first frame is taken.
    ///
    /// # Errors
    /// When the file cannot be read, is none of these formats, is damaged or truncated, or has more
    /// than 134 million pixels.
    pub fn open(path: &Path) -> Result<Self> {
        Self::read(path).with_context(|| format!("cannot read the picture {}", path.shown()))
    }

    fn read(path: &Path) -> Result<Self> {
        let file = suggest::open_now(path)?;
        ensure!(
            !file.metadata()?.is_dir(),
            "it is a folder\nhint: give a picture file"
        );
        let mut content = Vec::new();
        let mut file = file.take(MAX_FILE);
        (&mut file).take(MAGIC).read_to_end(&mut content)?;
        // Of what is no picture no more is read: it may have no end.
        if format_of(&content).is_some() || system::PROGRAM.is_some() && is_heif(&content) {
            file.read_to_end(&mut content)?;
        }
        Self::decode(&content)
    }

    /// A picture from the content of its file.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn decode(content: &[u8]) -> Result<Self> {
        if let Some(program) = system::PROGRAM.filter(|_| is_heif(content)) {
            let png = system::to_png(program, content, MAX_FILE)?;
            return Ok(Self {
                sha256: Some(to_hex(&Sha256::digest(content))),
                ..Self::decode_own(&png)?
            });
        }
        Self::decode_own(content)
    }

    fn decode_own(content: &[u8]) -> Result<Self> {
        let Some(format) = format_of(content) else {
            bail!(unsupported(content));
        };
        let mut reader = ImageReader::with_format(Cursor::new(content), format);
        ensure!(
            !is_truncated(format, content),
            "the {format:?} data is cut off\nhint: download it again"
        );
        let mut limits = Limits::default();
        limits.max_alloc = Some(MAX_ALLOC);
        reader.limits(limits);

        let damaged = |error| {
            anyhow!("the {format:?} data is damaged, truncated or of an unsupported kind: {error}")
        };
        let mut decoder = reader.into_decoder().map_err(damaged)?;
        let (width, height) = decoder.dimensions();
        ensure!(
            width > 0 && height > 0,
            "it is {width}x{height} pixels; no side may be zero"
        );
        ensure!(
            width.max(height) <= MAX_SIDE,
            "it is {width}x{height} pixels; expected sides of at most {MAX_SIDE}"
        );
        ensure!(
            u64::from(width) * u64::from(height) <= MAX_PIXELS,
            "it claims to be {width}x{height} pixels, and at most {MAX_PIXELS} pixels are read\nhint: scale it down first"
        );
        // Broken EXIF data is no reason to refuse a picture that decodes.
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        // Nor is a broken colour profile.
        let profile = match format {
            // The decoder with limits does not find it.
            ImageFormat::Tiff => TiffDecoder::new(Cursor::new(content))
                .and_then(|mut bare| bare.icc_profile())
                .ok(),
            _ => decoder.icc_profile().ok(),
        };
        let profile = profile.flatten();
        let conversion = match format {
            ImageFormat::Png => Conversion::of_png(content),
            _ => profile.and_then(|profile| Conversion::of_icc(&profile)),
        };
        let mut image = DynamicImage::from_decoder(decoder).map_err(damaged)?;
        image.apply_orientation(orientation);
        Ok(Self {
            sha256: Some(to_hex(&Sha256::digest(content))),
            ..Self::from_pixels(opaque_rgb(image, conversion)?)?
        })
    }

    /// A picture from its pixels, `[height, width, 3]` in [0, 1].
    ///
    /// # Errors
    /// When a side is zero or there are not three channels.
    pub fn from_pixels(pixels: Array3<f32>) -> Result<Self> {
        let (height, width, channels) = pixels.dim();
        ensure!(
            height > 0 && width > 0 && channels == 3,
            "pixels of the shape [{height}, {width}, {channels}] are no picture; \
             expected [height, width, 3] with no side zero"
        );
        Ok(Self {
            pixels: if pixels.is_standard_layout() {
                pixels
            } else {
                pixels.as_standard_layout().into_owned()
            },
            sha256: None,
        })
    }

    /// Width in pixels, after orientation.
    pub fn width(&self) -> usize {
        self.pixels.dim().1
    }

    /// Height in pixels, after orientation.
    pub fn height(&self) -> usize {
        self.pixels.dim().0
    }

    /// The pixels, `[height, width, 3]` in [0, 1].
    pub fn pixels(&self) -> ArrayView3<'_, f32> {
        self.pixels.view()
    }

    /// The hash of the file it was read from, in hexadecimal digits.
    pub fn sha256(&self) -> Option<&str> {
        self.sha256.as_deref()
    }

    /// The picture in a frame of exactly `width` x `height` pixels, as [`Self::resized`].
    ///
    /// # Errors
    /// As there.
    pub fn fitted(
        &self,
        width: usize,
        height: usize,
        filter: Resize,
        fit: Fit,
    ) -> Result<Array3<f32>> {
        let (own, frame) = ((self.width(), self.height()), (width, height));
        match fit {
            Fit::Stretch => self.resized(width, height, filter),
            _ if width == 0 || height == 0 => self.resized(width, height, filter),
            Fit::Crop => {
                let part = within(own, frame);
                if part == own {
                    return self.resized(width, height, filter);
                }
                let (x, y) = ((own.0 - part.0) / 2, (own.1 - part.1) / 2);
                let part = s![y..y + part.1, x..x + part.0, ..];
                Self::from_pixels(self.pixels.slice(part).to_owned())?
                    .resized(width, height, filter)
            }
            Fit::Pad => {
                let inner = within(frame, own);
                let picture = self.resized(inner.0, inner.1, filter)?;
                if inner == frame {
                    return Ok(picture);
                }
                let (x, y) = ((width - inner.0) / 2, (height - inner.1) / 2);
                let mut padded = Array3::from_elem((height, width, 3), signed(0.0));
                padded
                    .slice_mut(s![y..y + inner.1, x..x + inner.0, ..])
                    .assign(&picture);
                Ok(padded)
            }
        }
    }

    /// The picture at exactly `width` x `height` pixels, as `[height, width, 3]` in [-1, 1].
    ///
    /// A differing aspect ratio is stretched, as in the reference. At the picture's own size the
    /// pixels are the decoded ones, only mapped to [-1, 1]. [`Resize::Bicubic`] may overshoot the
    /// range at sharp edges.
    ///
    /// # Errors
    /// When a target side is zero.
    pub fn resized(&self, width: usize, height: usize, filter: Resize) -> Result<Array3<f32>> {
        ensure!(
            width > 0 && height > 0,
            "cannot resize a picture to {width}x{height} pixels; no side may be zero"
        );
        if (width, height) == (self.width(), self.height()) {
            return Ok(self.pixels.mapv(signed));
        }
        match filter {
            Resize::Lanczos => {
                let mut resized = resize::lanczos(self.pixels(), width, height)?;
                resized.mapv_inplace(signed);
                Ok(resized)
            }
            Resize::Bicubic => Ok(resize::bicubic(
                self.pixels.mapv(signed).view(),
                width,
                height,
            )),
        }
    }
}

/// [0, 1] to [-1, 1] in the reference's arithmetic (`sub_(0.5).div_(0.5)`).
fn signed(unit: f32) -> f32 {
    (unit - 0.5) / 0.5
}

/// The formats that are read here.
const FORMATS: [ImageFormat; 6] = [
    ImageFormat::Png,
    ImageFormat::Jpeg,
    ImageFormat::WebP,
    ImageFormat::Tiff,
    ImageFormat::Bmp,
    ImageFormat::Gif,
];

/// The format of a file that begins like this, if it is one of those that are read here.
fn format_of(content: &[u8]) -> Option<ImageFormat> {
    let format = image::guess_format(content).ok()?;
    FORMATS.contains(&format).then_some(format)
}

/// The same picture in sRGB, without its alpha channel, if any: it is laid over white.
fn opaque_rgb(image: DynamicImage, conversion: Option<Conversion>) -> Result<Array3<f32>> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let alpha: Option<Vec<f32>> = image.color().has_alpha().then(|| {
        let rgba = image.to_rgba32f();
        rgba.pixels().map(|pixel| pixel.0[3]).collect()
    });
    let mut values = image.into_rgb32f().into_raw();
    if let Some(conversion) = conversion {
        conversion.apply(&mut values)?;
    }
    let alpha = alpha.into_iter().flatten();
    for (pixel, alpha) in values.chunks_exact_mut(3).zip(alpha) {
        // Opaque pixels must come through bit for bit.
        if alpha != 1.0 {
            for value in pixel {
                *value = 1.0 - alpha + *value * alpha;
            }
        }
    }
    Ok(Array3::from_shape_vec((height, width, 3), values)?)
}

/// Whether a file begins as HEIC and AVIF do.
fn is_heif(content: &[u8]) -> bool {
    let brand = content.get(4..).unwrap_or_default();
    [
        b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1", b"avif", b"avis",
    ]
    .iter()
    .any(|kind| {
        brand
            .strip_prefix(b"ftyp")
            .is_some_and(|rest| rest.starts_with(*kind))
    })
}

/// Says why a file that is none of these is refused.
fn unsupported(content: &[u8]) -> &'static str {
    if content.is_empty() {
        "the file is empty; expected a PNG, JPEG, WebP, TIFF, BMP or GIF picture"
    } else if content.get(8..11) == Some(b"avi") && is_heif(content) {
        "AVIF pictures are read on a Mac alone\nhint: convert it to PNG first, such as with avifdec \
         picture.avif picture.png"
    } else if is_heif(content) {
        "HEIC pictures are read on a Mac alone\nhint: convert it to PNG first, such as with \
         heif-convert picture.heic picture.png"
    } else {
        "its content is no PNG, JPEG, WebP, TIFF, BMP or GIF\nhint: convert it to one of these first"
    }
}
