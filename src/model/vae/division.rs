//! A clip that several machines decode: each some of the tiles, or where frames are whole, a band of every
//! frame.
//!
//! What works at the latents' own size, attention included, every machine computes of the whole frame: it is
//! a small part of the work. Above it are convolutions alone. A band is computed with the rows around it that
//! they reach, fewer at every level, and so has the values that it has in the whole frame.

use std::ops::Range;

use mlx_rs::Array;
use mlx_rs::error::Result;
use mlx_rs::ops::indexing::TryIndexOp;

use super::cost::{decode_exchange, decode_share};
use super::{LEVELS, Tiling, VaeConfig};

/// The last convolution, and that of an upsampling, see a row to each side; a residual block has two.
const SEEN: i32 = 1;
const SEEN_BY_BLOCK: i32 = 2;
/// Rows that a convolution computes together: bands that begin between two such groups are rounded as the
/// whole frame is.
const TOGETHER: i32 = 4;
/// The most of the work on one machine that is left to one of several, in hundredths.
const MOST_WORK: u64 = 80;

/// How machines decode a clip together; machine 0 puts it together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Division {
    /// A band of every frame for each.
    Bands(Vec<Band>),
    /// The tiles in turn, for so many machines.
    Tiles(usize),
}

impl Division {
    /// That of a clip of `[frames, rows, columns]` latents on up to so many machines; `None` where it is not
    /// worth it.
    pub fn of(
        config: &VaeConfig,
        tiling: Option<Tiling>,
        grid: [i32; 3],
        machines: usize,
    ) -> Option<Self> {
        let [_, rows, columns] = grid;
        let tiles = tiling.map_or(1, |tiling| tiling.tiles(rows, columns).len());
        let division = match tiles {
            1 if config.tiny => return None,
            1 => Self::Bands(Band::all(config, [rows, columns], machines)),
            _ => Self::Tiles(machines.min(tiles)),
        };
        let [share, whole] = decode_share(config, grid, tiling, &division);
        (100 * share <= MOST_WORK * whole).then_some(division)
    }

    /// What the largest share is of the work, at most four fifths of it, and the bytes that machines exchange;
    /// of what it was made for.
    pub fn cost(&self, config: &VaeConfig, tiling: Option<Tiling>, grid: [i32; 3]) -> (f64, u64) {
        let [share, whole] = decode_share(config, grid, tiling, self);
        let bytes = decode_exchange(config, grid, tiling, self.machines() as u64);
        (share as f64 / whole as f64, bytes)
    }

    /// How many machines have a part.
    pub fn machines(&self) -> usize {
        match self {
            Self::Bands(bands) => bands.len(),
            Self::Tiles(machines) => *machines,
        }
    }
}

/// The rows of a frame that one machine decodes, or the columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Band {
    /// The axis of `[frames, rows, columns, channels]` that it is cut from.
    axis: i32,
    /// In latent rows or columns.
    range: Range<i32>,
    /// How many the frame has.
    extent: i32,
    /// For each level those beside the band that it has to have, in the level's own.
    reach: [i32; LEVELS],
}

impl Band {
    /// Bands of about the same size along the longer side of a frame.
    fn all(config: &VaeConfig, [rows, columns]: [i32; 2], machines: usize) -> Vec<Self> {
        let (axis, extent) = if columns > rows {
            (2, columns)
        } else {
            (1, rows)
        };
        // Their ends are even, so that those of every level are whole groups.
        let pairs = extent / 2;
        let count = i32::try_from(machines)
            .unwrap_or(pairs)
            .clamp(1, pairs.max(1));
        let end = |index: i32| match index == count {
            true => extent,
            false => 2 * (pairs * index / count),
        };
        let reach = reach(config);
        let band = |index| Self {
            axis,
            range: end(index)..end(index + 1),
            extent,
            reach,
        };
        (0..count).map(band).collect()
    }

    /// The axis of `[frames, rows, columns, channels]` that bands are cut from.
    pub(super) fn axis(&self) -> i32 {
        self.axis
    }

    /// `[rows, columns]` of the band in a frame of so many.
    pub(super) fn of_frame(&self, frame: [i32; 2]) -> [i32; 2] {
        self.cut(frame, self.range.len() as i32)
    }

    /// `[rows, columns]` that a level computes of a frame of so many latent ones.
    pub(super) fn of_level(&self, level: usize, frame: [i32; 2]) -> [i32; 2] {
        let frame = frame.map(|side| side << level);
        self.cut(frame, self.seen(level).len() as i32)
    }

    fn cut(&self, mut frame: [i32; 2], length: i32) -> [i32; 2] {
        let [rows, columns] = &mut frame;
        *(if self.axis == 1 { rows } else { columns }) = length;
        frame
    }

    /// What a level has to have, in its own rows or columns.
    fn seen(&self, level: usize) -> Range<i32> {
        let (reach, extent) = (self.reach[level], self.extent << level);
        let (start, end) = (self.range.start << level, self.range.end << level);
        (start - reach).max(0)..(end + reach).min(extent)
    }

    /// A level's input cut to what it has to have of the level before.
    pub(super) fn enter(&self, level: usize, x: &Array) -> Result<Array> {
        let before = match level.checked_sub(1) {
            Some(before) => 2 * self.seen(before).start,
            None => 0,
        };
        let seen = self.seen(level);
        self.slice(x, seen.start - before..seen.end - before)
    }

    /// The last level's output cut to the band itself.
    pub(super) fn leave(&self, x: &Array) -> Result<Array> {
        const LAST: usize = LEVELS - 1;
        let before = self.seen(LAST).start;
        let (start, end) = (self.range.start << LAST, self.range.end << LAST);
        self.slice(x, start - before..end - before)
    }

    fn slice(&self, x: &Array, range: Range<i32>) -> Result<Array> {
        let part = match self.axis {
            1 => x.try_index((.., range))?,
            _ => x.try_index((.., .., range))?,
        };
        let part = part.contiguous()?;
        part.eval()?;
        Ok(part)
    }
}

/// Rows to each side that the values of a band depend on at each level's input, rounded up to whole groups.
fn reach(config: &VaeConfig) -> [i32; LEVELS] {
    let blocks = SEEN_BY_BLOCK * (config.num_res_blocks + 1);
    let mut reach = [0; LEVELS];
    let mut seen = SEEN;
    for level in (1..LEVELS).rev() {
        seen += blocks;
        reach[level] = (seen + TOGETHER - 1) / TOGETHER * TOGETHER;
        // Twice the size by the level below.
        seen = (seen + SEEN + 1) / 2;
    }
    // Its blocks see the whole frame; twice as many are a group at the next.
    reach[0] = (seen + 1) / 2 * 2;
    reach
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::vae::OVERLAP;
    use crate::weights::published;

    #[test]
    fn bands_cover_a_frame_and_have_what_they_see() {
        let config = published::vae();
        assert_eq!(reach(&config), [8, 12, 12, 8]);
        for rows in 2..70 {
            for machines in 1..9 {
                let bands = Band::all(&config, [rows, rows - 1], machines);
                assert!(bands.len() <= machines && (bands[0].axis == 1));
                let mut end = 0;
                for band in &bands {
                    assert!(band.range.start == end && band.range.end > end && end % 2 == 0);
                    end = band.range.end;
                    for level in 1..LEVELS {
                        let [before, here] = [band.seen(level - 1), band.seen(level)];
                        assert!(2 * before.start <= here.start && here.end <= 2 * before.end);
                    }
                }
                assert_eq!(end, rows);
            }
        }
    }

    #[test]
    fn a_clip_is_divided_where_that_is_worth_it() {
        let config = published::vae();
        let of = |tiling, [rows, columns]: [i32; 2], machines| {
            Division::of(&config, tiling, [21, rows, columns], machines)
        };
        let Some(Division::Bands(bands)) = of(None, [60, 104], 4) else {
            panic!("480p in bands");
        };
        assert!(bands.len() == 4 && bands.iter().all(|band| band.axis == 2));
        assert_eq!(bands[1].range, 26..52);
        assert_eq!(
            of(None, [8, 8], 2),
            None,
            "every machine would see all of it"
        );
        assert_eq!(of(None, [60, 104], 1), None);
        let tiling = Some(Tiling {
            tile: [40, 60],
            overlap: OVERLAP,
        });
        assert_eq!(of(tiling, [60, 104], 3), Some(Division::Tiles(3)));
        assert_eq!(of(tiling, [60, 104], 9), Some(Division::Tiles(4)));
        let small = published::small_vae(16);
        assert_eq!(Division::of(&small, None, [21, 60, 104], 2), None);
    }
}
