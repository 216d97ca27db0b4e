//! All clips of a folder on one page that needs nothing but them: playing, with what each was made from.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::Entry;
use crate::diagnose::analyze::page;
use crate::media::clip::frame_files;
use crate::util::files::read_head;
use crate::util::html::{address, escaped};
use crate::util::show::Show;
use crate::util::temporary;

/// Its name in the folder.
const NAME: &str = "index.html";
/// How it begins, by which the program tells its own.
const START: &str = "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\
                     <meta name=\"generator\" content=\"wan-i2v gallery\">";
/// Light or dark, as whoever reads it has set.
const STYLE: &str = "\
:root{color-scheme:light dark;--paper:#fff;--ink:#1b1b1b;--faint:#595959;--line:#ccc;--ok:#1a7f37;\
--alarm:#c62828}@media(prefers-color-scheme:dark){:root{--paper:#181818;--ink:#e8e8e8;--faint:#a6a6a6;\
--line:#444;--ok:#6fc37f;--alarm:#f2796b}}*{box-sizing:border-box}body{background:var(--paper);\
color:var(--ink);font:15px/1.45 system-ui,sans-serif;margin:1.5em auto;padding:0 1em;max-width:1680px;\
overflow-wrap:anywhere}h1{font-size:1.4em;margin-bottom:0}h2{font-size:1em;margin:.6em 0 .2em}\
main{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr));gap:1.2em}\
article{border:1px solid var(--line);border-radius:6px;padding:.8em}p{margin:.3em 0}\
video,img{display:block;width:100%;height:auto;background:#000}.small{image-rendering:pixelated}\
.none{display:flex;align-items:center;justify-content:center;min-height:9em;padding:.5em;\
border:1px dashed var(--line);color:var(--faint)}dl{display:grid;grid-template-columns:auto 1fr;\
gap:0 .8em;margin:.4em 0}dt,.faint{color:var(--faint)}dd{margin:0}.done{color:var(--ok)}\
.failed{color:var(--alarm);white-space:pre-wrap}.prompt{white-space:pre-wrap;max-height:9em;\
overflow:auto}summary{cursor:pointer;color:var(--faint)}";
/// Plays the clips that are on the screen, unless whoever looks wants no motion.
const SCRIPT: &str = "\
if(!matchMedia('(prefers-reduced-motion:reduce)').matches){const seen=new IntersectionObserver(all=>\
all.forEach(({target,isIntersecting})=>isIntersecting?target.play().catch(()=>{}):target.pause()),\
{rootMargin:'100px'});document.querySelectorAll('video').forEach(video=>seen.observe(video))}";
/// Clips whose longer side has fewer pixels are enlarged without smoothing.
const SMALL: u32 = 256;

/// How a clip stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It is there.
    Done,
    /// It cannot be made, and why.
    Failed(String),
    /// It is not there yet.
    Missing,
}

/// A clip on the page.
#[derive(Clone, Debug)]
pub struct Card {
    /// What it is called.
    pub name: String,
    /// Its file or its folder of frames, in the page's folder.
    pub clip: Option<PathBuf>,
    /// Its film strip, likewise.
    pub strip: Option<PathBuf>,
    /// What happens in it; nothing where its file keeps it to itself.
    pub prompt: Option<String>,
    /// The seed.
    pub seed: Option<u64>,
    /// Its settings by flag; nothing where its file keeps them to itself.
    pub settings: Vec<(String, String)>,
    /// Its width and height.
    pub size: Option<(u32, u32)>,
    /// How it stands.
    pub state: State,
}

impl Card {
    /// Of a clip of which no more is known than its name.
    pub fn new(name: String, seed: Option<u64>) -> Self {
        Self {
            name,
            clip: None,
            strip: None,
            prompt: None,
            seed,
            settings: Vec::new(),
            size: None,
            state: State::Missing,
        }
    }

    /// Takes what is known of a clip that was checked. What a clip's file does not keep, the page does
    /// not tell either.
    pub fn fill(&mut self, entry: &Entry, folder: &Path) {
        let job = entry.job();
        let within = |path: &Path| path.strip_prefix(folder).ok().map(Path::to_owned);
        let settings = entry.settings();
        self.clip = within(entry.output());
        self.strip = job.strip().and_then(within);
        self.size = Some(job.frame_size());
        if !job.keeps_metadata() {
            self.seed = None;
            return;
        }
        self.prompt = job.title().prompt;
        self.seed = Some(settings.seed);
        let picture = job.image().and_then(Path::file_name).unwrap_or_default();
        let own = [
            ("picture", picture.to_string_lossy().into_owned()),
            ("--negative-prompt", settings.negative_prompt.clone()),
        ];
        let own = own.map(|(name, value)| (name.to_owned(), value));
        let items = settings.items().into_iter();
        let items = items.map(|item| (item.name, item.value));
        self.settings = own.into_iter().chain(items).collect();
        self.settings.retain(|(name, _)| name != "--seed");
    }
}

/// Where the page is.
pub fn path(folder: &Path) -> PathBuf {
    folder.join(NAME)
}

/// Makes sure that no other file is in the page's place, and removes what a killed run has left of
/// one.
///
/// # Errors
/// When something else has its name.
pub fn claim(folder: &Path) -> Result<()> {
    let path = path(folder);
    let is_own = || read_head(&path, START.len() as u64).is_ok_and(|head| head == START.as_bytes());
    ensure!(
        path.symlink_metadata().is_err() || is_own(),
        "{}: no batch or sweep has made this, and it would be replaced\nhint: move it away, or \
         choose another --output-dir",
        path.shown()
    );
    temporary::remove_stale(&path);
    Ok(())
}

/// Puts the page of these clips into the folder, where there is always a whole one.
///
/// # Errors
/// When it cannot be written.
pub fn write(folder: &Path, title: &str, cards: &[Card]) -> Result<()> {
    page::write(&path(folder), &html(folder, title, cards))
}

fn html(folder: &Path, title: &str, cards: &[Card]) -> String {
    let script = STANDARD.encode(Sha256::digest(SCRIPT));
    let title = escaped(title);
    let mut html = format!(
        "{START}<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
         style-src 'unsafe-inline'; script-src 'sha256-{script}'; img-src 'self' file:; \
         media-src 'self' file:\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title}</title><style>{STYLE}</style>\n<h1>{title}</h1>\n"
    );
    let there: Vec<bool> = cards.iter().map(|card| is_there(folder, card)).collect();
    let done = there.iter().filter(|there| **there).count();
    let failed = |card: &&Card| matches!(card.state, State::Failed(_));
    let failed = cards.iter().filter(failed).count();
    let missing = cards.len() - done - failed;
    let _ = writeln!(
        html,
        "<p class=\"faint\">{} clips: {done} done, {failed} failed, {missing} missing</p>\n<main>",
        cards.len()
    );
    let differing = differing(cards);
    for (card, there) in cards.iter().zip(there) {
        html += "<article>";
        html += &shown(folder, card, there);
        let _ = write!(html, "<h2>{}</h2>", escaped(&card.name));
        let _ = match &card.state {
            State::Failed(why) => write!(html, "<p class=\"failed\">failed: {}</p>", escaped(why)),
            _ if there => write!(html, "<p class=\"done\">done</p>"),
            _ => write!(html, "<p class=\"faint\">missing: not made yet</p>"),
        };
        if let Some(prompt) = &card.prompt {
            let _ = write!(html, "<p class=\"prompt\">{}</p>", escaped(prompt));
        }
        html += "<dl>";
        let seed = card.seed.map(|seed| ("seed", seed.to_string()));
        let settings = card.settings.iter();
        let settings = settings.filter(|(name, _)| differing.contains(&name.as_str()));
        let settings = settings.map(|(name, value)| (name.trim_start_matches('-'), value.clone()));
        for (name, value) in seed.into_iter().chain(settings) {
            let _ = write!(
                html,
                "<dt>{}</dt><dd>{}</dd>",
                escaped(name),
                escaped(&value)
            );
        }
        html += "</dl>";
        let strip = card.strip.as_deref();
        if let Some(strip) = strip.filter(|strip| there && folder.join(strip).is_file()) {
            let source = escaped(&address(strip));
            let _ = write!(
                html,
                "<details><summary>film strip</summary><a href=\"{source}\"><img loading=\"lazy\" \
                 alt=\"film strip\" src=\"{source}\"></a></details>"
            );
        }
        html += "</article>\n";
    }
    let _ = writeln!(html, "</main>\n<script>{SCRIPT}</script></html>");
    html
}

/// Whether a clip that was made is there still.
fn is_there(folder: &Path, card: &Card) -> bool {
    let clip = card.clip.as_ref().map(|clip| folder.join(clip));
    card.state == State::Done && clip.is_some_and(|clip| clip.exists())
}

/// The clip itself: a video, a picture, or the first of its frames.
fn shown(folder: &Path, card: &Card, there: bool) -> String {
    let Some(clip) = card.clip.as_deref().filter(|_| there) else {
        return "<div class=\"none\">no clip</div>".into();
    };
    let (width, height) = card.size.unwrap_or_default();
    let small = if width.max(height) < SMALL {
        " class=\"small\""
    } else {
        ""
    };
    let size = format!("{small} width=\"{width}\" height=\"{height}\"");
    let image = |path: &Path, alt: &str| {
        let source = escaped(&address(path));
        format!("<img{size} loading=\"lazy\" alt=\"{alt}\" src=\"{source}\">")
    };
    let end = clip.extension().map(|end| end.to_ascii_lowercase());
    match end.as_deref().and_then(|end| end.to_str()) {
        _ if folder.join(clip).is_dir() => {
            let first = frame_files(&folder.join(clip))
                .map(|frame| frame.file_name())
                .min();
            let first = first.map(|name| image(&clip.join(name), "the first frame"));
            first.unwrap_or_else(|| "<div class=\"none\">no frames</div>".into())
        }
        Some("gif") => image(clip, "the clip"),
        _ => format!(
            "<video{size} controls muted loop playsinline preload=\"none\" src=\"{}\"></video>",
            escaped(&address(clip))
        ),
    }
}

/// Settings that are not the same for all clips that tell theirs.
fn differing(cards: &[Card]) -> Vec<&str> {
    let mut values: BTreeMap<&str, &str> = BTreeMap::new();
    let mut differing = Vec::new();
    for (name, value) in cards.iter().flat_map(|card| &card.settings) {
        if *values.entry(name).or_insert(value) != value && !differing.contains(&name.as_str()) {
            differing.push(name.as_str());
        }
    }
    differing
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn card(folder: &Path, clip: &str, steps: &str) -> Card {
        fs::write(folder.join(clip), "a clip").unwrap();
        Card {
            clip: Some(clip.into()),
            prompt: Some("a \"cat\" <script>alert('1')</script> & </article>".into()),
            settings: vec![
                ("--steps".into(), steps.into()),
                ("--solver".into(), "unipc".into()),
            ],
            size: Some((64, 48)),
            state: State::Done,
            ..Card::new("one".into(), Some(7))
        }
    }

    #[test]
    fn names_and_prompts_stay_text() {
        let folder = tempfile::tempdir().unwrap();
        let clip = "it's \"1\" <b>&#.mp4";
        let mut one = card(folder.path(), clip, "12");
        one.strip = Some("strip 1.png".into());
        fs::write(folder.path().join("strip 1.png"), "").unwrap();
        let failed = Card {
            state: State::Failed("<img src=x onerror=alert(1)>: no\nhint: \u{202e}none".into()),
            ..Card::new("<i>two".into(), None)
        };
        let mut gone = card(folder.path(), "gone.gif", "20");
        fs::remove_file(folder.path().join("gone.gif")).unwrap();
        gone.seed = None;
        let cards = [one, failed, gone];
        let page = html(folder.path(), "a <title>", &cards);
        let place = |text: &str| page.find(text).unwrap_or_else(|| panic!("{text}: {page}"));
        place("src=\"it%27s%20%221%22%20%3Cb%3E%26%23.mp4\"");
        place(
            "a &quot;cat&quot; &lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt; &amp; &lt;/article&gt;",
        );
        place("failed: &lt;img src=x onerror=alert(1)&gt;: no\nhint: \\u{202e}none");
        place("3 clips: 1 done, 1 failed, 1 missing");
        place("href=\"strip%201.png\"");
        place("<dt>steps</dt><dd>12</dd>");
        place("<title>a &lt;title&gt;</title>");
        // What is the same for all is not repeated, and the order is that of the jobs.
        assert!(!page.contains("solver"));
        assert!(place("seed</dt><dd>7") < place("&lt;i&gt;two"));
        assert!(place("&lt;i&gt;two") < place("missing: not made yet"));
        // Nothing runs but the page's own script, and nothing is from elsewhere.
        assert_eq!(page.matches("<script").count(), 1);
        assert_eq!(page.matches("http").count(), 1, "http-equiv");
        assert_eq!(page.matches("<article>").count(), 3);
    }

    #[test]
    fn only_its_own_page_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let page = path(folder.path());
        claim(folder.path()).unwrap();
        write(folder.path(), "clips", &[card(folder.path(), "a.mp4", "1")]).unwrap();
        claim(folder.path()).unwrap();
        for foreign in ["<!doctype html>\n<html lang=\"en\">my own page", ""] {
            fs::write(&page, foreign).unwrap();
            let error = claim(folder.path()).unwrap_err().to_string();
            assert!(
                error.contains("index.html") && error.contains("hint: move"),
                "{error}"
            );
            assert_eq!(fs::read_to_string(&page).unwrap(), foreign);
        }
        fs::remove_file(&page).unwrap();
        std::os::unix::fs::symlink("nowhere", &page).unwrap();
        assert!(claim(folder.path()).is_err());
    }
}
