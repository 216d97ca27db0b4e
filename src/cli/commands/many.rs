//! What `batch` and `sweep` have in common: clips that are all checked first, then made together.

use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use crate::batch::{self, BatchOptions, Capacity, ClipStatus, Costs, Entry, ranks};
use crate::clip::Model;
use crate::persist::{SavedRun, state_path};
use crate::pipeline::plan::{Budget, Rates};
use crate::pipeline::{Event, InputCache, Interrupted, Progress};
use crate::runtime::{self, Device, DeviceKind, Links, RankLost};
use crate::tiny;
use anyhow::{Context, Result};

use super::again::Early;
use super::preview::{self, Screen};
use super::resolve::{self, Elsewhere, Resolved, catalogue};
use super::{awake, tune};
use crate::cli::config::Catalogue;
use crate::cli::flags::{GenerateArgs, MachineArgs, ManyArgs, PreviewArgs};
use crate::cli::ui::desktop::{Share, Signs};
use crate::cli::ui::report::{self, Many};
use crate::cli::ui::{Listener, Stoppable, Style, info, stderr, style, with_advice};
use crate::util::files::cache_folder;
use crate::util::show::{Show, gist};

/// A clip to be made.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Where it is written, to begin its errors with; empty where nothing is to be said.
    pub(super) place: String,
    /// Its name.
    pub(super) name: Option<String>,
    /// The seed.
    pub(super) seed: Option<u64>,
    /// Its flags; or why there are none.
    pub(super) args: Result<Box<GenerateArgs>>,
}

/// A clip that can be made.
pub(super) struct Ready {
    pub(super) entry: Entry,
    pub(super) status: ClipStatus,
    budget: Budget,
    preview: Option<(PreviewArgs, Screen)>,
    is_tiny: bool,
}

/// Orders clips, by their numbers, and receives the events of the run.
pub(super) trait Client: Progress {
    /// What is left to do of a clip that can be made.
    ///
    /// # Errors
    /// Why it cannot be made after all.
    fn status(&mut self, number: usize, entry: &Entry) -> Result<ClipStatus>;

    /// A clip cannot be made.
    fn fail(&mut self, number: usize, error: &str);

    /// All is checked, and the clips are about to be made.
    fn begin(&mut self, capacity: Capacity);

    /// Reports on the clips.
    fn reporter(&self) -> &Many;
}

/// Says how far the checks are, from the first second on.
pub(super) struct Checking {
    clips: usize,
    due: Instant,
}

impl Checking {
    pub(super) fn of(clips: usize) -> Self {
        Self {
            clips,
            due: Instant::now() + Duration::from_secs(1),
        }
    }

    pub(super) fn reached(&mut self, number: usize) {
        if Instant::now() >= self.due {
            info!("{number} of {} clips checked", self.clips);
            self.due = Instant::now() + Duration::from_secs(5);
        }
    }
}

/// Clips that were checked.
pub(super) struct Checked {
    /// Those that can be made, by number.
    pub(super) ready: Vec<(usize, Ready)>,
    /// The machine's rates, where times are forecast.
    pub(super) rates: Option<Rates>,
    at_once: Option<usize>,
    folder: PathBuf,
    dry_run: bool,
    yes: bool,
    allow_sleep: bool,
    no_retry: bool,
    /// Where the last of them is computed.
    machine: Option<MachineArgs>,
    /// Whose files the clips are made from.
    elsewhere: Elsewhere,
}

impl Checked {
    /// Checks all that can be checked before a model is loaded; with `--dry-run` forecasts times.
    pub(super) fn new(
        wanted: Vec<Wanted>,
        many: &ManyArgs,
        catalogue: &Catalogue,
        folders: &mut Folders,
        client: &mut dyn Client,
    ) -> Self {
        let mut inputs = InputCache::new(many.dry_run);
        let mut checked = Self {
            ready: Vec::new(),
            rates: None,
            // Where memory has run out, as many as fit.
            at_once: many
                .jobs_at_once
                .map(NonZeroUsize::get)
                .filter(|_| runtime::again().is_none_or(|again| again.budget.is_none())),
            folder: many.output_dir.clone(),
            dry_run: many.dry_run,
            yes: false,
            allow_sleep: false,
            no_retry: false,
            machine: None,
            elsewhere: Elsewhere::new(many.dry_run, catalogue),
        };
        checked.elsewhere.models.with_tokenizer = true;
        let mut checking = Checking::of(wanted.len());
        for (number, clip) in wanted.into_iter().enumerate() {
            checking.reached(number);
            let place = clip.place;
            let args = clip.args;
            let prepared = args
                .and_then(|args| checked.prepare(args, &mut inputs, folders))
                .map_err(|error| match error.to_string().starts_with(&place) {
                    true => error,
                    false => error.context(place),
                });
            let stands = prepared.and_then(|mut clip| {
                clip.status = client.status(number, &clip.entry)?;
                if clip.status == ClipStatus::UpToDate && !many.dry_run {
                    clip.entry.tidy();
                }
                Ok(clip)
            });
            match stands {
                Ok(clip) => checked.ready.push((number, clip)),
                Err(error) => client.fail(number, &with_advice(&error)),
            }
        }
        if !many.dry_run {
            // A GPU that cannot be tuned computes as ever.
            let _ = checked.tune();
        }
        checked
    }

    /// Tunes a GPU before its first clips that take long, and has those computed so that are not begun.
    fn tune(&mut self) -> Result<()> {
        let Some(machine) = self.machine.take() else {
            return Ok(());
        };
        let device = machine.device()?;
        let capacity = self.capacity()?;
        let rates = Rates::for_work(device, self.costs(capacity).operations());
        let rates = rates.as_ref().map(|(rates, _)| rates);
        let clips = self.todo().map(|clip| (&clip.entry, clip.status));
        let seconds = Costs::of(clips, capacity, rates).seconds();
        let Some(tuning) = tune::before_a_run(&machine, seconds)? else {
            return Ok(());
        };
        let tuned = machine.device_as(tuning)?;
        let missing = |clip: &Ready| clip.status == ClipStatus::Missing && !clip.is_tiny;
        for (_, clip) in self.ready.iter_mut().filter(|(_, clip)| missing(clip)) {
            if clip.entry.device() == device {
                clip.entry.compute_on(tuned, clip.budget)?;
            }
        }
        Ok(())
    }

    fn prepare(
        &mut self,
        args: Box<GenerateArgs>,
        inputs: &mut InputCache,
        folders: &mut Folders,
    ) -> Result<Ready> {
        for path in args.output.written() {
            batch::check_output(path, &self.folder)?;
            folders.make(path.parent().unwrap_or(Path::new("")))?;
        }
        let Resolved {
            request,
            machine,
            preview,
            yes,
            allow_sleep,
            no_retry,
            ..
        } = resolve::clip(args.clip, args.output, &mut self.elsewhere)?;
        (self.yes, self.allow_sleep, self.no_retry) = (yes, allow_sleep, no_retry);
        let screen = Screen::of(&preview, &request)?;
        // A saved run goes on as it began.
        let state = state_path(&request.output);
        let saved = state
            .exists()
            .then(|| SavedRun::read(&state).ok())
            .flatten();
        let device = match saved {
            Some(saved) => machine.device_as(saved.identity.tuning())?,
            None => machine.device()?,
        };
        let budget = machine.budget(device);
        if self.dry_run && self.rates.is_none() {
            self.rates = Some(Rates::of_machine(device, false)?);
        }
        self.machine = Some(machine);
        Ok(Ready {
            is_tiny: request.model == Model::Tiny,
            entry: Entry::prepare(request, device, budget, self.rates.as_mut(), inputs)?,
            status: ClipStatus::Missing,
            budget,
            preview: screen.map(|screen| (preview, screen)),
        })
    }

    /// Those that are not there yet.
    pub(super) fn todo(&self) -> impl Iterator<Item = &Ready> + Clone {
        let ready = self.ready.iter().map(|(_, clip)| clip);
        ready.filter(|clip| clip.status != ClipStatus::UpToDate)
    }

    /// The smallest memory that one of them may take.
    pub(super) fn budget(&self) -> Option<Budget> {
        let budgets = self.ready.iter().map(|(_, clip)| clip.budget);
        budgets.min_by_key(|budget| budget.bytes)
    }

    /// How many can be in flight at once.
    ///
    /// # Errors
    /// When more are asked for than fit.
    pub(super) fn capacity(&self) -> Result<Capacity> {
        let budget = self.budget().unwrap_or(Budget {
            bytes: u64::MAX,
            explicit: false,
        });
        batch::capacity(self.todo().map(|clip| &clip.entry), self.at_once, budget)
    }

    /// What is left to be computed and loaded.
    pub(super) fn costs(&self, capacity: Capacity) -> Costs {
        let clips = self.todo().map(|clip| (&clip.entry, clip.status));
        Costs::of(clips, capacity, self.rates.as_ref())
    }

    /// Makes them; returns the exit code of a signal that has ended it.
    ///
    /// # Errors
    /// As [`batch::run`].
    pub(super) fn make(
        mut self,
        options: BatchOptions<'_>,
        links: Option<Links>,
        client: &mut (impl Client + 'static),
    ) -> Result<Option<u8>> {
        let budgets = self.ready.iter().map(|(_, clip)| clip.budget.bytes);
        if let Some(bytes) = budgets.max() {
            runtime::limit_memory(bytes)?;
        }
        let device = self.ready.first().map(|(_, clip)| clip.entry.device());
        if let Some(device) = device
            && self.todo().next().is_some()
        {
            let work = self.costs(options.capacity).operations();
            self.rates = Rates::for_work(device, work).map(|(mut rates, is_long)| {
                for clip in self.todo().filter(|_| is_long) {
                    let checkpoint = clip.entry.job().checkpoint();
                    clip.entry.forecast().measure(&mut rates, checkpoint);
                }
                rates
            });
            let costs = self.costs(options.capacity);
            report::forecast(
                costs.seconds(),
                options.capacity.peak_bytes,
                costs.passes,
                None,
                self.yes,
            )?;
        }
        client.begin(options.capacity);
        if let Some((_, clip)) = self.ready.first() {
            stderr::warn_of_shortage(clip.entry.device(), options.capacity.peak_bytes);
        }
        if self.ready.iter().any(|(_, clip)| clip.is_tiny) {
            let catalogue = self.elsewhere.models.catalogue();
            let device = self.ready.first().map(|(_, clip)| clip.entry.device());
            if let Some(device) = device {
                tell_of_miniature(device, catalogue);
            }
        }
        let mut clips = Vec::new();
        for (number, mut clip) in self.ready {
            let saved = match clip.status {
                ClipStatus::UpToDate => continue,
                ClipStatus::Resumable(_) => true,
                ClipStatus::Missing => false,
            };
            for note in clip.entry.job().notes() {
                info!("{}{note}", client.reporter().label(number));
            }
            for warning in clip.entry.job().warnings() {
                stderr::warning(&format!("{}{warning}", client.reporter().label(number)));
            }
            let console = client.reporter().console.clone();
            let device = clip.entry.device();
            if let Some((args, screen)) = clip.preview
                && let Err(error) =
                    preview::attach(&args, clip.entry.job_mut(), screen, device, console)
            {
                client.fail(number, &with_advice(&error));
                continue;
            }
            clips.push((number, clip.entry, saved));
        }
        awake::keep(self.allow_sleep);
        let listener = Listener::start()?;
        let share = Share::Clips {
            all: clips.len(),
            ended: 0,
        };
        let name = options.folder.file_name().unwrap_or_default();
        let mut signs = Signs::new(client, &name.to_string_lossy(), share);
        let mut progress = Stoppable {
            inner: &mut signs,
            listener: &listener,
            advanced: false,
        };
        let is_shared = links.is_some();
        let ran = match links {
            Some(links) => ranks::run(clips, options, links, &mut progress),
            None => batch::run(clips, options, &mut progress),
        };
        match ran {
            Ok(()) => Ok(None),
            Err(error) if error.is::<Interrupted>() => Ok(Some(listener.exit_code().unwrap_or(1))),
            Err(error) => {
                let against = match options {
                    _ if listener.exit_code().is_some() => Some("the clips were to stop"),
                    _ if is_shared => Some("the other machines cannot follow"),
                    _ if self.no_retry => {
                        Some("the clips are not resumed by themselves (--no-retry)")
                    }
                    BatchOptions { every: None, .. } => {
                        Some("nothing was saved (--no-checkpoint), so no clip can be resumed")
                    }
                    BatchOptions { fresh: true, .. } => {
                        Some("--resume never would make every clip again")
                    }
                    _ => None,
                };
                let early = Early {
                    against,
                    advanced: progress.advanced,
                    peak_bytes: options.capacity.peak_bytes,
                    step: None,
                    state: None,
                    output: None,
                };
                Err(early.because_of(error))
            }
        }
    }
}

/// Makes the clips that rank 0 hands out. `wanted` are all of them, in the folder of `many`, which is to be
/// nobody else's.
///
/// # Errors
/// As [`ranks::serve`].
pub(super) fn serve(
    wanted: Vec<Wanted>,
    many: &ManyArgs,
    catalogue: &Catalogue,
    links: &Links,
) -> Result<ExitCode> {
    let mut client = Unseen(Many::new(Vec::new()));
    let served = || {
        let mut folders = Folders::default();
        let checked = Checked::new(wanted, many, catalogue, &mut folders, &mut client);
        let budgets = checked.ready.iter().map(|(_, clip)| clip.budget.bytes);
        if let Some(bytes) = budgets.max() {
            runtime::limit_memory(bytes)?;
        }
        let lock = batch::lock(&many.output_dir)?;
        let options = BatchOptions {
            folder: &many.output_dir,
            lock: &lock,
            capacity: checked.capacity()?,
            every: None,
            fresh: true,
        };
        awake::keep(checked.allow_sleep);
        let entries = checked.ready.into_iter();
        let entries = entries.map(|(number, clip)| (number, clip.entry));
        ranks::serve(entries.collect(), options, links)
    };
    let served = served();
    if let Err(error) = &served
        && !error.is::<RankLost>()
    {
        links.fail(&gist(error));
    }
    served.map(|()| ExitCode::SUCCESS)
}

/// Orders what rank 0 hands out, and tells nobody.
struct Unseen(Many);

impl Client for Unseen {
    fn status(&mut self, _number: usize, _entry: &Entry) -> Result<ClipStatus> {
        Ok(ClipStatus::Missing)
    }

    fn fail(&mut self, _number: usize, _error: &str) {
        // Whoever can make it gets it, and rank 0 says why it cannot.
    }

    fn begin(&mut self, _capacity: Capacity) {}

    fn reporter(&self) -> &Many {
        &self.0
    }
}

impl Progress for Unseen {
    fn on_event(&mut self, _event: &Event<'_>) {}
}

/// Tells what the miniature is, and of the real model that suits a machine with a GPU, once a day.
pub(super) fn tell_of_miniature(device: Device, catalogue: &Catalogue) {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    if style() != Style::Quiet
        && let Some(folder) = cache_folder()
        && is_due(&folder.join("miniature-told"), DAY)
    {
        info!("{}", tiny::NOTICE);
        let budget = Budget::of_machine(device);
        if device.kind == DeviceKind::Gpu
            && let Ok(Some(text)) = catalogue::suits(catalogue, device, budget)
        {
            info!("{text}");
        }
    }
}

/// Whether something was done longer ago than `pause`, by the date of a file, which is then of now;
/// where there can be none, nothing is ever due.
fn is_due(mark: &Path, pause: Duration) -> bool {
    let date = mark.metadata().and_then(|mark| mark.modified());
    let is_old = |date: SystemTime| date.elapsed().is_ok_and(|age| age >= pause);
    let folder = mark.parent().unwrap_or(Path::new(""));
    date.map_or(true, is_old)
        && fs::create_dir_all(folder).is_ok()
        && File::create(mark)
            .and_then(|mark| mark.set_modified(SystemTime::now()))
            .is_ok()
}

/// Folders that were made for clips.
#[derive(Debug, Default)]
pub(super) struct Folders(Vec<PathBuf>);

impl Folders {
    /// Makes a folder, and those that it is in.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn make(&mut self, folder: &Path) -> Result<()> {
        let missing: Vec<_> = folder
            .ancestors()
            .take_while(|path| !path.as_os_str().is_empty() && !path.exists())
            .map(Path::to_owned)
            .collect();
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder {}", folder.shown()))?;
        self.0.extend(missing.into_iter().rev());
        Ok(())
    }
}

/// Removes those that are empty.
impl Drop for Folders {
    fn drop(&mut self) {
        for folder in self.0.iter().rev() {
            // What has something in it stays.
            let _ = fs::remove_dir(folder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_is_due_again_after_a_while() {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("cache/mark");
        let day = Duration::from_secs(24 * 60 * 60);
        assert!(is_due(&mark, day));
        assert!(!is_due(&mark, day));
        let dated = |date| File::open(&mark).unwrap().set_modified(date).unwrap();
        dated(SystemTime::now() - day);
        assert!(is_due(&mark, day));
        // Of a clock that was set back.
        dated(SystemTime::now() + day);
        assert!(!is_due(&mark, day));
        assert!(!is_due(&mark.join("x"), day));
    }
}
