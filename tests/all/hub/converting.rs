//! Conversion of a model while it is fetched.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use safetensors::tensor::Dtype;
use wan_i2v::hub::pull::{self, HubSource};
use wan_i2v::weights::Files;
use wan_i2v::weights::convert::{self, Bits, Event, LocalSource, Options};
use wan_i2v::weights::inspect::Report;
use wan_i2v::weights::layout::Layout;
use wan_i2v::weights::naming::Kind;

use crate::hub::models::{HIGH, LOW, Model, assert_same, renamed};
use crate::hub::server::{COMMIT, Fault};
use crate::hub::{Bench, repo};
use crate::support::mlx;
use crate::support::scratch::{Tensor, file_of, tensors_of};

/// Four bits for the experts, eight for the text encoder.
pub fn options() -> Options {
    Options {
        high: Some(Bits::Four),
        low: Some(Bits::Four),
        text: Some(Bits::Eight),
        ..Options::default()
    }
}

/// The model on disk, converted.
pub fn reference(model: &Model, options: &Options, folder: &Path) -> PathBuf {
    let (source, target) = (folder.join("disk"), folder.join("expected"));
    model.write(&source);
    let layout = Layout::of_folder(&Files::from(source.as_path())).unwrap();
    let mut feed = LocalSource::new(&layout).unwrap();
    let _mlx = mlx();
    convert::convert(&mut feed, &target, options, &mut |_| {}).unwrap();
    target
}

/// Bytes that a folder takes of the disk.
fn disk(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => disk(&entry.path()),
        Ok(meta) => meta.blocks() * 512,
        // Gone meanwhile.
        Err(_) => 0,
    };
    entries.map(bytes).sum()
}

impl Bench {
    /// A bench that serves a model.
    pub fn serving(model: &Model) -> Self {
        let bench = Self::new();
        model.serve(&bench.server);
        bench
    }

    /// Where it is converted to: alone in its folder.
    pub fn target(&self) -> PathBuf {
        self.folder.path().join("out/model")
    }

    /// Converts what the server has, as a new process would.
    pub fn convert(&self, options: &Options, on_event: &mut dyn FnMut(Event)) -> Result<()> {
        let hub = self.hub();
        let (listing, selection) = pull::select(&hub, &repo(), &[])?;
        let target = convert::Reserved::new(&self.target())?;
        let folder = convert::source_folder(target.target());
        let mut feed = HubSource::new(&hub, &repo(), &listing.commit, &selection, &folder)?;
        let _mlx = mlx();
        convert::convert_into(target, &mut feed, options, on_event)?;
        Ok(())
    }

    /// The error of a conversion that fails and leaves no target.
    pub fn convert_error(&self) -> String {
        let error = self.convert(&options(), &mut |_| {}).unwrap_err();
        assert!(!self.target().exists());
        format!("{error:#}")
    }

    /// The files with weights that were asked for since the last call, and from where.
    pub fn asked(&self) -> Vec<(String, String)> {
        let log = self.server.log().into_iter().filter(|r| r.content_server);
        log.map(|request| {
            let path = request.path.trim_start_matches("/content/");
            let path = path.trim_end_matches("?sig=secret").to_owned();
            (path, request.range.unwrap_or_default())
        })
        .collect()
    }
}

/// That streaming a model makes the same of it as having it, and needs little room.
fn assert_streams(model: &Model, options: &Options) {
    let bench = Bench::serving(model);
    let parent = bench.target().parent().unwrap().to_owned();
    let (mut most, mut fetched, mut total, mut read) = (0, 0, 0, 0);
    let mut count = |event: Event| {
        most = disk(&parent).max(most);
        match event {
            Event::Total(bytes) => total = bytes,
            Event::Fetched(bytes) => fetched += bytes,
            Event::Read(bytes) => read += bytes,
            // Reading back begins: the total is of something else now.
            Event::Verifying(_) => {
                assert!(read <= total && read > total - total / 20, "{read} {total}");
            }
            _ => {}
        }
    };
    bench.convert(options, &mut count).unwrap();
    let asked: Vec<String> = bench.asked().into_iter().map(|asked| asked.0).collect();
    assert_eq!(asked, model.weights(), "each once, in order");
    assert_eq!(fetched, total);

    let expected = reference(model, options, bench.folder.path());
    assert_same(&bench.target(), &expected);
    let layout = Layout::of_folder(&Files::from(bench.target().as_path())).unwrap();
    let report = Report::of(&layout);
    assert!(report.runs, "{:?}", report.problems);
    assert_eq!(fs::read_dir(&parent).unwrap().count(), 1, "nothing else");

    // The small files, what is noted of the conversion, and blocks that are not full.
    let small: u64 = model.0.values().map(|file| file.len() as u64).sum::<u64>() - total;
    let slack = small + 200_000;
    let result = disk(&bench.target());
    println!(
        "measured: {most} bytes of disk at most; {result} of result, largest file {}, {total} in all",
        model.largest()
    );
    assert!(most <= result + model.largest() + slack, "{most}");
    assert!(most > result);
}

#[test]
fn one_file_a_part() {
    assert_streams(&Model::miniature(), &options());
}

#[test]
fn sharded_experts() {
    let model = Model::sharded();
    assert_streams(&model, &options());
    // As they are, and in small files.
    let small = Options {
        low: Some(Bits::Sixteen),
        file_bytes: 1_000_000,
        ..Options::default()
    };
    assert_streams(&model, &small);
}

#[test]
fn the_original_layout() {
    assert_streams(&Model::original(".pth"), &options());
    assert_streams(&Model::original(".safetensors"), &options());
}

/// Wan2.1 I2V-14B's, whose index tells the branch for pictures and CLIP's file the rest, and TI2V-5B's: one
/// transformer in shards.
#[test]
fn the_original_layout_of_one_transformer() {
    for five in [false, true] {
        let model = Model::single(five);
        assert!(model.0.contains_key(&crate::hub::models::shard(2)));
        assert_streams(&model, &options());
    }
}

/// A converted model on the hub has the indexes of all its parts in one folder.
#[test]
fn a_converted_model_in_shards() {
    let bench = Bench::new();
    let small = Options {
        high: Some(Bits::Eight),
        low: Some(Bits::Eight),
        file_bytes: 1_000_000,
        ..Options::default()
    };
    let folder = reference(&Model::miniature(), &small, bench.folder.path());
    let mut model = Model(Default::default());
    for entry in fs::read_dir(&folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let content = fs::read(folder.join(&name)).unwrap();
        model.0.insert(name, content);
    }
    let keep = Options {
        high: None,
        low: None,
        ..small
    };
    assert_streams(&model, &keep);
}

#[test]
fn a_wrong_hash() {
    let model = Model::miniature().only(&["transformer", "transformer_2"]);
    let bench = Bench::serving(&model);
    bench.server.faults(LOW, &[Fault::Corrupt]);
    let error = bench.convert_error();
    assert!(
        error.contains(LOW) && error.contains("wrong hash"),
        "{error}"
    );
    let source = convert::source_folder(&bench.target());
    let left = source.join(COMMIT).join("transformer_2");
    assert_eq!(fs::read_dir(left).unwrap().count(), 1, "its configuration");
    let asked: Vec<String> = bench.asked().into_iter().map(|asked| asked.0).collect();
    assert_eq!(asked, [HIGH, LOW]);

    bench.convert(&options(), &mut |_| {}).unwrap();
    assert_eq!(bench.asked(), [(LOW.to_owned(), String::new())]);
    let expected = reference(&model, &options(), bench.folder.path());
    assert_same(&bench.target(), &expected);
}

/// ComfyUI's files have no configuration, and the tokenizer is in the text encoder's.
#[test]
fn files_that_are_named() {
    let source = Model::miniature();
    let mut text = tensors_of(&source.0["text_encoder/model.safetensors"]);
    let spiece = Tensor {
        dtype: Dtype::U8,
        shape: vec![5],
        bytes: b"words".to_vec(),
    };
    text.insert("spiece_model".into(), spiece);
    let expert = file_of(&renamed(Kind::Expert, &source.0[HIGH]));
    let model = Model(
        [
            ("diffusion_models/wan_high_noise.safetensors", expert),
            ("text_encoders/umt5.safetensors", file_of(&text)),
        ]
        .map(|(path, content)| (path.to_owned(), content))
        .into(),
    );
    let bench = Bench::serving(&model);
    let (expert, text) = ("diffusion_models", "text_encoders/umt5.safetensors");
    let target = bench.target();
    let mut args = vec!["pull", "owner/model", expert, text, "--bits", "4"];
    args.extend(["--text-bits", "8", "--shard-size", "0"]);
    args.extend(["--output", target.to_str().unwrap()]);
    // Interrupted when the text encoder is done with.
    let mut run = bench.start(&args);
    run.wait_for_line("verifying:");
    run.kill();
    if !target.exists() {
        bench.run(&args).path();
    }
    let expected = reference(&model, &options(), bench.folder.path());
    assert_same(&target, &expected);
    assert_eq!(fs::read(target.join("spiece.model")).unwrap(), b"words");
}
