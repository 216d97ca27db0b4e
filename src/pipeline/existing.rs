//! What is already where a clip is to go: nothing that the same job has not made is replaced unless
//! that was asked for.

use std::path::Path;

use anyhow::{Result, ensure};

use super::Job;
use crate::clip::metadata::Metadata;
use crate::media::clip::{OutputKind, frame_files, is_taken};
use crate::runtime::Device;
use crate::util::disk::{free_disk, size_text};
use crate::util::show::Show;

impl Job {
    /// Whether what is at `path`, a clip or a film strip, says that it was made from the same.
    ///
    /// # Errors
    /// When the model's files cannot be read any more.
    fn has_made(&self, path: &Path, device: Device) -> Result<bool> {
        if !self.request.metadata {
            return Ok(false);
        }
        match Metadata::read(path) {
            Ok(made) => Ok(made.is_of_same_clip(&self.metadata(device)?)),
            Err(_) => Ok(false),
        }
    }

    /// Whether the clip's name is another's: something is there that was not made from the same.
    ///
    /// # Errors
    /// As [`Self::check_replaces`].
    pub fn is_others(&self, device: Device) -> Result<bool> {
        let output = self.output();
        Ok(output.is_symlink() || is_taken(output) && !self.has_made(output, device)?)
    }

    /// Whether the clip is there, whole and made from the same, and its film strip too.
    ///
    /// # Errors
    /// As [`Self::check_replaces`].
    pub fn is_there(&self, device: Device) -> Result<bool> {
        let strip = self.strip().is_none_or(Path::is_file);
        Ok(strip && self.is_whole() && self.has_made(self.output(), device)?)
    }

    /// Whether there is a file, or as many frames as the clip has.
    pub(crate) fn is_whole(&self) -> bool {
        let output = self.output();
        match OutputKind::from_path(output) {
            Ok(OutputKind::Frames) => {
                frame_files(output).count() == self.settings().frames as usize
            }
            _ => output.is_file(),
        }
    }

    /// Refuses to replace what is at the places of the clip and its strip, unless the same job has
    /// made it: the file says so, or the caller knows that the clip `is_own`.
    ///
    /// # Errors
    /// Names the flag and the file. Also when the disk has no room for the clip, or the model's files
    /// cannot be read any more.
    pub fn check_replaces(&self, device: Device, is_own: bool) -> Result<()> {
        let places = [("--output", Some(self.output())), ("--strip", self.strip())];
        for (flag, path) in places {
            let Some(path) = path else { continue };
            if !self.request.overwrite && !is_own && is_taken(path) {
                ensure!(
                    self.has_made(path, device)?,
                    "{flag} {}: it exists, and was not made by this command\nhint: give another name, \
                     or --overwrite to replace it",
                    path.shown()
                );
            }
        }
        // What cannot be asked may have room.
        let free = free_disk(self.output()).unwrap_or(u64::MAX);
        let need = self.file_bytes();
        ensure!(
            need <= free,
            "--output {}: the clip takes about {}, and the disk has room for {}\nhint: make room, or \
             give another place",
            self.output().shown(),
            size_text(need),
            size_text(free)
        );
        Ok(())
    }

    /// About the bytes of the clip's file, for a clip with little motion.
    fn file_bytes(&self) -> u64 {
        let clip = self.settings();
        let (width, height) = self.frame_size();
        let pixels = u64::from(width) * u64::from(height) * u64::from(clip.frames);
        match OutputKind::from_path(self.output()) {
            Ok(OutputKind::Frames) => pixels,
            Ok(OutputKind::Gif) => pixels / 4,
            _ => pixels / 32,
        }
    }
}
