//! The page of all clips.

use std::fs;

use serde_json::json;

use crate::cli::{Bench, run};
use crate::support::assert_holds;

#[test]
fn the_page_shows_every_job_as_text() {
    let bench = Bench::new("a");
    let hostile = "\"><script>alert('x')</script> & </p>\u{202e}";
    let jobs = [
        json!({ "name": "it's \"1\" #%", "prompt": hostile, "seed": 1, "strip": "s {seed}.png" }),
        json!({ "name": "broken", "prompt": "a cat", "image": "<img>.png", "seed": 2 }),
        json!({ "name": "secret", "prompt": "a hidden cat", "no-metadata": true, "steps": 2 }),
        json!({ "name": "gif", "prompt": "a cat", "seed": 4, "output": "sub/a.gif" }),
    ];
    let jobs = jobs.map(|job| job.to_string()).join("\n");
    let ran = run(&mut bench.batch("jobs.jsonl", &jobs, &["--seed", "3"]));
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert_holds(&ran.stderr, &["to look at: out/index.html"]);
    let page = fs::read_to_string(bench.path("out/index.html")).unwrap();
    assert_holds(
        &page,
        &[
            "<title>jobs.jsonl</title>",
            "4 clips: 3 done, 1 failed, 0 missing",
            "src=\"it%27s%20%221%22%20%23%25_1.mp4\"",
            "src=\"s%201.png\"",
            "&quot;&gt;&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &lt;/p&gt;\\u{202e}",
            "failed: ",
            "&lt;img&gt;.png",
            "<img class=\"small\" width=\"32\" height=\"32\" loading=\"lazy\" alt=\"the clip\" src=\"sub/a.gif\">",
            "<dt>seed</dt><dd>4</dd>",
        ],
    );
    assert_eq!(page.matches("<script").count(), 1);
    assert!(!page.contains("a hidden cat"), "{page}");
    // In the order of the jobs.
    let places = ["it&#39;s", "<h2>broken", "secret", "<h2>sub/a.gif"];
    let places = places.map(|text| page.find(text).unwrap_or_else(|| panic!("{text}: {page}")));
    assert!(places.is_sorted(), "{places:?}");

    // What is gone, or another's, is no longer shown; the page is this program's to replace.
    fs::remove_file(bench.path("out/sub/a.gif")).unwrap();
    let ran = run(&mut bench.batch("jobs.jsonl", &jobs, &["--seed", "3"]));
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    let again = fs::read_to_string(bench.path("out/index.html")).unwrap();
    assert_eq!(again, page);
    let foreign = page.replace("wan-i2v gallery", "my own gallery");
    fs::write(bench.path("out/index.html"), &foreign).unwrap();
    let ran = run(&mut bench.batch("jobs.jsonl", &jobs, &["--seed", "3"]));
    ran.assert_refused(1, &["out/index.html", "no batch or sweep has made this"]);
    assert_eq!(
        fs::read_to_string(bench.path("out/index.html")).unwrap(),
        foreign
    );
}
