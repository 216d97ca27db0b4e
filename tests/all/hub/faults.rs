//! Faults of the network and of the server.

use std::fs;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::hub::server::{Fault, sha256};
use crate::hub::{Bench, assert_large_cached, content};

const LEN: usize = 400_000;

/// Long enough for a busy machine, short enough to wait for.
const STALL: Duration = Duration::from_millis(600);

/// A bench whose file `w` shows these faults; the last one stays when `stuck`.
fn bench(faults: &[Fault], stuck: bool) -> Bench {
    let bench = Bench::new();
    bench.server.large("w", &content(LEN));
    if stuck {
        bench.server.stuck("w", faults);
    } else {
        bench.server.faults("w", faults);
    }
    bench
}

/// The ranges that the content server was asked for.
fn ranges(bench: &Bench) -> Vec<String> {
    let log = bench
        .server
        .log()
        .into_iter()
        .filter(|request| request.content_server);
    log.map(|request| request.range.unwrap_or_default())
        .collect()
}

/// That the file arrives in spite of the faults, with these requests.
fn assert_arrives(faults: &[Fault], expected: &[&str]) {
    let bench = bench(faults, false);
    bench.fetch("w").unwrap();
    assert_eq!(ranges(&bench), expected);
    assert_large_cached(&bench, "w", &content(LEN));
}

/// That the file does not arrive; what the error says.
fn assert_fails(faults: &[Fault]) -> (Bench, String) {
    let bench = bench(faults, true);
    let error = format!("{:#}", bench.fetch("w").unwrap_err());
    let blob = bench
        .repo_folder()
        .join("blobs")
        .join(sha256(&content(LEN)));
    assert!(!blob.exists());
    assert!(!bench.repo_folder().join("snapshots").exists());
    (bench, error)
}

#[test]
fn cut_connections_are_taken_up_again() {
    // More often than tries are allowed in a row: each brings something.
    let cuts = [100_000, 1, 50_000, 100_000, 100_000].map(Fault::Cut);
    assert_arrives(
        &cuts,
        &[
            "",
            "bytes=100000-",
            "bytes=100001-",
            "bytes=150001-",
            "bytes=250001-",
            "bytes=350001-",
        ],
    );
    assert_arrives(&[Fault::CutUntold(5)], &["", "bytes=5-"]);
}

#[test]
fn silence_is_not_waited_for_forever() {
    let mut passing = bench(&[Fault::Stall(70_000), Fault::Stall(0)], false);
    passing.config.stall = STALL;
    passing.fetch("w").unwrap();
    assert_eq!(ranges(&passing), ["", "bytes=70000-", "bytes=70000-"]);
    assert_large_cached(&passing, "w", &content(LEN));

    let mut lasting = bench(&[Fault::Stall(70_000), Fault::Stall(0)], true);
    lasting.config.stall = STALL;
    let start = Instant::now();
    let error = format!("{:#}", lasting.fetch("w").unwrap_err());
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(error.contains("sent nothing for 600ms"), "{error}");
    assert!(error.contains("70.00 kB of 400.00 kB are kept"), "{error}");
    assert_eq!(fs::metadata(&lasting.parts()[0]).unwrap().len(), 70_000);
}

#[test]
fn servers_that_cannot_go_on_in_the_middle() {
    let cut = Fault::Cut(100_000);
    assert_arrives(&[cut.clone(), Fault::IgnoreRange], &["", "bytes=100000-"]);
    assert_arrives(&[cut.clone(), Fault::NoRange], &["", "bytes=100000-", ""]);
    assert_arrives(
        &[cut.clone(), Fault::LieAboutRange],
        &["", "bytes=100000-", ""],
    );
    let ranges = [
        "bytes 100000-18446744073709551615/*",
        "bytes 100000-99999/400000",
        "bytes 100000-399998/400000",
        "bytes 100000-399999/400001",
        "nonsense",
        "",
    ];
    for range in ranges {
        assert_arrives(
            &[cut.clone(), Fault::Told(range)],
            &["", "bytes=100000-", ""],
        );
    }
    assert_arrives(&[Fault::Told("bytes 0-399999/*")], &[""]);
    let (_, error) = assert_fails(&[Fault::Told("bytes 0-18446744073709551615/*")]);
    assert!(
        error.contains("the server answers with \"bytes 0-1844"),
        "{error}"
    );
}

#[test]
fn an_answer_of_another_kind_costs_nothing() {
    // A page that asks to log in, say.
    let (bench, error) = assert_fails(&[Fault::Cut(100_000), Fault::Status(200, "")]);
    assert!(
        error.contains("listing says 400000 bytes, the server's answer has 0"),
        "{error}"
    );
    assert_eq!(fs::metadata(&bench.parts()[0]).unwrap().len(), 100_000);
    let (_, error) = assert_fails(&[Fault::Status(200, "")]);
    assert!(error.contains("the server's answer has 0"), "{error}");
    let (bench, error) =
        assert_fails(&[Fault::Cut(100_000), Fault::NoRange, Fault::Status(404, "")]);
    assert!(error.contains("no such file"), "{error}");
    assert_eq!(fs::metadata(&bench.parts()[0]).unwrap().len(), 100_000);
}

#[test]
fn no_progress_is_no_reason_to_go_on() {
    // Each try brings something that the one before had brought as well.
    let (bench, error) = assert_fails(&[Fault::IgnoreRangeAndCut(100_000)]);
    assert!(error.contains("gave up after 3 tries"), "{error}");
    assert_eq!(ranges(&bench).len(), 3);
    let (_, error) = assert_fails(&[Fault::Status(503, "")]);
    assert!(error.contains("503"), "{error}");
}

#[test]
fn a_wrong_hash_removes_what_was_fetched() {
    let (bench, error) = assert_fails(&[Fault::Corrupt]);
    assert!(error.contains("wrong hash"), "{error}");
    assert!(error.contains(&sha256(&content(LEN))), "{error}");
    assert!(bench.parts().is_empty());
    bench.server.faults("w", &[]);
    bench.fetch("w").unwrap();
    assert_large_cached(&bench, "w", &content(LEN));
}

#[test]
fn a_wrong_beginning_is_found_out() {
    let bench = bench(&[], false);
    let blobs = bench.repo_folder().join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    let part = blobs.join(format!("{}.wan-i2v.incomplete", sha256(&content(LEN))));
    fs::write(part, [0; 1000]).unwrap();
    let error = bench.fetch("w").unwrap_err().to_string();
    assert!(error.contains("wrong hash"), "{error}");
    assert!(bench.parts().is_empty());
    bench.fetch("w").unwrap();
}

#[test]
fn a_wrong_hash_of_a_small_file() {
    let bench = Bench::new();
    bench.server.small("config.json", b"{}");
    bench.server.faults("config.json", &[Fault::Corrupt]);
    let error = bench.fetch("config.json").unwrap_err().to_string();
    assert!(error.contains("wrong hash (git blob "), "{error}");
    assert!(bench.parts().is_empty());
}

#[test]
fn more_than_the_file() {
    let (bench, error) = assert_fails(&[Fault::TooLong]);
    assert!(
        error.contains("more than 400000 bytes") || error.contains("wrong"),
        "{error}"
    );
    assert!(
        bench
            .parts()
            .iter()
            .all(|part| fs::metadata(part).unwrap().len() == 0)
    );
}

#[test]
fn passing_refusals_are_waited_out() {
    let wait = Fault::Status(429, "Retry-After: 0\r\n");
    let passing = [Fault::Status(500, ""), wait];
    assert_arrives(&[Fault::Status(403, "")], &["", ""]);
    assert_arrives(&passing, &["", "", ""]);
    let start = Instant::now();
    assert_arrives(&[Fault::Status(429, "Retry-After: 1\r\n")], &["", ""]);
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[test]
fn the_listing_is_tried_again_too() {
    let mut bench = bench(&[], false);
    bench.config.stall = STALL;
    let passing = [Fault::Cut(10), Fault::Status(502, "")];
    bench.server.faults("listing", &passing);
    assert_eq!(bench.list().unwrap().files.len(), 1);
    bench.server.stuck("listing", &[Fault::Stall(10)]);
    assert!(format!("{:#}", bench.list().unwrap_err()).contains("gave up"));
}

#[test]
fn redirects_end() {
    let bench = Bench::new();
    bench.server.small("a", b"a");
    let own = bench.server.url();
    let path = format!("/owner/model/resolve/{}/a", crate::hub::COMMIT);
    bench.server.faults(
        "a",
        &[
            Fault::Redirect(path.clone()),
            Fault::Redirect(format!("{own}{path}")),
        ],
    );
    bench.fetch("a").unwrap();

    bench.server.small("b", b"b");
    bench
        .server
        .stuck("b", &[Fault::Redirect(path.replace("/a", "/b"))]);
    let error = bench.fetch("b").unwrap_err().to_string();
    assert!(error.contains("more than 10 redirects"), "{error}");
    bench
        .server
        .faults("b", &[Fault::Redirect("file:///etc/passwd".to_owned())]);
    let error = format!("{:#}", bench.fetch("b").unwrap_err());
    assert!(error.contains("a redirect cannot be followed"), "{error}");
}

#[test]
fn one_process_at_a_time() {
    let bench = bench(&[], false);
    let locks = bench.config.cache.join(".locks/models--owner--model");
    fs::create_dir_all(&locks).unwrap();
    let path = locks.join(format!("{}.lock", sha256(&content(LEN))));
    let lock = fs::File::create(path).unwrap();
    flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    let error = bench.fetch("w").unwrap_err().to_string();
    assert!(
        error.contains("another process is fetching the same file"),
        "{error}"
    );
    drop(lock);
    bench.fetch("w").unwrap();
}
