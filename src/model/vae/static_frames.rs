//! When an encoder that sees blank chunks has settled.
//!
//! The conditioning video is a picture and then black. Convolutions reach back a few frames, so
//! some chunks after the picture nothing that a level sees changes any more, and what it made of
//! the last chunk is what it would make of the next one, bit by bit: the same kernels on the same
//! values. From then on it is reused. The caches of the level's convolutions hold what they would
//! hold, so another picture may follow.

use mlx_rs::Array;

use super::{TEMPORAL_STRIDE, VaeConfig};

/// For each stage of the encoder (the levels above the latents' size, then the rest as one): the
/// chunk whose output, and that of every later one, all blank since chunk 0, no longer changes.
///
/// A layer's input frames are numbered on, the last frame of chunk 0 being frame 0. `settled` is the
/// first of those that every later one equals which has the same place in its chunk. A causal
/// convolution of 3 frames sees two frames back; also it computes the first frames of chunk 1
/// apart, having too little history for one product. A shortcut around a level sees no farther back than
/// the level.
pub fn static_chunks(config: &VaeConfig) -> Vec<i32> {
    if config.tiny {
        // Each block sees one frame back. At level 0, of two frames a chunk, all are alike from frame 2 on, after
        // its three blocks from frame 5, so level 1's from 3; two levels of three blocks follow.
        return vec![6, 9];
    }
    let mut frames = TEMPORAL_STRIDE;
    let mut settled = 1;
    let convolve = |settled: &mut i32, frames: i32, times: i32| {
        for _ in 0..times {
            *settled = (*settled + 2).max(frames + 1);
        }
    };
    // Chunk n is frames (n - 1) * frames + 1 to n * frames.
    let chunk = |settled: i32, frames: i32| (settled - 1 + frames - 1) / frames + 1;
    let mut chunks = Vec::new();
    convolve(&mut settled, frames, 1);
    for &temporal in &config.temperal_downsample {
        convolve(&mut settled, frames, 2 * config.num_res_blocks);
        if temporal {
            // Frame k is made of 2k - 2, 2k - 1 and 2k.
            settled = (settled + 1) / 2 + 1;
            frames /= 2;
        }
        chunks.push(chunk(settled, frames));
    }
    // The last level, two blocks around the attention, the last convolution.
    convolve(&mut settled, frames, 2 * config.num_res_blocks + 5);
    chunks.push(chunk(settled, frames));
    chunks
}

/// Blank chunks in a row, and what the deepest settled stage makes of them.
#[derive(Clone, Debug, Default)]
pub(super) struct StaticFrames {
    blank: i32,
    output: Option<(usize, Array)>,
}

impl StaticFrames {
    /// The next chunk comes, blank or not.
    pub(super) fn next(&mut self, blank: bool) {
        self.blank = if blank { self.blank + 1 } else { 0 };
        if !blank {
            self.output = None;
        }
    }

    /// The deepest stage that makes the same of this chunk as of the last one, and what.
    pub(super) fn reused(&self) -> Option<(usize, Array)> {
        self.output.clone()
    }

    /// Keeps what stage `stage`, which settles with chunk `settling`, has made of this chunk.
    pub(super) fn keep(&mut self, stage: usize, settling: i32, output: &Array) {
        if self.blank == settling {
            self.output = Some((stage, output.clone()));
        }
    }
}
