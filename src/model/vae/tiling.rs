//! Frames in tiles, for when one does not fit in memory whole.
//!
//! What works at the latents' own size, attention included, always sees whole frames: it is
//! small. The levels above it are convolutions, and those go tile by tile. A tile runs through
//! the whole clip before the next one starts, so the feature caches of one tile exist at a time;
//! the other order would keep those of all tiles, which are the larger half of a whole frame's
//! memory. The price is a buffer on the host for the clip's pixels, at 2 bytes a value.

use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use half::f16;
use mlx_rs::Array;
use mlx_rs::error::Result as MlxResult;
use mlx_rs::memory::clear_cache;
use mlx_rs::ops::concatenate;
use mlx_rs::ops::indexing::TryIndexOp;
use serde::{Deserialize, Serialize};

use super::{Chunk, Division, FeatureCache, TEMPORAL_STRIDE, VaeDecoder, VaeEncoder};
use crate::model::MemoryPlan;
use crate::runtime::to_host;

/// How frames are cut into tiles, in latent rows and columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tiling {
    /// Rows and columns of a tile.
    pub tile: [i32; 2],
    /// The least that neighbours share; they are blended there.
    pub overlap: i32,
}

/// Where a tile lies, in latent rows and columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tile {
    /// From row, to row.
    pub rows: Range<i32>,
    /// From column, to column.
    pub columns: Range<i32>,
}

impl Tile {
    /// Its latent rows and columns.
    fn sides(&self) -> [i32; 2] {
        [&self.rows, &self.columns].map(|range| range.end - range.start)
    }
}

impl Tiling {
    /// Refuses tiles that advance by nothing.
    ///
    /// # Errors
    /// When the overlap is negative or a tile is not larger than it.
    pub fn validate(&self) -> Result<()> {
        ensure!(
            self.overlap >= 0 && self.tile.iter().all(|&side| side > self.overlap),
            "tiles of {} x {} that overlap by {}: expected tiles larger than the overlap",
            self.tile[0],
            self.tile[1],
            self.overlap
        );
        Ok(())
    }

    /// The tiles of a frame, row by row.
    pub fn tiles(&self, rows: i32, columns: i32) -> Vec<Tile> {
        let (rows, columns) = self.spans(rows, columns);
        rows.iter()
            .flat_map(|rows| {
                columns.iter().map(|columns| Tile {
                    rows: rows.clone(),
                    columns: columns.clone(),
                })
            })
            .collect()
    }

    fn spans(&self, rows: i32, columns: i32) -> (Vec<Range<i32>>, Vec<Range<i32>>) {
        (
            spans(rows, self.tile[0], self.overlap),
            spans(columns, self.tile[1], self.overlap),
        )
    }
}

/// The fewest tiles that cover `extent` and share at least `overlap`, spread evenly: all as wide
/// as `tile` (or as `extent`, if that is less), the last ending where the frame does.
fn spans(extent: i32, tile: i32, overlap: i32) -> Vec<Range<i32>> {
    let (extent, tile, overlap) = (i64::from(extent), i64::from(tile), i64::from(overlap));
    if tile >= extent {
        return std::iter::once(0..extent as i32).collect();
    }
    let step = (tile - overlap).max(1);
    let gaps = (extent - tile + step - 1) / step;
    (0..=gaps)
        .map(|i| {
            let start = i * (extent - tile) / gaps;
            start as i32..(start + tile) as i32
        })
        .collect()
}

/// Per span and position in it, `scale` of them to a latent row or column: how much the tile
/// counts there. The weights of all spans at a position add up to 1; each falls off to nothing
/// towards its edges inside the frame, where its convolutions saw zeros in place of neighbours.
fn weights(spans: &[Range<i32>], scale: i32) -> Vec<Vec<f32>> {
    let raw: Vec<Vec<f64>> = (0..spans.len())
        .map(|i| {
            let span = &spans[i];
            let fade = |overlap: i32, distance: f64| {
                let u = (distance / f64::from((overlap * scale).max(1))).min(1.0);
                (u * std::f64::consts::FRAC_PI_2).sin().powi(2)
            };
            (0..(span.end - span.start) * scale)
                .map(|at| {
                    let before = f64::from(at) + 0.5;
                    let after = f64::from((span.end - span.start) * scale) - before;
                    let mut weight = 1.0;
                    if i > 0 {
                        weight *= fade(spans[i - 1].end - span.start, before);
                    }
                    if let Some(next) = spans.get(i + 1) {
                        weight *= fade(span.end - next.start, after);
                    }
                    weight
                })
                .collect()
        })
        .collect();
    let extent = spans.last().map_or(0, |span| span.end * scale) as usize;
    let mut totals = vec![0.0; extent];
    for (span, raw) in spans.iter().zip(&raw) {
        for (total, weight) in totals[(span.start * scale) as usize..].iter_mut().zip(raw) {
            *total += weight;
        }
    }
    let normalised = |(span, raw): (&Range<i32>, &Vec<f64>)| {
        let totals = &totals[(span.start * scale) as usize..];
        raw.iter()
            .zip(totals)
            .map(|(weight, total)| (weight / total) as f32)
            .collect()
    };
    spans.iter().zip(&raw).map(normalised).collect()
}

/// A number that a canvas is made of.
trait Sample: Copy + Default {
    fn plus(self, value: f32) -> Self;
    fn value(self) -> f32;
}

impl Sample for f32 {
    fn plus(self, value: f32) -> Self {
        self + value
    }
    fn value(self) -> f32 {
        self
    }
}

impl Sample for f16 {
    fn plus(self, value: f32) -> Self {
        Self::from_f32(self.to_f32() + value)
    }
    fn value(self) -> f32 {
        self.to_f32()
    }
}

/// A clip on the host that tiles are added to: per chunk `[frames, height, width, channels]`.
struct Canvas<T> {
    chunks: Vec<Vec<T>>,
    width: usize,
    channels: usize,
}

impl<T: Sample> Canvas<T> {
    /// Adds a tile's `values` `[frames, rows, columns, channels]` to a chunk of frames `height`
    /// high, from `(top, left)` on, times the weight of its row and of its column.
    fn add(
        &mut self,
        chunk: usize,
        values: &[f32],
        height: usize,
        (top, left): (usize, usize),
        [rows, columns]: [&[f32]; 2],
    ) {
        let tile_row = columns.len() * self.channels;
        let frame = height * self.width * self.channels;
        let chunk = &mut self.chunks[chunk];
        if chunk.is_empty() {
            let frames = values.len() / (rows.len() * tile_row);
            *chunk = vec![T::default(); frames * frame];
        }
        for (tile, frame) in values
            .chunks_exact(rows.len() * tile_row)
            .zip(chunk.chunks_exact_mut(frame))
        {
            for (y, (values, row)) in tile.chunks_exact(tile_row).zip(rows).enumerate() {
                let start = ((top + y) * self.width + left) * self.channels;
                let target = &mut frame[start..start + tile_row];
                for ((values, target), column) in values
                    .chunks_exact(self.channels)
                    .zip(target.chunks_exact_mut(self.channels))
                    .zip(columns)
                {
                    let weight = row * column;
                    for (value, target) in values.iter().zip(target) {
                        *target = target.plus(weight * value);
                    }
                }
            }
        }
    }

    /// A finished chunk, which leaves the canvas.
    fn take(&mut self, chunk: usize, height: usize) -> Array {
        let chunk = std::mem::take(&mut self.chunks[chunk]);
        let values: Vec<f32> = chunk.iter().map(|v| v.value()).collect();
        let frames = values.len() / (height * self.width * self.channels);
        let shape = [frames, height, self.width, self.channels].map(|side| side as i32);
        Array::from_slice(&values, &shape)
    }
}

/// Calls of `advance` for a clip of that many latent frames, rows and columns.
pub fn steps(tiling: Option<Tiling>, [frames, rows, columns]: [i32; 3]) -> usize {
    let tiles = tiling.map_or(1, |tiling| tiling.tiles(rows, columns).len());
    frames as usize * tiles
}

impl VaeDecoder {
    /// Decodes a clip's latents `[z_dim, frames, height, width]`, not normalised, and gives
    /// `emit` the pixels of each latent frame in turn, as
    /// [`DecoderStream::push`](super::DecoderStream::push) makes them. Whole frames stream;
    /// with `tiling` the first come when the last tile is done. What `others` decode is taken from them.
    ///
    /// # Errors
    /// When the tiling advances by nothing, MLX fails, or `emit`, `advance` or another machine does.
    pub fn decode(
        &self,
        latents: &Array,
        memory: &MemoryPlan,
        mut others: Option<Others<'_>>,
        advance: &mut dyn FnMut() -> Result<()>,
        emit: &mut dyn FnMut(&Array) -> Result<()>,
    ) -> Result<()> {
        let [frames, rows, columns] = [1, 2, 3].map(|axis| latents.dim(axis));
        let Some((tiling, tiles)) = useful(memory.decode_tiling, rows, columns)? else {
            let mut cache = self.new_cache(memory);
            for i in 0..frames {
                let features = self.features(&frame(latents, i)?, &mut cache)?;
                let pixels = match &mut others {
                    Some(others) => self.bands(&features, [rows, columns], others, &mut cache)?,
                    None => self.pixels(features, &mut cache)?,
                };
                emit(&pixels)?;
                advance()?;
            }
            return Ok(());
        };

        let features = self.all_features(latents, memory)?;
        let side = self.side();
        let (row_spans, column_spans) = tiling.spans(rows, columns);
        let row_weights = weights(&row_spans, side);
        let column_weights = weights(&column_spans, side);
        let height = (rows * side) as usize;
        let mut canvas = Canvas::<f16> {
            chunks: vec![Vec::new(); frames as usize],
            width: (columns * side) as usize,
            channels: 3,
        };
        let machines = others
            .as_ref()
            .map_or(1, |others| others.division.machines());
        for (round, tiles) in tiles.chunks(machines).enumerate() {
            let mut cache = self.new_cache(memory);
            for (i, features) in features.iter().enumerate() {
                for (machine, tile) in tiles.iter().enumerate() {
                    let index = round * machines + machine;
                    let weights = [
                        &row_weights[index / column_spans.len()][..],
                        &column_weights[index % column_spans.len()][..],
                    ];
                    let origin = (
                        (tile.rows.start * side) as usize,
                        (tile.columns.start * side) as usize,
                    );
                    let frames = if i == 0 { 1 } else { TEMPORAL_STRIDE };
                    let pixels = match (&mut others, machine) {
                        (Some(others), 1..) => others.take(machine, tile.sides(), frames, side)?,
                        _ => to_host(&self.tile(features, tile, &mut cache)?)?,
                    };
                    canvas.add(i, &pixels, height, origin, weights);
                    advance()?;
                }
            }
        }
        drop(features);
        for i in 0..frames as usize {
            emit(&canvas.take(i, height))?;
        }
        Ok(())
    }

    /// Decodes what is `machine`'s of a clip that several decode, and gives `emit` the pixels of each of its
    /// parts of a latent frame, in the order in which machine 0 takes them.
    ///
    /// # Errors
    /// As [`Self::decode`].
    pub fn decode_share(
        &self,
        latents: &Array,
        memory: &MemoryPlan,
        division: &Division,
        machine: usize,
        emit: &mut dyn FnMut(&[f32]) -> Result<()>,
    ) -> Result<()> {
        let [frames, rows, columns] = [1, 2, 3].map(|axis| latents.dim(axis));
        match division {
            Division::Bands(bands) => {
                let band = bands.get(machine).context("it has no band")?;
                let mut cache = self.new_cache(memory);
                for i in 0..frames {
                    let features = self.features(&frame(latents, i)?, &mut cache)?;
                    emit(&to_host(&self.band(&features, band, &mut cache)?)?)?;
                }
            }
            Division::Tiles(machines) => {
                let tiles = useful(memory.decode_tiling, rows, columns)?;
                let (_, tiles) = tiles.context("it has no tiles")?;
                let features = self.all_features(latents, memory)?;
                for tile in tiles.iter().skip(machine).step_by((*machines).max(1)) {
                    let mut cache = self.new_cache(memory);
                    for features in &features {
                        emit(&to_host(&self.tile(features, tile, &mut cache)?)?)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The features of every frame, for tiles to be cut from.
    fn all_features(&self, latents: &Array, memory: &MemoryPlan) -> Result<Vec<Array>> {
        let mut cache = self.new_cache(memory);
        let features = (0..latents.dim(1))
            .map(|i| self.features(&frame(latents, i)?, &mut cache))
            .collect::<MlxResult<Vec<_>>>()?;
        drop(cache);
        // Kept buffers of these sizes serve no tile.
        clear_cache()?;
        Ok(features)
    }

    fn tile(&self, features: &Array, tile: &Tile, cache: &mut FeatureCache) -> MlxResult<Array> {
        let features = features.try_index((.., tile.rows.clone(), tile.columns.clone()))?;
        self.pixels(features, cache)
    }

    /// A frame of which every machine has decoded a band.
    fn bands(
        &self,
        features: &Array,
        frame: [i32; 2],
        others: &mut Others<'_>,
        cache: &mut FeatureCache,
    ) -> Result<Array> {
        let Division::Bands(bands) = others.division else {
            bail!("tiles of whole frames");
        };
        let Some((own, rest)) = bands.split_first() else {
            bail!("no bands");
        };
        let mut parts = vec![self.band(features, own, cache)?];
        let frames = parts[0].dim(0);
        for (band, machine) in rest.iter().zip(1..) {
            let sides = band.of_frame(frame);
            let values = others.take(machine, sides, frames, self.side())?;
            let [rows, columns] = sides.map(|side| side * self.side());
            parts.push(Array::from_slice(&values, &[frames, rows, columns, 3]));
        }
        Ok(concatenate(&parts, own.axis())?)
    }
}

/// The machines that decode parts of a clip, as machine 0 sees them.
pub struct Others<'a> {
    /// Who has which parts.
    pub division: &'a Division,
    /// The pixels of a machine's next part.
    pub take: &'a mut dyn FnMut(usize) -> Result<Vec<f32>>,
}

impl Others<'_> {
    /// The next part, of `[rows, columns]` latents of a chunk of so many frames.
    fn take(
        &mut self,
        machine: usize,
        sides: [i32; 2],
        frames: i32,
        side: i32,
    ) -> Result<Vec<f32>> {
        let values = (self.take)(machine)?;
        let [rows, columns] = sides.map(|latents| (latents * side) as usize);
        let expected = frames as usize * rows * columns * 3;
        ensure!(
            values.len() == expected,
            "machine {machine} has decoded {} values; expected {expected}",
            values.len()
        );
        Ok(values)
    }
}

/// Latent frame `i`.
fn frame(latents: &Array, i: i32) -> MlxResult<Array> {
    latents.try_index((.., i..i + 1))
}

impl VaeEncoder {
    /// Encodes a clip of `frames` latent frames to `[z_dim, frames, rows, columns]`, not
    /// normalised. `chunk` gives the chunk of a latent frame, and is asked for some more than once.
    ///
    /// # Errors
    /// When the first chunk is blank, the tiling advances by nothing, or MLX or `advance` fails.
    pub fn encode(
        &self,
        frames: i32,
        chunk: &dyn Fn(i32) -> MlxResult<Chunk>,
        memory: &MemoryPlan,
        advance: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Array> {
        let chunk = |i: i32| self.chunk(i, frames, chunk);
        let Chunk::Pixels(first) = chunk(0)? else {
            bail!("a clip's first chunk cannot be blank");
        };
        let side = self.side();
        let [rows, columns] = [1, 2].map(|axis| first.dim(axis) / side);
        drop(first);
        let Some((tiling, tiles)) = useful(memory.encode_tiling, rows, columns)? else {
            let mut stream = self.stream(memory);
            let mut means = Vec::new();
            for i in 0..frames {
                means.push(stream.push(&chunk(i)?)?);
                advance()?;
            }
            return Ok(concatenate(&means, 1)?);
        };

        let (row_spans, column_spans) = tiling.spans(rows, columns);
        let row_weights = weights(&row_spans, 1);
        let column_weights = weights(&column_spans, 1);
        let mut canvas = Canvas::<f32> {
            chunks: vec![Vec::new(); frames as usize],
            width: columns as usize,
            channels: self.feature_channels() as usize,
        };
        let pixels_of = |range: &Range<i32>| range.start * side..range.end * side;
        for (index, tile) in tiles.iter().enumerate() {
            let weights = [
                &row_weights[index / column_spans.len()][..],
                &column_weights[index % column_spans.len()][..],
            ];
            let origin = (tile.rows.start as usize, tile.columns.start as usize);
            let mut cache = self.new_cache(memory);
            for i in 0..frames {
                let chunk = match chunk(i)? {
                    Chunk::Pixels(pixels) => Chunk::Pixels(pixels.try_index((
                        ..,
                        pixels_of(&tile.rows),
                        pixels_of(&tile.columns),
                    ))?),
                    Chunk::Blank => Chunk::Blank,
                };
                cache.static_frames.next(matches!(chunk, Chunk::Blank));
                let features = to_host(&self.features(&chunk, &mut cache)?)?;
                canvas.add(i as usize, &features, rows as usize, origin, weights);
                advance()?;
            }
        }
        clear_cache()?;
        let mut cache = self.new_cache(memory);
        let means = (0..frames)
            .map(|i| {
                cache.static_frames.next(matches!(chunk(i)?, Chunk::Blank));
                self.mean(canvas.take(i as usize, rows as usize), &mut cache)
            })
            .collect::<MlxResult<Vec<_>>>()?;
        Ok(concatenate(&means, 1)?)
    }
}

/// The tiling and its tiles, when there is more than one.
fn useful(tiling: Option<Tiling>, rows: i32, columns: i32) -> Result<Option<(Tiling, Vec<Tile>)>> {
    let Some(tiling) = tiling else {
        return Ok(None);
    };
    tiling.validate()?;
    let tiles = tiling.tiles(rows, columns);
    Ok((tiles.len() > 1).then_some((tiling, tiles)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_alike_cover_the_frame_and_share_enough() {
        for extent in 1..60 {
            for tile in 2..24 {
                for overlap in 0..tile {
                    let spans = spans(extent, tile, overlap);
                    let label = format!("{extent} by {tile}, {overlap}: {spans:?}");
                    assert_eq!(spans[0].start, 0, "{label}");
                    assert_eq!(spans[spans.len() - 1].end, extent, "{label}");
                    for span in &spans {
                        assert_eq!(span.end - span.start, tile.min(extent), "{label}");
                    }
                    for pair in spans.windows(2) {
                        assert!(pair[0].start < pair[1].start, "{label}");
                        assert!(pair[0].end - pair[1].start >= overlap, "{label}");
                    }
                    // One tile less would not do.
                    let fewer = spans.len() as i32 - 1;
                    assert!(
                        fewer == 0 || fewer * (tile - overlap) + overlap < extent,
                        "{label}"
                    );
                }
            }
        }
    }

    #[test]
    fn weights_add_up_to_one_and_fade_at_inner_edges_only() {
        for (extent, tile, overlap, scale) in [(28, 12, 4, 8), (21, 11, 8, 1), (9, 7, 6, 8)] {
            let spans = spans(extent, tile, overlap);
            assert!(spans.len() > 1);
            let weights = weights(&spans, scale);
            let mut totals = vec![0.0; (extent * scale) as usize];
            for (span, weights) in spans.iter().zip(&weights) {
                for (at, weight) in weights.iter().enumerate() {
                    assert!((0.0..=1.0).contains(weight));
                    totals[(span.start * scale) as usize + at] += weight;
                }
                // A step would be a seam.
                let steepest = 2.5 / (overlap * scale) as f32;
                for pair in weights.windows(2) {
                    assert!((pair[1] - pair[0]).abs() <= steepest, "{pair:?}");
                }
            }
            assert!(totals.iter().all(|t| (t - 1.0_f32).abs() < 1e-6));
            let last = weights.len() - 1;
            assert_eq!(weights[0][0], 1.0);
            assert_eq!(weights[last].last(), Some(&1.0));
            assert!(weights[0].last() < Some(&0.2) && weights[last][0] < 0.2);
        }
    }

    #[test]
    fn a_canvas_puts_tiles_where_they_belong() {
        let mut canvas = Canvas::<f32> {
            chunks: vec![Vec::new()],
            width: 3,
            channels: 1,
        };
        let half: &[f32] = &[1.0, 0.5];
        canvas.add(0, &[1.0, 2.0, 3.0, 4.0], 2, (0, 0), [&[1.0, 1.0], half]);
        canvas.add(
            0,
            &[2.0, 5.0, 4.0, 6.0],
            2,
            (0, 1),
            [&[1.0, 1.0], &[0.5, 1.0]],
        );
        let whole = to_host(&canvas.take(0, 2)).unwrap();
        assert_eq!(whole, [1.0, 2.0, 5.0, 3.0, 4.0, 6.0]);
    }

    #[test]
    fn tiles_that_do_not_advance_are_refused() {
        for (tile, overlap) in [([4, 8], 4), ([8, 3], 4), ([8, 8], -1)] {
            assert!(Tiling { tile, overlap }.validate().is_err());
        }
    }
}
