//! From a picture's own colours to sRGB's, which models were trained on.

use std::io::Cursor;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use moxcms::{
    Chromaticity, CicpProfile, CmsError, ColorPrimaries, ColorProfile, DataColorSpace, Layout,
    MatrixCoefficients, ToneReprCurve, TransformF32Executor, TransformOptions, XyY,
};

/// Pixels that are converted at once.
const BLOCK: usize = 1 << 16;
/// The exponent that PNG files with a gAMA chunk are shown with (PNG specification, 13.13).
const DISPLAY_GAMMA: f32 = 2.2;

/// A conversion to sRGB.
pub(super) struct Conversion {
    transform: Arc<TransformF32Executor>,
    /// Channels of the source: three, or one for grey.
    channels: usize,
}

impl Conversion {
    /// The conversion of a picture with an ICC profile. A profile that is damaged or of other inks than
    /// the pixels, and one whose colours are sRGB's, has none.
    pub(super) fn of_icc(profile: &[u8]) -> Option<Self> {
        let profile = ColorProfile::new_from_slice(profile).ok()?;
        let layout = match profile.color_space {
            DataColorSpace::Rgb => Layout::Rgb,
            DataColorSpace::Gray => Layout::Gray,
            _ => return None,
        };
        Self::new(&profile, layout, &ColorProfile::new_srgb())
    }

    /// The conversion that the chunks of a PNG file ask for, in the order that the specification's third
    /// edition gives them: cICP, iCCP, sRGB, then gAMA with cHRM.
    pub(super) fn of_png(file: &[u8]) -> Option<Self> {
        let mut decoder = png::Decoder::new(Cursor::new(file));
        decoder.set_ignore_text_chunk(true);
        let reader = decoder.read_info().ok()?;
        let info = reader.info();
        if let Some(cicp) = info.coding_independent_code_points {
            let named = CicpProfile {
                color_primaries: cicp.color_primaries.try_into().ok()?,
                transfer_characteristics: cicp.transfer_function.try_into().ok()?,
                matrix_coefficients: MatrixCoefficients::Identity,
                full_range: true,
            };
            // One of unknown numbers has no curves, and makes no conversion.
            let profile = ColorProfile::new_from_cicp(named);
            return Self::new(&profile, Layout::Rgb, &ColorProfile::new_srgb());
        }
        if let Some(profile) = &info.icc_profile {
            return Self::of_icc(profile);
        }
        let gamma = info.gama_chunk.filter(|_| info.srgb.is_none())?;
        let (white, primaries) = match info.chrm_chunk {
            Some(all) => {
                let at = |(x, y): (png::ScaledFloat, png::ScaledFloat)| Chromaticity {
                    x: x.into_value(),
                    y: y.into_value(),
                };
                let primaries = ColorPrimaries {
                    red: at(all.red),
                    green: at(all.green),
                    blue: at(all.blue),
                };
                (at(all.white), primaries)
            }
            None => (D65, ColorPrimaries::BT_709),
        };
        let source = plain(white, primaries, 1.0 / gamma.into_value());
        let shown = plain(D65, ColorPrimaries::BT_709, DISPLAY_GAMMA);
        Self::new(&source, Layout::Rgb, &shown)
    }

    fn new(source: &ColorProfile, layout: Layout, target: &ColorProfile) -> Option<Self> {
        let options = TransformOptions::default();
        let transform = source
            .create_transform_f32(layout, target, Layout::Rgb, options)
            .ok()?;
        let conversion = Self {
            transform,
            channels: if layout == Layout::Gray { 1 } else { 3 },
        };
        conversion.changes().then_some(conversion)
    }

    /// Whether it moves any of some colours by half a level of 8 bits. Most profiles are sRGB's own, and
    /// their pixels are to stay what they are. One that makes no numbers changes nothing.
    fn changes(&self) -> bool {
        let levels = [0.0, 0.02, 0.06, 0.15, 0.3, 0.5, 0.75, 1.0];
        let mut colours = Vec::new();
        for r in levels {
            for g in levels {
                for b in levels {
                    colours.extend([r, g, b]);
                }
            }
        }
        let mut converted = colours.clone();
        if self.apply(&mut converted).is_err() || converted.iter().any(|value| value.is_nan()) {
            return false;
        }
        let greys = colours.chunks(3).zip(converted.chunks(3));
        let mut compared =
            greys.filter(|(old, _)| self.channels == 3 || old.iter().all(|value| *value == old[0]));
        compared.any(|(old, new)| {
            let moved = old.iter().zip(new).map(|(old, new)| (old - new).abs());
            moved.fold(0.0, f32::max) > 0.5 / 255.0
        })
    }

    /// Converts pixels of three values each; of a grey one the first counts.
    ///
    /// # Errors
    /// When the profile cannot be applied.
    pub(super) fn apply(&self, values: &mut [f32]) -> Result<()> {
        let failed = |error: CmsError| anyhow!("the colour profile cannot be applied: {error}");
        for block in values.chunks_mut(3 * BLOCK) {
            let source: Vec<f32> = match self.channels {
                1 => block.iter().step_by(3).copied().collect(),
                _ => block.to_vec(),
            };
            self.transform.transform(&source, block).map_err(failed)?;
            for value in block {
                *value = value.clamp(0.0, 1.0);
            }
        }
        Ok(())
    }
}

/// sRGB's white.
const D65: Chromaticity = Chromaticity {
    x: 0.3127,
    y: 0.3290,
};

/// A profile of primaries and an exponent.
fn plain(white: Chromaticity, primaries: ColorPrimaries, gamma: f32) -> ColorProfile {
    let mut profile = ColorProfile::new_srgb();
    let white = XyY {
        x: white.x.into(),
        y: white.y.into(),
        yb: 1.0,
    };
    profile.update_rgb_colorimetry(white, primaries);
    let curve = Some(ToneReprCurve::Parametric(vec![gamma]));
    profile.red_trc.clone_from(&curve);
    profile.green_trc.clone_from(&curve);
    profile.blue_trc = curve;
    profile
}
