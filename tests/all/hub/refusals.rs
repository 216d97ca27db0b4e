//! What the hub does not give, and how that is said.

use std::net::{TcpListener, TcpStream};

use wan_i2v::hub::{Hub, RemoteFile, RepoId};

use crate::hub::server::{COMMIT, Fault};
use crate::hub::{Bench, repo};

fn list_error(bench: &Bench, id: &str) -> String {
    let repo: RepoId = id.parse().unwrap();
    format!("{:#}", bench.hub().list(&repo).unwrap_err())
}

#[test]
fn private_repositories() {
    let mut bench = Bench::new();
    bench.server.small("a", b"a");
    let file = bench.file("a");
    bench.server.require("hf_right");
    let error = list_error(&bench, "owner/model");
    assert!(
        error.contains("not found, or private") && error.contains("set HF_TOKEN"),
        "{error}"
    );
    let fetch = |bench: &Bench| bench.hub().fetch(&repo(), COMMIT, &file, &mut |_| {});
    let error = fetch(&bench).unwrap_err().to_string();
    assert!(error.contains("set HF_TOKEN"), "{error}");

    bench.config.token = Some("hf_wrong".to_owned());
    let error = list_error(&bench, "owner/model");
    assert!(error.contains("refuses the token"), "{error}");
    assert!(
        error.contains("the hub says: Invalid credentials"),
        "{error}"
    );
    assert!(!error.contains("hf_wrong"), "{error}");

    bench.config.token = Some("hf_right".to_owned());
    bench.list().unwrap();
    fetch(&bench).unwrap();
}

#[test]
fn gated_repositories() {
    let bench = Bench::new();
    bench.server.small("a", b"a");
    for (status, head) in [
        (401, "X-Error-Code: GatedRepo\r\n"),
        (403, "X-Error-Code: GatedRepo\r\n"),
    ] {
        bench
            .server
            .faults("listing", &[Fault::Status(status, head)]);
        let error = list_error(&bench, "owner/model");
        assert!(
            error.contains("owner/model is gated") && error.contains("HF_TOKEN"),
            "{error}"
        );
    }
    bench.server.faults("listing", &[Fault::Status(403, "")]);
    let error = list_error(&bench, "owner/model");
    assert!(
        error.contains("no permission") && error.contains("HF_TOKEN"),
        "{error}"
    );
}

#[test]
fn what_is_not_there_is_named() {
    let bench = Bench::new();
    bench.server.small("a", b"a");
    let error = list_error(&bench, "owner/none");
    assert_eq!(error, "there is no repository owner/none");
    let error = list_error(&bench, "owner/model@v9");
    assert_eq!(error, "owner/model has no revision \"v9\"");
    let file = RemoteFile {
        path: "none.json".to_owned(),
        ..bench.file("a")
    };
    let error = bench
        .hub()
        .fetch(&repo(), COMMIT, &file, &mut |_| {})
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "none.json of owner/model: there is no such file"
    );
    // Once each: asking again does not help.
    assert_eq!(bench.server.log().len(), 1);
}

#[test]
fn answers_that_make_no_sense() {
    let bench = Bench::new();
    for text in ["<html>", "{}", "{\"sha\": \"main\", \"siblings\": []}", ""] {
        bench.server.listing(text);
        let error = list_error(&bench, "owner/model");
        assert!(
            error.starts_with("the hub's listing of owner/model"),
            "{error}"
        );
    }
    let escape = format!(
        r#"{{"sha": "{COMMIT}", "siblings": [{{"rfilename": "../../x", "size": 1, "blobId": "{}"}}]}}"#,
        "a".repeat(40)
    );
    bench.server.listing(&escape);
    let error = list_error(&bench, "owner/model");
    assert!(error.contains("unusable name \"../../x\""), "{error}");
}

#[test]
fn hostile_requests_write_nothing() {
    let bench = Bench::new();
    bench.server.small("a", b"a");
    let good = bench.file("a");
    let hub = bench.hub();
    for path in ["../a", "/a", "a/../../b", ""] {
        let file = RemoteFile {
            path: path.to_owned(),
            ..good.clone()
        };
        assert!(hub.fetch(&repo(), COMMIT, &file, &mut |_| {}).is_err());
        let out = bench.folder.path().join("out");
        assert!(
            hub.fetch_to(&repo(), COMMIT, &file, &out, &mut |_| {})
                .is_err()
        );
    }
    assert!(hub.fetch(&repo(), "../../x", &good, &mut |_| {}).is_err());
    assert!(bench.server.log().is_empty() && !bench.config.cache.exists());
}

#[test]
fn a_hub_that_is_not_there() {
    let mut bench = Bench::new();
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    bench.config.endpoint = format!("http://127.0.0.1:{port}");
    // Told at once, without the pauses between tries.
    bench.config.pause = std::time::Duration::from_secs(60);
    let error = list_error(&bench, "owner/model");
    assert!(
        error.contains("127.0.0.1") && error.contains("HF_HUB_OFFLINE=1"),
        "{error}"
    );
    for endpoint in ["not a url", "/a", ""] {
        bench.config.endpoint = endpoint.to_owned();
        let error = Hub::new(bench.config.clone()).unwrap_err().to_string();
        assert!(error.contains("no address of a hub"), "{error}");
    }
}

#[test]
fn a_hub_that_goes_away_is_tried_again() {
    let bench = Bench::new();
    bench.server.large("w", b"content");
    let hub = bench.hub();
    let listing = hub.list(&repo()).unwrap();
    let Bench { server, folder, .. } = bench;
    let address = server.url().replace("http://", "");
    drop(server);
    while TcpStream::connect(&address).is_ok() {
        std::thread::yield_now();
    }
    let out = folder.path().join("out");
    let error = hub
        .fetch_to(&repo(), COMMIT, &listing.files[0], &out, &mut |_| {})
        .unwrap_err();
    let error = format!("{error:#}");
    assert!(
        error.contains("gave up after 3 tries; 0 bytes of 7 bytes are kept"),
        "{error}"
    );
}
