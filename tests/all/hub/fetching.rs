//! What works.

use std::fs;
use std::os::unix::fs::symlink;

use wan_i2v::hub::{Hash, Hub};

use crate::hub::server::{COMMIT, Fault, git_blob, sha256};
use crate::hub::{Bench, assert_cached, assert_large_cached, content, repo};

#[test]
fn sizes_and_hashes_are_known_before_a_byte_is_fetched() {
    let bench = Bench::new();
    bench.server.large("w.safetensors", &content(1000));
    bench.server.small("a/config.json", b"{}");
    let listing = bench.list().unwrap();
    assert_eq!(listing.commit, COMMIT);
    let files: Vec<_> = listing
        .files
        .iter()
        .map(|f| (f.path.as_str(), f.size))
        .collect();
    assert_eq!(files, [("a/config.json", 2), ("w.safetensors", 1000)]);
    assert_eq!(listing.files[0].hash, Some(Hash::GitBlob(git_blob(b"{}"))));
    assert_eq!(
        listing.files[1].hash,
        Some(Hash::Sha256(sha256(&content(1000))))
    );
    let log = bench.server.log();
    assert_eq!(log.len(), 1);
    assert_eq!(
        log[0].path,
        "/api/models/owner/model/revision/main?blobs=true"
    );
    assert_eq!(log[0].authorization, None);
    assert!(!bench.config.cache.exists());
}

#[test]
fn a_large_file_goes_into_the_cache_and_the_token_to_the_hub_only() {
    let mut bench = Bench::new();
    bench.server.large("sub/w.safetensors", &content(700_000));
    bench.server.require("hf_secret");
    bench.config.token = Some("hf_secret".to_owned());
    let file = bench.file("sub/w.safetensors");
    let mut steps = Vec::new();
    let fetched = bench
        .hub()
        .fetch(&repo(), COMMIT, &file, &mut |done| steps.push(done));
    let path = fetched.unwrap();
    assert!(path.ends_with(format!("snapshots/{COMMIT}/sub/w.safetensors")));
    assert_large_cached(&bench, "sub/w.safetensors", &content(700_000));
    assert!(steps.len() > 2 && steps.is_sorted() && steps.last() == Some(&700_000));

    let log = bench.server.log();
    let seen: Vec<_> = log
        .iter()
        .map(|r| (r.content_server, r.authorization.as_deref()))
        .collect();
    assert_eq!(seen, [(false, Some("Bearer hf_secret")), (true, None)]);
}

#[test]
fn small_files_odd_names_and_empty_files() {
    let bench = Bench::new();
    let files: [(&str, &[u8]); 3] = [
        ("a/b/config.json", b"{\"x\": 1}"),
        ("odd name #1 100%?é.json", b"[]"),
        ("empty", b""),
    ];
    for (path, content) in files {
        bench.server.small(path, content);
    }
    for (path, content) in files {
        bench.fetch(path).unwrap();
        assert_cached(&bench, path, &git_blob(content), content);
    }
}

#[test]
fn what_is_there_is_not_fetched_again() {
    let bench = Bench::new();
    bench.server.large("w", &content(5000));
    bench.server.large("copy", &content(5000));
    bench.fetch("w").unwrap();
    bench.server.log();
    bench.fetch("w").unwrap();
    // The same content under another name is only linked.
    bench.fetch("copy").unwrap();
    assert!(bench.server.log().is_empty());
    assert_large_cached(&bench, "copy", &content(5000));
}

#[test]
fn another_process_goes_on_where_one_stopped() {
    let bench = Bench::new();
    bench.server.large("w", &content(400_000));
    bench
        .server
        .stuck("w", &[Fault::Cut(300_000), Fault::Cut(0)]);
    let error = bench.fetch("w").unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("300.00 kB of 400.00 kB are kept"), "{text}");
    assert!(
        text.contains("the same command resumes from there"),
        "{text}"
    );
    assert_eq!(fs::metadata(&bench.parts()[0]).unwrap().len(), 300_000);

    bench.server.faults("w", &[]);
    bench.fetch("w").unwrap();
    assert_large_cached(&bench, "w", &content(400_000));
    let ranges: Vec<_> = bench
        .server
        .log()
        .into_iter()
        .map(|request| request.range)
        .collect();
    assert_eq!(
        ranges,
        [const { Some("bytes=300000-") }; 2].map(|r| r.map(str::to_owned))
    );
}

#[test]
fn a_part_that_is_whole_needs_no_request() {
    let bench = Bench::new();
    bench.server.large("w", &content(5000));
    let blobs = bench.repo_folder().join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    let part = blobs.join(format!("{}.wan-i2v.incomplete", sha256(&content(5000))));
    fs::write(&part, content(5000)).unwrap();
    bench.fetch("w").unwrap();
    assert!(bench.server.log().is_empty());
    assert_large_cached(&bench, "w", &content(5000));

    // One that is too long cannot be a beginning.
    bench.server.large("v", &content(4000));
    let part = blobs.join(format!("{}.wan-i2v.incomplete", sha256(&content(4000))));
    fs::write(part, content(4001)).unwrap();
    bench.fetch("v").unwrap();
    assert_large_cached(&bench, "v", &content(4000));
}

#[test]
fn damaged_places_in_the_cache_are_mended() {
    let bench = Bench::new();
    bench.server.large("w", &content(5000));
    let pointer = bench.fetch("w").unwrap();
    // A blob that was cut off, and a link to nowhere.
    let blob = bench
        .repo_folder()
        .join("blobs")
        .join(sha256(&content(5000)));
    fs::write(&blob, b"short").unwrap();
    bench.fetch("w").unwrap();
    assert_large_cached(&bench, "w", &content(5000));
    fs::remove_file(&pointer).unwrap();
    symlink("../../blobs/none", &pointer).unwrap();
    bench.fetch("w").unwrap();
    assert_large_cached(&bench, "w", &content(5000));
    // A link to another file.
    bench.server.large("v", &content(4000));
    let other = bench.fetch("v").unwrap();
    fs::remove_file(&pointer).unwrap();
    symlink(fs::read_link(other).unwrap(), &pointer).unwrap();
    bench.fetch("w").unwrap();
    assert_large_cached(&bench, "w", &content(5000));
}

#[test]
fn to_a_folder_outside_the_cache() {
    let bench = Bench::new();
    bench.server.large("sub/w", &content(300_000));
    bench
        .server
        .stuck("sub/w", &[Fault::Cut(200_000), Fault::Cut(0)]);
    let file = bench.file("sub/w");
    let folder = bench.folder.path().join("out");
    let fetch = || {
        bench
            .hub()
            .fetch_to(&repo(), COMMIT, &file, &folder, &mut |_| {})
    };
    fetch().unwrap_err();
    assert!(!folder.join("sub/w").exists());
    assert_eq!(
        fs::metadata(folder.join("sub/w.part")).unwrap().len(),
        200_000
    );

    bench.server.faults("sub/w", &[]);
    assert_eq!(fetch().unwrap(), folder.join("sub/w"));
    assert!(fs::read(folder.join("sub/w")).unwrap() == content(300_000));
    assert!(!folder.join("sub/w.part").exists() && !bench.config.cache.exists());

    bench.server.log();
    fetch().unwrap();
    assert!(bench.server.log().is_empty());
    // Of the right size, and yet not the file.
    fs::write(folder.join("sub/w"), vec![0; 300_000]).unwrap();
    fetch().unwrap();
    assert!(fs::read(folder.join("sub/w")).unwrap() == content(300_000));
}

#[test]
fn offline_the_cache_answers() {
    let mut bench = Bench::new();
    bench.server.large("sub/w", &content(5000));
    bench.server.small("config.json", b"{}");
    bench.server.small("other.json", b"[]");
    bench.fetch("sub/w").unwrap();
    bench.fetch("config.json").unwrap();
    let other = bench.file("other.json");
    let online = bench.list().unwrap();

    bench.config.offline = true;
    bench.server.log();
    let listing = bench.list().unwrap();
    assert_eq!(listing.commit, online.commit);
    let there = |path: &str| path != "other.json";
    let there: Vec<_> = online
        .files
        .into_iter()
        .filter(|file| there(&file.path))
        .collect();
    assert_eq!(listing.files, there);
    for file in &there {
        bench
            .hub()
            .fetch(&repo(), COMMIT, file, &mut |_| {})
            .unwrap();
    }
    let error = bench
        .hub()
        .fetch(&repo(), COMMIT, &other, &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("other.json of owner/model is not in the cache"),
        "{error}"
    );
    assert!(error.contains("HF_HUB_OFFLINE=1"), "{error}");
    let error = bench
        .hub()
        .list(&"owner/else".parse().unwrap())
        .unwrap_err()
        .to_string();
    assert!(error.contains("owner/else is not in the cache"), "{error}");
    assert!(bench.server.log().is_empty());
}

#[test]
fn a_snapshot_counts_when_it_is_whole() {
    let bench = Bench::new();
    let mut files = vec![
        "model_index.json".to_owned(),
        "tokenizer/tokenizer.json".to_owned(),
    ];
    for part in ["transformer", "transformer_2", "vae", "text_encoder"] {
        files.push(format!("{part}/config.json"));
        files.push(format!(
            "{part}/diffusion_pytorch_model-00001-of-00002.safetensors"
        ));
        files.push(format!(
            "{part}/diffusion_pytorch_model-00002-of-00002.safetensors"
        ));
        files.push(format!(
            "{part}/diffusion_pytorch_model.safetensors.index.json"
        ));
    }
    for path in &files {
        bench.server.large(path, path.as_bytes());
    }
    let (hub, listing): (Hub, _) = (bench.hub(), bench.list().unwrap());
    assert_eq!(hub.cached(&repo()), None);
    // Each shard but the last one is not enough; configs are the loader's business.
    let last = "vae/diffusion_pytorch_model-00002-of-00002.safetensors";
    for file in listing.files.iter().filter(|file| file.path != last) {
        hub.fetch(&repo(), COMMIT, file, &mut |_| {}).unwrap();
        assert_eq!(hub.cached(&repo()), None, "{}", file.path);
    }
    bench.fetch(last).unwrap();
    let snapshot = hub.cached(&repo()).unwrap();
    assert_eq!(snapshot, bench.repo_folder().join("snapshots").join(COMMIT));
    assert_eq!(hub.cached(&"owner/model@v2".parse().unwrap()), None);
    let at_commit = format!("owner/model@{COMMIT}").parse().unwrap();
    assert_eq!(hub.cached(&at_commit), Some(snapshot));
}
