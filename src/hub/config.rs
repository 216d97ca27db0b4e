//! Where the hub is, who asks, and where its files are kept.

use crate::util::files::{MAX_OWN, read_small};
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// What a [`Hub`](super::Hub) needs to know.
#[derive(Clone)]
pub struct Config {
    /// The hub's address, without a final `/`.
    pub endpoint: String,
    /// The user's token; sent to `endpoint` and nowhere else.
    pub token: Option<String>,
    /// The folder that holds `models--owner--name`.
    pub cache: PathBuf,
    /// Nothing is asked over the network.
    pub offline: bool,
    /// The longest wait for a connection.
    pub connect: Duration,
    /// The longest wait for the next bytes.
    pub stall: Duration,
    /// How long a server may send less than [`Self::least_bytes`] before it counts as stalled.
    pub window: Duration,
    /// The least that a server has to send in every [`Self::window`].
    pub least_bytes: u64,
    /// The longest time that a listing may take in all.
    pub listing: Duration,
    /// The longest wait for another process that fetches the same file.
    pub lock: Duration,
    /// How many tries in a row may bring nothing new.
    pub tries: u32,
    /// The pause after the first of them; it doubles each time.
    pub pause: Duration,
    /// The longest pause that a server may ask for.
    pub longest_pause: Duration,
    /// Called with a sentence before a pause that somebody who waits would notice.
    pub on_pause: fn(&str),
}

/// Shows everything but the token.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "..."))
            .field("cache", &self.cache)
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

impl Config {
    /// The public hub without a token, its files in `cache`.
    pub fn new(cache: PathBuf) -> Self {
        Self {
            endpoint: "https://huggingface.co".to_owned(),
            token: None,
            cache,
            offline: false,
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(60),
            window: Duration::from_secs(60),
            least_bytes: 64 << 10,
            listing: Duration::from_secs(90),
            lock: Duration::from_secs(5),
            tries: 5,
            pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(60),
            on_pause: |_| (),
        }
    }

    /// Reads the environment as Python's `huggingface_hub` does (`constants.py` and
    /// `utils/_auth.py`): `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_ENDPOINT`,
    /// `HF_HUB_OFFLINE`, `HF_HUB_DISABLE_IMPLICIT_TOKEN`, the older names of three of them, and
    /// `XDG_CACHE_HOME`.
    ///
    /// # Errors
    /// When there is no home folder, or a variable cannot be used.
    pub fn from_env() -> Result<Self> {
        Self::from_vars(|name| std::env::var_os(name))
    }

    /// As [`Self::from_env`], with `var` for the environment. Empty variables count as unset.
    ///
    /// # Errors
    /// As there.
    pub fn from_vars(var: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let set = |name: &str| var(name).filter(|value| !value.is_empty());
        let text = |name: &str| -> Result<Option<String>> {
            let decode = |value: OsString| value.into_string().ok();
            set(name)
                .map(|value| decode(value).with_context(|| format!("{name} is not UTF-8")))
                .transpose()
        };
        let on = |name: &str| -> Result<bool> {
            let value = text(name)?.unwrap_or_default().to_ascii_uppercase();
            Ok(matches!(value.as_str(), "1" | "ON" | "YES" | "TRUE"))
        };
        let user = || set("HOME").map(PathBuf::from);
        let path = |name: &str| set(name).map(|value| expand(PathBuf::from(value), user()));

        let home = match path("HF_HOME") {
            Some(home) => Some(home),
            None => path("XDG_CACHE_HOME")
                .or_else(|| user().map(|home| home.join(".cache")))
                .map(|cache| cache.join("huggingface")),
        };
        let cache = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| home.as_ref().map(|home| home.join("hub")))
            .context("cannot tell where the hub's cache is: set HF_HOME or HOME")?;

        let mut config = Self::new(cache);
        if let Some(endpoint) = text("HF_ENDPOINT")? {
            let endpoint = endpoint.trim().trim_end_matches('/');
            ensure!(
                endpoint.starts_with("https://") || endpoint.starts_with("http://"),
                "HF_ENDPOINT is {endpoint:?}: expected an address that begins with https://"
            );
            endpoint.clone_into(&mut config.endpoint);
        }
        config.offline = on("HF_HUB_OFFLINE")? || on("TRANSFORMERS_OFFLINE")?;
        if !on("HF_HUB_DISABLE_IMPLICIT_TOKEN")? {
            let given = match text("HF_TOKEN")? {
                Some(token) => Some(token),
                None => text("HUGGING_FACE_HUB_TOKEN")?,
            };
            let file = path("HF_TOKEN_PATH").or_else(|| home.map(|home| home.join("token")));
            // As in Python, a token file that cannot be read is no token.
            let stored = || String::from_utf8(read_small(&file?, MAX_OWN).ok()?).ok();
            config.token = given.and_then(clean).or_else(|| stored().and_then(clean));
        }
        if let Some(token) = &config.token {
            ensure!(
                token.bytes().all(|byte| byte.is_ascii_graphic()),
                "the token (HF_TOKEN or the token file) holds characters that no token has"
            );
        }
        Ok(config)
    }
}

/// `~` and `~/...`, which a shell does not expand inside quotes.
fn expand(path: PathBuf, user: Option<PathBuf>) -> PathBuf {
    match (path.strip_prefix("~"), user) {
        (Ok(rest), Some(user)) => user.join(rest),
        _ => path,
    }
}

fn clean(token: String) -> Option<String> {
    let token = token.trim();
    (!token.is_empty()).then(|| token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Config> {
        Config::from_vars(|name| {
            let var = vars.iter().find(|(key, _)| *key == name);
            var.map(|(_, value)| value.into())
        })
    }

    fn cache(vars: &[(&str, &str)]) -> PathBuf {
        read(vars).unwrap().cache
    }

    #[test]
    fn the_cache_is_where_python_has_it() {
        let home = ("HOME", "/u");
        assert_eq!(cache(&[home]), PathBuf::from("/u/.cache/huggingface/hub"));
        assert_eq!(
            cache(&[home, ("XDG_CACHE_HOME", "/x")]),
            PathBuf::from("/x/huggingface/hub")
        );
        assert_eq!(
            cache(&[home, ("HF_HOME", "~/hf")]),
            PathBuf::from("/u/hf/hub")
        );
        assert_eq!(
            cache(&[home, ("HF_HOME", "")]),
            PathBuf::from("/u/.cache/huggingface/hub")
        );
        let old = ("HUGGINGFACE_HUB_CACHE", "/old");
        assert_eq!(
            cache(&[home, old, ("HF_HOME", "/h")]),
            PathBuf::from("/old")
        );
        assert_eq!(
            cache(&[old, ("HF_HUB_CACHE", "/new")]),
            PathBuf::from("/new")
        );
        let error = read(&[]).unwrap_err().to_string();
        assert!(error.contains("HF_HOME"), "{error}");
    }

    #[test]
    fn the_token_is_the_first_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, " from-file\n").unwrap();
        let home = ("HF_HOME", folder.path().to_str().unwrap());
        let token = |vars: &[(&str, &str)]| read(vars).unwrap().token;
        assert_eq!(token(&[home]).as_deref(), Some("from-file"));
        assert_eq!(
            token(&[home, ("HF_TOKEN", "hf_x\r\n")]).as_deref(),
            Some("hf_x")
        );
        assert_eq!(
            token(&[home, ("HF_TOKEN", "  ")]).as_deref(),
            Some("from-file")
        );
        let path = ("HF_TOKEN_PATH", file.to_str().unwrap());
        assert_eq!(
            token(&[("HF_HOME", "/none"), path]).as_deref(),
            Some("from-file")
        );
        assert_eq!(token(&[home, ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
        assert_eq!(token(&[("HF_HOME", "/none")]), None);
        let error = read(&[home, ("HF_TOKEN", "a b")]).unwrap_err().to_string();
        assert!(
            !error.contains("a b") && error.contains("HF_TOKEN"),
            "{error}"
        );
    }

    #[test]
    fn the_rest_of_the_environment() {
        let home = ("HOME", "/u");
        let config = read(&[home, ("HF_ENDPOINT", "https://mirror.example/")]).unwrap();
        assert_eq!(config.endpoint, "https://mirror.example");
        assert!(!config.offline);
        assert!(read(&[home, ("HF_ENDPOINT", "mirror.example")]).is_err());
        for (value, offline) in [("1", true), ("true", true), ("YES", true), ("0", false)] {
            let config = read(&[home, ("HF_HUB_OFFLINE", value)]).unwrap();
            assert_eq!(config.offline, offline, "{value}");
        }
    }

    #[test]
    fn the_token_is_not_shown() {
        let config = read(&[("HOME", "/u"), ("HF_TOKEN", "hf_secret")]).unwrap();
        assert!(!format!("{config:?}").contains("hf_secret"));
    }
}
