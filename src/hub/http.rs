//! Requests to the hub, and what its answers mean.
//!
//! Every request goes the same way: with the token to the hub's own scheme, host and port alone,
//! however it was redirected, and never from https down to http. A file's address answers with a
//! redirect to a content server, which must not see the token; see `http_get` and
//! `get_hf_file_metadata` in `huggingface_hub/file_download.py`.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use ureq::http::uri::Authority;
use ureq::http::{Response, StatusCode, Uri};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::address::{escape, escape_all, header, next, same_origin};
use super::{Config, RepoId};
use crate::util::show::chain;

/// The longest chain of redirects that is followed.
const MAX_REDIRECTS: usize = 10;

/// A pause that is worth a word.
const NOTICED: Duration = Duration::from_secs(2);

/// A listing of a repository of several thousand files is about this large.
const MAX_LISTING: u64 = 64 << 20;

/// Why a request brought nothing.
pub(super) enum Failure {
    /// Worth another try, after the time that the server asks for if it does.
    Again(Error, Option<Duration>),
    /// Not worth one.
    Stop(Error),
}

/// What is asked for, in messages.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) repo: &'a RepoId,
    pub(super) file: Option<&'a str>,
}

/// A connection to the hub.
pub(super) struct Http {
    agent: Agent,
    home: Uri,
    token: Option<String>,
    config: Config,
    /// Whether the hub has answered yet. Before that a wrong address or a missing network is
    /// likelier than a passing fault, and is told at once.
    reached: AtomicBool,
}

impl Http {
    pub(super) fn new(config: &Config) -> Result<Self> {
        let home: Uri = config
            .endpoint
            .parse()
            .ok()
            .filter(|uri: &Uri| uri.scheme().is_some() && uri.authority().is_some())
            .with_context(|| format!("{:?} is no address of a hub", config.endpoint))?;
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(config.connect))
            .timeout_connect(Some(config.connect))
            .timeout_recv_response(Some(config.stall))
            .timeout_per_read(Some(config.stall))
            .tls_config(tls())
            .user_agent(concat!(
                env!("CARGO_PKG_NAME"),
                "/",
                env!("CARGO_PKG_VERSION")
            ))
            // A compressed answer has another length, and ranges of it are of no use.
            .accept_encoding("identity")
            .build()
            .new_agent();
        Ok(Self {
            agent,
            home,
            token: config.token.clone(),
            config: config.clone(),
            reached: AtomicBool::new(false),
        })
    }

    /// The listing of a revision, as the hub's `GET /api/models/{id}/revision/{revision}` with
    /// `blobs=true` gives it: <https://huggingface.co/docs/hub/api>.
    pub(super) fn listing(&self, repo: &RepoId) -> Result<Vec<u8>> {
        let target = Target { repo, file: None };
        let revision = escape_all(repo.revision());
        let endpoint = &self.config.endpoint;
        let url = format!(
            "{endpoint}/api/models/{}/revision/{revision}?blobs=true",
            repo.id()
        );
        self.patiently(target, || {
            let limit = self.config.listing;
            let start = Instant::now();
            let mut response = self.request(&url, None, Some(limit), target)?;
            if response.status() != StatusCode::OK {
                return Err(self.refused(&response, target));
            }
            let body = response.body_mut().with_config().limit(MAX_LISTING);
            body.read_to_vec().map_err(|error| {
                self.ended(&error, Some(limit), start, target, self.home.authority())
            })
        })
    }

    /// The address of a file at a commit.
    pub(super) fn file_url(&self, repo: &RepoId, commit: &str, path: &str) -> String {
        let endpoint = &self.config.endpoint;
        let (commit, path) = (escape_all(commit), escape(path));
        format!("{endpoint}/{}/resolve/{commit}/{path}", repo.id())
    }

    /// Asks for a file from byte `start` on, up to `end` if there is one; answers 200 or 206, or
    /// 416 for a range.
    pub(super) fn file(
        &self,
        url: &str,
        start: u64,
        end: Option<u64>,
        target: Target,
    ) -> Result<Response<Body>, Failure> {
        let range = (start > 0 || end.is_some()).then(|| {
            let last = end.map_or_else(String::new, |end| end.saturating_sub(1).to_string());
            format!("bytes={start}-{last}")
        });
        self.request(url, range.as_deref(), None, target)
    }

    /// Asks for `url`, or a `range` of it, and follows where it leads; with a `limit` the answer has
    /// to be read within that time.
    fn request(
        &self,
        url: &str,
        range: Option<&str>,
        limit: Option<Duration>,
        target: Target,
    ) -> Result<Response<Body>, Failure> {
        let mut uri: Uri = url.parse().map_err(|error| {
            Failure::Stop(anyhow!("the address of {target} cannot be used: {error}"))
        })?;
        let start = Instant::now();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.agent.get(&uri);
            let may_see = |_: &&String| same_origin(&uri, &self.home);
            if let Some(token) = self.token.as_ref().filter(may_see) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if let Some(range) = range {
                request = request.header("range", range);
            }
            let left = limit.map(|limit| limit.saturating_sub(start.elapsed()));
            let response = request
                .config()
                .timeout_global(left)
                .build()
                .call()
                .map_err(|error| self.ended(&error, limit, start, target, uri.authority()))?;
            self.reached.store(true, Ordering::Relaxed);
            match response.status() {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(response),
                StatusCode::RANGE_NOT_SATISFIABLE if range.is_some() => return Ok(response),
                status if status.is_redirection() => {
                    uri = next(&uri, response.headers())
                        .with_context(|| format!("{target}: a redirect cannot be followed"))
                        .map_err(Failure::Stop)?;
                }
                // A content server knows no users: the permission in the address has run out.
                StatusCode::FORBIDDEN if !same_origin(&uri, &self.home) => {
                    let host = uri.host().unwrap_or_default();
                    let error = anyhow!("{target}: {host} does not let it be read (403)");
                    return Err(Failure::Again(error, None));
                }
                _ => return Err(self.refused(&response, target)),
            }
        }
        Err(Failure::Stop(anyhow!(
            "{target}: more than {MAX_REDIRECTS} redirects"
        )))
    }

    /// A request that broke, or that ran out of the time that it had from `start` on.
    fn ended(
        &self,
        error: &ureq::Error,
        limit: Option<Duration>,
        start: Instant,
        target: Target,
        host: Option<&Authority>,
    ) -> Failure {
        match (error, limit) {
            (ureq::Error::Timeout(_), Some(limit)) if start.elapsed() >= limit => Failure::Stop(
                anyhow!("{target}: the hub did not send the listing within {limit:?}"),
            ),
            _ => self.broken(error, host),
        }
    }

    /// The content of a public address of at most `most` bytes. It is nobody's business who asks: no
    /// token is sent, not even to the hub.
    pub(super) fn public(&self, url: &str, most: u64) -> Result<Vec<u8>> {
        let mut uri: Uri = url.parse().context("it is no web address")?;
        let is_here = |host: &str| ["localhost", "127.0.0.1", "[::1]"].contains(&host);
        ensure!(
            uri.scheme_str() == Some("https") || uri.host().is_some_and(is_here),
            "expected an address that begins with https://"
        );
        for _ in 0..=MAX_REDIRECTS {
            let host = uri.authority().cloned();
            let failed = |error: &ureq::Error| match self.broken(error, host.as_ref()) {
                Failure::Again(error, _) | Failure::Stop(error) => error,
            };
            let mut response = self
                .agent
                .get(&uri)
                .call()
                .map_err(|error| failed(&error))?;
            match response.status() {
                StatusCode::OK => {
                    let body = response.body_mut().with_config().limit(most);
                    return body.read_to_vec().map_err(|error| match error {
                        ureq::Error::BodyExceedsLimit(_) => {
                            anyhow!("it is larger than {} MiB", most >> 20)
                        }
                        error => failed(&error),
                    });
                }
                status if status.is_redirection() => {
                    uri =
                        next(&uri, response.headers()).context("a redirect cannot be followed")?;
                }
                status => bail!("the server answers {status}"),
            }
        }
        bail!("more than {MAX_REDIRECTS} redirects")
    }

    /// Tries until it works, is not worth another try, or the tries are used up.
    pub(super) fn patiently<T>(
        &self,
        target: Target,
        mut attempt: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T> {
        let mut failures = 0;
        loop {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(Failure::Stop(error)) => return Err(error),
                Err(Failure::Again(error, after)) => {
                    failures += 1;
                    if failures >= self.config.tries {
                        return Err(error.context(format!("{target}: gave up")));
                    }
                    self.pause(failures, after, &error);
                }
            }
        }
    }

    /// How many tries in a row may bring nothing new.
    pub(super) fn tries(&self) -> u32 {
        self.config.tries
    }

    /// Waits after the `failures`-th failure in a row, which was `error`.
    pub(super) fn pause(&self, failures: u32, after: Option<Duration>, error: &Error) {
        let doublings = failures.saturating_sub(1).min(5);
        let pause = self.config.pause.saturating_mul(1 << doublings);
        let pause = after.unwrap_or(pause).min(self.config.longest_pause);
        if pause >= NOTICED {
            (self.config.on_pause)(&format!(
                "trying again in {} s (try {} of {}): {}",
                pause.as_secs(),
                failures + 1,
                self.config.tries,
                chain(error)
            ));
        }
        std::thread::sleep(pause);
    }

    /// Watches over a body that is received.
    pub(super) fn pace(&self) -> Pace {
        Pace {
            window: self.config.window,
            least: self.config.least_bytes,
            start: Instant::now(),
            bytes: 0,
        }
    }

    /// A request without an answer.
    fn broken(&self, error: &ureq::Error, host: Option<&Authority>) -> Failure {
        let host = host.map_or("the hub", Authority::host);
        let offline = "check the network, or set HF_HUB_OFFLINE=1 to use what is in the cache";
        let first = !self.reached.load(Ordering::Relaxed);
        match error {
            // The name server's and the certificate's refusals come as these too.
            ureq::Error::Io(io) if first && !passing(io.kind()) => {
                Failure::Stop(anyhow!("cannot connect to {host}: {io}\nhint: {offline}"))
            }
            ureq::Error::HostNotFound | ureq::Error::ConnectionFailed if first => Failure::Stop(
                anyhow!("cannot connect to {host}: {error}\nhint: {offline}"),
            ),
            ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) if first => {
                let seconds = self.config.connect.as_secs();
                Failure::Stop(anyhow!(
                    "no connection to {host} in {seconds} s\nhint: {offline}"
                ))
            }
            ureq::Error::Timeout(_) => Failure::Again(self.stalled(host), None),
            ureq::Error::BadUri(_)
            | ureq::Error::Tls(_)
            | ureq::Error::Rustls(_)
            | ureq::Error::InvalidProxyUrl
            | ureq::Error::BodyExceedsLimit(_) => Failure::Stop(anyhow!("{host}: {error}")),
            other => Failure::Again(anyhow!("{host}: {other}"), None),
        }
    }

    /// Reading stopped half-way.
    pub(super) fn interrupted(&self, error: &std::io::Error) -> Error {
        match error.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(ureq::Error::Timeout(_)) => self.stalled("the server"),
            _ => anyhow!("the connection broke: {error}"),
        }
    }

    fn stalled(&self, host: &str) -> Error {
        anyhow!("{host} sent nothing for {:?}", self.config.stall)
    }

    /// An answer that is a refusal. The hub tells its kind in `X-Error-Code` and a sentence in
    /// `X-Error-Message` (`hf_raise_for_status` in `huggingface_hub/utils/_http.py`).
    fn refused(&self, response: &Response<Body>, target: Target) -> Failure {
        let status = response.status();
        let said = header(response.headers(), "x-error-message")
            .map(|text| {
                format!(
                    " (the hub says: {})",
                    text.chars().take(200).collect::<String>()
                )
            })
            .unwrap_or_default();
        let code = header(response.headers(), "x-error-code").unwrap_or_default();
        let repo = target.repo.id();
        let error = match (status.as_u16(), code) {
            (_, "GatedRepo") => anyhow!(
                "{repo} is gated{said}\nhint: accept its terms on its page, then set HF_TOKEN to a token \
                 of the same account"
            ),
            // The hub hides private repositories: a wrong name is answered 401 without a token.
            (401, _) if self.token.is_none() => anyhow!(
                "{repo}: not found, or private{said}\nhint: check the name, or set HF_TOKEN to a token \
                 that may read it"
            ),
            (401, _) => anyhow!(
                "{repo}: the hub refuses the token{said}\nhint: set HF_TOKEN to a valid one that may \
                 read it"
            ),
            (403, _) => {
                anyhow!(
                    "{repo}: no permission{said}\nhint: set HF_TOKEN to a token that may read it"
                )
            }
            (404, "RevisionNotFound") => {
                anyhow!("{repo} has no revision {:?}{said}", target.repo.revision())
            }
            (404, "EntryNotFound") => anyhow!("{target}: there is no such file{said}"),
            (404, "RepoNotFound") => anyhow!("there is no repository {repo}{said}"),
            (404, _) => match target.file {
                Some(_) => anyhow!("{target}: there is no such file (404){said}"),
                None => anyhow!(
                    "there is no repository {repo}, or it has no revision {:?} (404){said}",
                    target.repo.revision()
                ),
            },
            _ => anyhow!("{target}: the hub answers {status}{said}"),
        };
        if status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429) {
            let after = header(response.headers(), "retry-after")
                .and_then(|seconds| seconds.trim().parse().ok())
                .map(Duration::from_secs);
            return Failure::Again(error, after);
        }
        Failure::Stop(error)
    }
}

/// Whether bytes come fast enough to be worth waiting for: a server that sends one now and then is
/// never silent, and never done either.
pub(super) struct Pace {
    window: Duration,
    least: u64,
    start: Instant,
    bytes: u64,
}

impl Pace {
    /// Notes that `read` bytes came.
    ///
    /// # Errors
    /// When too few came since the window began.
    pub(super) fn note(&mut self, read: usize) -> Result<()> {
        self.bytes = self.bytes.saturating_add(read as u64);
        let passed = self.start.elapsed();
        if passed < self.window {
            return Ok(());
        }
        ensure!(
            self.bytes >= self.least,
            "the server sent {} bytes in {passed:.1?}, which is too slow to wait for",
            self.bytes
        );
        (self.start, self.bytes) = (Instant::now(), 0);
        Ok(())
    }
}

/// Trusts whom the system trusts: behind a company's proxy that is not the usual list.
fn tls() -> TlsConfig {
    TlsConfig::builder()
        .root_certs(RootCerts::PlatformVerifier)
        .build()
}

/// Whether a connection that was there may have broken by chance.
fn passing(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::UnexpectedEof
            | ErrorKind::Interrupted
    )
}

impl std::fmt::Display for Target<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.file {
            Some(file) => write!(f, "{file} of {}", self.repo),
            None => self.repo.fmt(f),
        }
    }
}
