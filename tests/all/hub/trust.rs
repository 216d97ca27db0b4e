//! Whom the token reaches, how long a server may keep its clients waiting, and what of the cache is
//! believed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::server::{COMMIT, Fault, sha256};
use super::{Bench, content, repo};

#[test]
fn a_redirected_listing_does_not_take_the_token_to_another_port() {
    for status in [301, 302, 303, 307, 308] {
        let mut bench = Bench::new();
        bench.config.token = Some("hf_secret".to_owned());
        bench.server.require("hf_secret");
        // The same host, which a client that compares hosts alone would trust.
        let elsewhere = format!(
            "Location: {}/content/w?sig=s\r\n",
            bench.server.content_url()
        );
        bench.server.large("w", &content(10));
        let head = Box::leak(elsewhere.into_boxed_str());
        bench
            .server
            .faults("listing", &[Fault::Status(status, head)]);
        assert!(bench.list().is_err(), "{status}: that is no listing");
        let log = bench.server.log();
        let (there, here): (Vec<_>, Vec<_>) = log.iter().partition(|r| r.content_server);
        assert_eq!((here.len(), there.len()), (1, 1), "{status}");
        assert_eq!(here[0].authorization.as_deref(), Some("Bearer hf_secret"));
        assert_eq!(there[0].authorization, None, "{status}");
    }
}

#[test]
fn a_server_that_drips_is_given_up() {
    let mut bench = Bench::new();
    bench.server.large("w", &content(400_000));
    bench.server.slow(Duration::from_millis(60));
    bench.config.window = Duration::from_millis(150);
    bench.config.least_bytes = 10_000_000;
    let start = Instant::now();
    let error = format!("{:#}", bench.fetch("w").unwrap_err());
    assert!(error.contains("too slow to wait for"), "{error}");
    assert!(error.contains("gave up after 3 tries"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(20));
    // What came is kept, and enough speed brings the rest.
    assert!(fs::metadata(&bench.parts()[0]).unwrap().len() > 0);
    bench.config.least_bytes = 1;
    bench.fetch("w").unwrap();
}

#[test]
fn a_listing_has_an_end() {
    let mut bench = Bench::new();
    bench.server.small("config.json", b"{}");
    bench.server.stuck("listing", &[Fault::Stall(5)]);
    bench.config.listing = Duration::from_millis(300);
    let error = format!("{:#}", bench.list().unwrap_err());
    assert!(
        error.contains("did not send the listing within 300ms"),
        "{error}"
    );
    let asked = bench.server.log().len();
    assert_eq!(
        asked, 1,
        "a listing that takes too long is not asked for again"
    );
}

#[test]
fn a_long_pause_is_cut_short_and_announced() {
    static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let mut bench = Bench::new();
    bench.server.large("w", &content(10));
    let later = Fault::Status(503, "Retry-After: 1000000000\r\n");
    bench.server.faults("w", &[later]);
    bench.config.longest_pause = Duration::from_secs(2);
    bench.config.on_pause = |text| SAID.lock().unwrap().push(text.to_owned());
    let start = Instant::now();
    bench.fetch("w").unwrap();
    assert!(start.elapsed() < Duration::from_secs(30));
    let said = SAID.lock().unwrap();
    let [said] = said.as_slice() else {
        panic!("{said:?}");
    };
    assert!(said.contains("503"), "{said}");
    assert!(said.ends_with("trying again in 2 s (try 2 of 3)"), "{said}");
}

#[test]
fn a_blob_that_was_tampered_with_is_not_handed_on() {
    let bench = Bench::new();
    bench.server.large("w", &content(1000));
    bench.fetch("w").unwrap();
    let blob = bench
        .repo_folder()
        .join("blobs")
        .join(sha256(&content(1000)));
    fs::set_permissions(&blob, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&blob, [7; 1000]).unwrap();
    let (file, folder) = (bench.file("w"), bench.folder.path().join("out"));
    let path = bench
        .hub()
        .fetch_to(&repo(), COMMIT, &file, &folder, &mut |_| {});
    assert!(fs::read(path.unwrap()).unwrap() == content(1000));
}
