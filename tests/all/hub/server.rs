//! A hub on 127.0.0.1: listings, files, redirects to a second port that plays the content
//! server, ranges, and faults on demand.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

pub const REPO: &str = "owner/model";
pub const COMMIT: &str = "206a9ee1b7bfaaf8f7e4d81335650533490646a3";

/// What goes wrong when a file's content is asked for.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The connection is cut after so many bytes.
    Cut(usize),
    /// As `Cut`, without a length in the answer's head.
    CutUntold(usize),
    /// One byte is wrong.
    Corrupt,
    /// The whole file whatever is asked for.
    IgnoreRange,
    /// The whole file, cut after so many bytes, whatever is asked for.
    IgnoreRangeAndCut(usize),
    /// The range one byte before the one that was asked for, if one was.
    LieAboutRange,
    /// The right bytes as the answer to a range, which is given as this.
    Told(&'static str),
    /// 416, if a range was asked for.
    NoRange,
    /// More bytes than the file has.
    TooLong,
    /// So many bytes, then silence.
    Stall(usize),
    /// Another status, with headers.
    Status(u16, &'static str),
    /// A redirect to this place.
    Redirect(String),
}

/// A request as it came in.
#[derive(Clone, Debug)]
pub struct Request {
    pub content_server: bool,
    pub path: String,
    pub authorization: Option<String>,
    pub range: Option<String>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, (Vec<u8>, bool)>,
    /// Faults by path, one for each request; the last one stays when `stuck`.
    faults: BTreeMap<String, VecDeque<Fault>>,
    stuck: bool,
    log: Vec<Request>,
    token: Option<String>,
    listing: Option<String>,
    /// The commit that the branch is, unless it is the usual one.
    commit: Option<String>,
    /// The pause after each piece of a body.
    pause: Option<Duration>,
    /// Bytes of bodies that were sent.
    served: Arc<AtomicU64>,
}

pub struct Server {
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    ports: [u16; 2],
}

impl Server {
    pub fn new() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = [0, 1].map(|i: usize| listeners[i].local_addr().unwrap().port());
        for (content_server, listener) in [false, true].into_iter().zip(listeners) {
            let (state, stop) = (Arc::clone(&state), Arc::clone(&stop));
            thread::spawn(move || {
                for stream in listener.incoming() {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let (Ok(stream), state) = (stream, Arc::clone(&state)) else {
                        continue;
                    };
                    let content_port = ports[1];
                    // A client that hangs up is part of the game.
                    thread::spawn(move || {
                        drop(serve(stream, &state, content_server, content_port))
                    });
                }
            });
        }
        Self { state, stop, ports }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports[0])
    }

    pub fn content_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports[1])
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a file that is kept in large-file storage: fetched by redirect, known by its SHA-256.
    pub fn large(&self, path: &str, content: &[u8]) {
        self.state()
            .files
            .insert(path.to_owned(), (content.to_vec(), true));
    }

    /// Adds a file that git keeps.
    pub fn small(&self, path: &str, content: &[u8]) {
        self.state()
            .files
            .insert(path.to_owned(), (content.to_vec(), false));
    }

    /// The next requests for the content of `path` go wrong like this, one each.
    pub fn faults(&self, path: &str, faults: &[Fault]) {
        let faults = faults.iter().cloned().collect();
        self.state().faults.insert(path.to_owned(), faults);
    }

    /// As [`Self::faults`]; the last one stays.
    pub fn stuck(&self, path: &str, faults: &[Fault]) {
        self.faults(path, faults);
        self.state().stuck = true;
    }

    /// Only who has this token is let in.
    pub fn require(&self, token: &str) {
        self.state().token = Some(token.to_owned());
    }

    /// The listing is this text.
    pub fn listing(&self, text: &str) {
        self.state().listing = Some(text.to_owned());
    }

    /// The branch is another commit.
    pub fn commit(&self, commit: &str) {
        self.state().commit = Some(commit.to_owned());
    }

    /// Bodies come slowly: a pause after every 16 KiB.
    pub fn slow(&self, pause: Duration) {
        self.state().pause = Some(pause);
    }

    /// Bytes of bodies sent since the last call.
    pub fn served(&self) -> u64 {
        self.state().served.swap(0, Ordering::Relaxed)
    }

    /// The requests since the last call.
    pub fn log(&self) -> Vec<Request> {
        std::mem::take(&mut self.state().log)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for port in self.ports {
            drop(TcpStream::connect(("127.0.0.1", port)));
        }
    }
}

pub fn sha256(content: &[u8]) -> String {
    Sha256::digest(content)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

pub fn git_blob(content: &[u8]) -> String {
    let head = format!("blob {}\0", content.len());
    let hash = Sha1::new()
        .chain_update(head)
        .chain_update(content)
        .finalize();
    hash.iter().map(|b| format!("{b:02x}")).collect()
}

/// Answers one request and closes.
fn serve(
    stream: TcpStream,
    state: &Mutex<State>,
    content_server: bool,
    content_port: u16,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut words = first.split_whitespace();
    let head_only = words.next() == Some("HEAD");
    let path = decode(words.next().unwrap_or_default());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.insert(name.to_lowercase(), value.trim().to_owned()),
            None => break,
        };
    }
    let authorization = headers.get("authorization").cloned();
    let range = headers.get("range").cloned();
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    state.log.push(Request {
        content_server,
        path: path.clone(),
        authorization: authorization.clone(),
        range: range.clone(),
    });
    let commit = state.commit.clone().unwrap_or_else(|| COMMIT.to_owned());
    let mut answer = Answer {
        stream,
        head_only,
        pause: state.pause,
        served: Arc::clone(&state.served),
    };
    if content_server {
        let Some(file) = path
            .strip_prefix("/content/")
            .and_then(|p| p.split_once("?sig="))
        else {
            return answer.plain(404, "", b"");
        };
        let content = state.files[file.0].0.clone();
        let fault = next_fault(&mut state, file.0);
        drop(state);
        return answer.file(&content, range.as_deref(), fault, "");
    }
    if let Some(token) = &state.token {
        let wanted = format!("Bearer {token}");
        match authorization {
            Some(given) if given == wanted => {}
            Some(_) => {
                let said = "X-Error-Message: Invalid credentials\r\n";
                return answer.plain(401, said, b"");
            }
            None => return answer.plain(401, "", b""),
        }
    }
    let api = format!("/api/models/{REPO}/revision/");
    if let Some(revision) = path.strip_prefix(&api) {
        let (revision, query) = revision.split_once('?').unwrap_or((revision, ""));
        if !["main", &commit].contains(&revision) {
            return answer.plain(404, "X-Error-Code: RevisionNotFound\r\n", b"");
        }
        let fault = next_fault(&mut state, "listing");
        let text = match &state.listing {
            Some(text) => text.clone(),
            None => listing(&state, &commit, query).to_string(),
        };
        drop(state);
        return answer.file(
            text.as_bytes(),
            None,
            fault,
            "Content-Type: application/json\r\n",
        );
    }
    let found = [commit.as_str(), "main"]
        .iter()
        .find_map(|revision| path.strip_prefix(&format!("/{REPO}/resolve/{revision}/")));
    let Some(file) = found else {
        return answer.plain(404, "X-Error-Code: RepoNotFound\r\n", b"");
    };
    let Some((content, large)) = state.files.get(file).cloned() else {
        let head = format!("X-Error-Code: EntryNotFound\r\nX-Repo-Commit: {commit}\r\n");
        return answer.plain(404, &head, b"");
    };
    if large {
        let head = format!(
            "Location: http://127.0.0.1:{content_port}/content/{}?sig=secret\r\n\
             X-Repo-Commit: {commit}\r\nX-Linked-Etag: \"{}\"\r\nX-Linked-Size: {}\r\n\
             X-Xet-Hash: {}\r\nETag: \"other\"\r\n",
            encode(file),
            sha256(&content),
            content.len(),
            "0".repeat(64),
        );
        return answer.plain(302, &head, b"Found");
    }
    let fault = next_fault(&mut state, file);
    drop(state);
    let etag = git_blob(&content);
    let head = format!("X-Repo-Commit: {commit}\r\nETag: \"{etag}\"\r\n");
    answer.file(&content, range.as_deref(), fault, &head)
}

fn listing(state: &State, commit: &str, query: &str) -> Value {
    let blobs = query.contains("blobs=true");
    let file = |(path, (content, large)): (&String, &(Vec<u8>, bool))| {
        let mut entry = json!({ "rfilename": path });
        if blobs {
            entry["size"] = json!(content.len());
            entry["blobId"] = json!(git_blob(content));
        }
        if blobs && *large {
            entry["lfs"] = json!({
                "sha256": sha256(content), "size": content.len(), "pointerSize": 134
            });
        }
        entry
    };
    let siblings: Vec<Value> = state.files.iter().map(file).collect();
    json!({ "id": REPO, "modelId": REPO, "sha": commit, "private": false, "siblings": siblings })
}

fn next_fault(state: &mut State, path: &str) -> Option<Fault> {
    let stuck = state.stuck;
    let faults = state.faults.get_mut(path)?;
    if stuck && faults.len() == 1 {
        return faults.front().cloned();
    }
    faults.pop_front()
}

struct Answer {
    stream: TcpStream,
    head_only: bool,
    pause: Option<Duration>,
    served: Arc<AtomicU64>,
}

impl Answer {
    fn plain(&mut self, status: u16, headers: &str, body: &[u8]) -> std::io::Result<()> {
        let length = format!("Content-Length: {}\r\n", body.len());
        self.head(status, &format!("{headers}{length}"))?;
        if self.head_only {
            Ok(())
        } else {
            self.body(body)
        }
    }

    fn body(&mut self, body: &[u8]) -> std::io::Result<()> {
        for piece in body.chunks(16 << 10) {
            self.stream.write_all(piece)?;
            self.served.fetch_add(piece.len() as u64, Ordering::Relaxed);
            if let Some(pause) = self.pause {
                thread::sleep(pause);
            }
        }
        Ok(())
    }

    fn head(&mut self, status: u16, headers: &str) -> std::io::Result<()> {
        let head = format!("HTTP/1.1 {status} Status\r\nConnection: close\r\n{headers}\r\n");
        self.stream.write_all(head.as_bytes())
    }

    fn file(
        &mut self,
        content: &[u8],
        range: Option<&str>,
        fault: Option<Fault>,
        headers: &str,
    ) -> std::io::Result<()> {
        let asked: Option<(usize, usize)> = range.and_then(|range| {
            let (from, last) = range.strip_prefix("bytes=")?.split_once('-')?;
            let end = match last {
                "" => content.len(),
                last => last.parse::<usize>().ok()? + 1,
            };
            Some((from.parse().ok()?, end))
        });
        let (start, end) = asked.unwrap_or((0, content.len()));
        let start = start.min(content.len());
        let mut body = content[start..end.clamp(start, content.len())].to_vec();
        let mut status = if asked.is_some() { 206 } else { 200 };
        let mut told = start;
        let mut length = format!("Content-Length: {}\r\n", body.len());
        let (mut keep, mut stall) = (body.len(), false);
        let mut given = None;
        match fault {
            None => {}
            Some(Fault::Cut(at)) => keep = at,
            Some(Fault::CutUntold(at)) => (keep, length) = (at, String::new()),
            Some(Fault::Corrupt) => body[0] ^= 1,
            Some(Fault::IgnoreRange | Fault::IgnoreRangeAndCut(_)) => {
                if let Some(Fault::IgnoreRangeAndCut(at)) = fault {
                    keep = at;
                } else {
                    keep = content.len();
                }
                (status, body) = (200, content.to_vec());
                length = format!("Content-Length: {}\r\n", body.len());
            }
            Some(Fault::LieAboutRange) if start > 0 => {
                told = start - 1;
                body = content[told..content.len() - 1].to_vec();
            }
            Some(Fault::LieAboutRange) => {}
            Some(Fault::Told(range)) => (status, given) = (206, Some(range)),
            Some(Fault::NoRange) if asked.is_some() => {
                return self.plain(
                    416,
                    &format!("Content-Range: bytes */{}\r\n", content.len()),
                    b"",
                );
            }
            Some(Fault::NoRange) => {}
            Some(Fault::TooLong) => {
                body.extend_from_slice(b"more");
                (keep, length) = (body.len(), String::new());
            }
            Some(Fault::Stall(at)) => (keep, stall) = (at, true),
            Some(Fault::Status(code, head)) => return self.plain(code, head, b""),
            Some(Fault::Redirect(to)) => {
                return self.plain(307, &format!("Location: {to}\r\n"), b"");
            }
        }
        let mut head = format!("{headers}{length}Accept-Ranges: bytes\r\n");
        if status == 206 {
            let (last, size) = ((told + body.len()).saturating_sub(1), content.len());
            let range = format!("bytes {told}-{last}/{size}");
            let range = given.unwrap_or(&range);
            head.push_str(&format!("Content-Range: {range}\r\n"));
        }
        self.head(status, &head)?;
        if self.head_only {
            return Ok(());
        }
        self.body(&body[..keep.min(body.len())])?;
        if stall {
            thread::sleep(Duration::from_secs(2));
        }
        Ok(())
    }
}

fn decode(path: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let escaped = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (byte, escaped) {
            (b'%', Some(value)) => {
                bytes.push(value);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn encode(path: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/".contains(&b);
    let escape = |b: u8| {
        if plain(b) {
            char::from(b).to_string()
        } else {
            format!("%{b:02X}")
        }
    };
    path.bytes().map(escape).collect()
}
