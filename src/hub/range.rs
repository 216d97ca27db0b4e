//! Some bytes of a file, without the rest.

use std::io::{ErrorKind, Read};
use std::ops::Range;

use anyhow::{Context, Result, anyhow, ensure};
use ureq::Body;
use ureq::http::{Response, StatusCode};

use super::address::header;
use super::http::{Failure, Target};
use super::transfer::{PIECE, parse_range};
use super::{Hub, RemoteFile, RepoId, check};

/// The most bytes of one request; they are held in memory.
const MAX_RANGE: u64 = 16 << 20;

impl Hub {
    /// The bytes `range` of a file. No hash tells whether they are right, unlike those of a whole
    /// file.
    ///
    /// # Errors
    /// When they cannot be fetched, the server sends whole files only, or it is more than 16 MiB.
    pub fn fetch_range(
        &self,
        repo: &RepoId,
        commit: &str,
        file: &RemoteFile,
        range: Range<u64>,
    ) -> Result<Vec<u8>> {
        check(commit, file)?;
        self.allowed(repo, file)?;
        ensure!(
            range.start < range.end
                && range.end <= file.size
                && range.end - range.start <= MAX_RANGE,
            "{}: the bytes {range:?} of {} cannot be asked for",
            file.path,
            file.size
        );
        let url = self.http.file_url(repo, commit, &file.path);
        let target = Target {
            repo,
            file: Some(&file.path),
        };
        self.http.patiently(target, || {
            let end = Some(range.end);
            let response = self.http.file(&url, range.start, end, target)?;
            fits(&response, &range, file.size)
                .with_context(|| target.to_string())
                .map_err(Failure::Stop)?;
            let wanted = range.end - range.start;
            let mut bytes = Vec::new();
            let mut body = response.into_body().into_reader().take(wanted);
            let mut pace = self.http.pace();
            let mut piece = vec![0; PIECE];
            loop {
                let read = match body.read(&mut piece) {
                    Ok(0) => break,
                    Ok(read) => read,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(error) => {
                        return Err(Failure::Again(self.http.interrupted(&error), None));
                    }
                };
                bytes.extend_from_slice(&piece[..read]);
                pace.note(read)
                    .map_err(|error| Failure::Again(error.context(target.to_string()), None))?;
            }
            if u64::try_from(bytes.len()).ok() != Some(wanted) {
                let error = anyhow!("{target}: the connection was closed early");
                return Err(Failure::Again(error, None));
            }
            Ok(bytes)
        })
    }
}

/// Whether an answer begins with the bytes that were asked for.
fn fits(response: &Response<Body>, range: &Range<u64>, size: u64) -> Result<()> {
    let headers = response.headers();
    let told = header(headers, "content-range").unwrap_or("nothing");
    match response.status() {
        StatusCode::PARTIAL_CONTENT => {
            let right = parse_range(told).is_some_and(|(first, last, total)| {
                first == range.start
                    && last == range.end - 1
                    && total.is_none_or(|total| total == size)
            });
            ensure!(
                right,
                "asked for the bytes {range:?} of {size}, the server answers with {told:?}"
            );
        }
        // The whole file, of which the beginning is wanted: the rest is not read.
        StatusCode::OK if range.start == 0 => {
            let length = header(headers, "content-length").map(str::trim);
            ensure!(
                length == Some(size.to_string().as_str()),
                "the hub's listing says {size} bytes, the server's answer has {}",
                length.unwrap_or("no length")
            );
        }
        status => {
            return Err(anyhow!(
                "the server does not send parts of files (it answers {status})"
            ));
        }
    }
    Ok(())
}
