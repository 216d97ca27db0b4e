//! `wan-i2v launch`: the ranks of a group, on this machine and over ssh on others.
//!
//! A rank ends when its standard input does, so that none is left over whatever happens to this program
//! or to ssh. A byte that it reads there is a signal's number.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{BufRead, BufReader, ErrorKind, PipeReader, Read, Write, pipe};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level;
use tempfile::NamedTempFile;

use super::LOST;
use crate::cli::config::{PREFIX, variables};
use crate::cli::flags::{Command as CliCommand, Host, LaunchArgs};
use crate::cli::ui::{Style, is_ignored, print_raw, stderr, style};
use crate::cli::usage;
use crate::util::show::Show;

/// The variable by which a rank knows that it ends with its standard input.
const LAUNCHED: &str = "WAN_LAUNCHED";
/// What a rank other than 0 writes to its standard output, where nothing else goes, once it has met rank 0.
const JOINED: &str = "wan-i2v: this rank has joined";
/// The first port, as `mlx.launch` has it.
const PORT: u16 = 32323;
/// Why no rank reads what it does not get.
const NO_INPUT: &str =
    "- reads standard input, which several machines cannot share\nhint: give a file";
/// Events after which rank 0 has no other.
const LAST: [&str; 3] = ["result", "batch_end", "error"];
/// Where free ports are looked for: Linux gives those from 32768 on to connections, macOS those from 49152.
const FREE: Range<u16> = 20_000..32_000;
/// What a rank gets to end by itself.
const GRACE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(20);

/// A started rank.
struct Rank {
    name: String,
    child: Child,
    /// Ends it when dropped.
    input: Arc<Mutex<Option<ChildStdin>>>,
    status: Option<ExitStatus>,
    /// What ssh calls its machine, if that is another.
    ssh_name: Option<String>,
    /// Whether it has met rank 0.
    has_joined: Arc<AtomicBool>,
    /// Shows what it says.
    voice: Option<JoinHandle<()>>,
    /// Rank 0's last event, which is to come after what the others say.
    last: Arc<Mutex<Option<String>>>,
}

/// An event of rank 0's.
#[derive(Deserialize)]
struct Event {
    event: String,
}

impl LaunchArgs {
    /// Starts the ranks, and waits for them.
    ///
    /// # Errors
    /// When a machine is unknown or a rank cannot be started.
    pub(super) fn run(self) -> Result<ExitCode> {
        let goes_on = match self.check()? {
            Ok(goes_on) => goes_on,
            Err(code) => return Ok(code),
        };
        let addresses = self.hosts.iter().map(address).collect::<Result<Vec<_>>>()?;
        let here: Vec<bool> = addresses.iter().map(|ip| is_here(*ip)).collect();
        let all_here = here.iter().all(|here| *here);
        ensure!(
            all_here || !addresses.iter().any(Ipv4Addr::is_loopback),
            "--hosts: localhost cannot be reached from the other machines\n\
             hint: give this machine's own address, such as mac1=10.0.0.1"
        );
        let port = match self.port {
            Some(port) => port,
            None if all_here => free_ports(&addresses)?,
            None => PORT,
        };
        let hosts = host_file(&addresses, port);
        let numbers = [SIGINT, SIGTERM, SIGHUP].into_iter();
        let numbers = numbers.filter(|number| *number != SIGHUP || !is_ignored(SIGHUP));
        let signals = Signals::new(numbers)?;
        let mut file = NamedTempFile::new()?;
        file.write_all(hosts.as_bytes())?;
        let mut ranks = Vec::new();
        for (rank, (host, here)) in self.hosts.iter().zip(here).enumerate() {
            let command = match here {
                true => self.local(rank, file.path())?,
                false => self.remote(rank, &host.name, &hosts)?,
            };
            ranks.push(Rank::start(rank, host, here, command)?);
        }
        let is_forced = Arc::<AtomicBool>::default();
        if let Some(first) = ranks.first() {
            let (input, is_forced) = (Arc::clone(&first.input), Arc::clone(&is_forced));
            let file = file.path().to_owned();
            thread::Builder::new()
                .spawn(move || pass_signals(signals, &input, &is_forced, &file))?;
        }
        Ok(wait_for(ranks, &is_forced, goes_on))
    }

    /// Refuses what no rank could do; returns whether the machines that are left go on when one is lost, or
    /// the exit code where why not has been said already.
    fn check(&self) -> Result<std::result::Result<bool, ExitCode>> {
        let program = env::args_os().take(1);
        let arguments = program.chain(self.flags.iter().cloned()).collect();
        let (cli, _) = match usage::read(arguments) {
            Ok(read) => read,
            Err(code) => return Ok(Err(code)),
        };
        if let Some(style) = cli.reporting().and_then(|reporting| reporting.style()) {
            stderr::set_style(style);
        }
        ensure!(
            self.hosts.len() > 1,
            "--hosts: 1 machine; expected at least 2\nhint: without launch one machine does it all"
        );
        let is_input = |word: &OsString| match word.as_encoded_bytes() {
            b"-" | [b'-', b'a'..=b'z', b'-'] => true,
            word => word.starts_with(b"--") && word.ends_with(b"=-"),
        };
        ensure!(!self.flags.iter().any(is_input), "launch: {NO_INPUT}");
        let name = self.flags.first().cloned().unwrap_or_default();
        let group = cli.group().with_context(|| {
            format!(
                "launch: {} is nothing that machines share; expected the flags of a clip, batch, sweep or \
                 doctor",
                Path::new(&name).shown()
            )
        })?;
        ensure!(
            group.machines.is_none(),
            "--machines: launch makes that file by itself, from --hosts\nhint: leave it out"
        );
        Ok(Ok(matches!(
            cli.command,
            Some(CliCommand::Batch(_) | CliCommand::Sweep(_))
        )))
    }

    /// The command of a rank on this machine.
    fn local(&self, rank: usize, hosts: &Path) -> Result<Command> {
        let mut command = Command::new(env::current_exe()?);
        command.args(&self.flags);
        command
            .env("MLX_RANK", rank.to_string())
            .env("MLX_HOSTFILE", hosts)
            .env(LAUNCHED, "1");
        Ok(command)
    }

    /// The command of a rank on another machine.
    fn remote(&self, rank: usize, name: &str, hosts: &str) -> Result<Command> {
        let program = match &self.program {
            Some(program) => program.clone(),
            None => env::current_exe()?,
        };
        let script = script(rank, hosts, &env::current_dir()?, &program, &self.flags)?;
        let mut command = Command::new("ssh");
        // Its own questions could not be answered.
        command
            .args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=20"])
            .args(["-T", "--", name])
            .arg(script);
        Ok(command)
    }
}

/// What ssh runs on another machine, whatever shell it has there, with the variables that set something.
fn script(
    rank: usize,
    hosts: &str,
    folder: &Path,
    program: &Path,
    flags: &[OsString],
) -> Result<String> {
    let settings = variables().into_iter().map(|(name, value)| {
        let mut setting = OsString::from(format!("{PREFIX}{name}="));
        setting.push(value);
        setting
    });
    let words = settings.chain([program.as_os_str().to_owned()]);
    let words = words.chain(flags.iter().cloned());
    let words: Vec<String> = words.map(|word| quoted(&word)).collect::<Result<_>>()?;
    let script = format!(
        "cd {} && f=$(mktemp) && trap 'rm -f \"$f\"' EXIT && printf %s {} > \"$f\" && \
         env MLX_RANK={rank} MLX_HOSTFILE=\"$f\" {LAUNCHED}=1 {}",
        quoted(folder.as_os_str())?,
        quoted(OsStr::new(hosts))?,
        words.join(" "),
    );
    // csh changes even what is in quotes.
    let encoded = STANDARD.encode(script);
    Ok(format!(
        "sh -c 'eval \"$(echo {encoded} | base64 --decode)\"'"
    ))
}

/// A word as a shell takes it.
fn quoted(word: &OsStr) -> Result<String> {
    let text = word.to_str().context("it is not UTF-8");
    let quoted = text.and_then(|text| Ok(shlex::try_quote(text)?.into_owned()));
    quoted.with_context(|| format!("{} cannot be passed over ssh", Path::new(word).shown()))
}

/// Where the other machines reach a host.
fn address(host: &Host) -> Result<Ipv4Addr> {
    if let Some(address) = host.address {
        return Ok(address);
    }
    // ssh's user is none of the name.
    let name = host.name.rsplit('@').next().unwrap_or_default();
    let found = (name, 0).to_socket_addrs().ok().into_iter().flatten();
    let found = found.filter_map(|address| match address {
        SocketAddr::V4(address) => Some(*address.ip()),
        SocketAddr::V6(_) => None,
    });
    let found = found.into_iter().next();
    found.with_context(|| {
        format!(
            "--hosts: {} has no IPv4 address that is known here\nhint: give it, such as {}=10.0.0.2",
            name.shown(),
            host.name.shown()
        )
    })
}

/// Whether an address is this machine's own: nobody else can listen there.
fn is_here(ip: Ipv4Addr) -> bool {
    TcpListener::bind((ip, 0)).is_ok()
}

/// The first of as many free ports as the ranks take, and one more: below those that a system gives to outgoing
/// connections, which could take one before its rank does.
fn free_ports(addresses: &[Ipv4Addr]) -> Result<u16> {
    let first = addresses.first().context("no machines")?;
    for _ in 0..100 {
        let start =
            FREE.start + (RandomState::new().build_hasher().finish() % FREE.len() as u64) as u16;
        let after = |rank: usize| start.checked_add(u16::try_from(rank).ok()?);
        let is_free = |rank: usize| {
            let ip = addresses.get(rank).unwrap_or(first);
            after(rank).is_some_and(|port| TcpListener::bind((*ip, port)).is_ok())
        };
        if (0..=addresses.len()).all(is_free) {
            return Ok(start);
        }
    }
    bail!("no free ports were found\nhint: name the first of them with --port")
}

fn host_file(addresses: &[Ipv4Addr], port: u16) -> String {
    let all = addresses.iter().zip(port..);
    let all: Vec<[String; 1]> = all.map(|(ip, port)| [format!("{ip}:{port}")]).collect();
    serde_json::json!(all).to_string()
}

impl Rank {
    fn start(rank: usize, host: &Host, here: bool, mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped());
        // Ctrl-C is passed on, to rank 0 alone.
        command.process_group(0);
        let name = format!("rank {rank} ({})", host.name);
        let mut said = None;
        // A rank that shows bars has the terminal.
        if rank > 0 || style() == Style::Json {
            let (read, write) = pipe()?;
            if rank > 0 {
                command.stdout(write.try_clone()?);
            }
            command.stderr(write);
            said = Some(read);
        }
        let started = command.spawn();
        let mut child = started.with_context(|| {
            let program = PathBuf::from(command.get_program());
            format!("{name} cannot be started: {}", program.shown())
        })?;
        // Its end of the pipe is the child's alone.
        drop(command);
        let has_joined = Arc::<AtomicBool>::default();
        let last = Arc::<Mutex<_>>::default();
        let voice = said.map(|said| {
            let (name, has_joined) = (name.clone(), Arc::clone(&has_joined));
            let last = Arc::clone(&last);
            thread::Builder::new().spawn(move || match rank {
                0 => pass_on(said, &last),
                _ => repeat(said, &name, &has_joined),
            })
        });
        Ok(Self {
            name,
            ssh_name: (!here).then(|| host.name.clone()),
            input: Arc::new(Mutex::new(child.stdin.take())),
            child,
            status: None,
            has_joined,
            voice: voice.transpose()?,
            last,
        })
    }

    /// Has it end by itself.
    fn close(&self) {
        self.input
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }

    /// What may help where ssh or the shell on the other machine has ended in its place, as a line or nothing.
    fn hint(&self, status: ExitStatus) -> String {
        match (&self.ssh_name, status.code()) {
            (Some(name), Some(255)) => format!(
                "\nhint: `ssh {name} true` has to work without a question: turn on Remote Login there, and \
                 hand over a key, such as with ssh-copy-id {name}"
            ),
            (Some(name), Some(126 | 127)) => format!(
                "\nhint: {name} has no such program there; install it at the same path, or say where it is \
                 with --program"
            ),
            _ => String::new(),
        }
    }

    /// Its end, if it has ended.
    fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }

    /// Whether it has ended and all is shown that it has said.
    fn is_over(&mut self) -> bool {
        self.ended().is_some() && self.voice.as_ref().is_none_or(JoinHandle::is_finished)
    }

    fn kill(&mut self) {
        if self.ended().is_none() {
            // It has ended meanwhile.
            let _ = self.child.kill();
        }
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}

/// Passes signals on to rank 0 by its `input`. After the second one all ends, whatever it waits for: rank 0
/// `is_forced` to, and then this process, which removes its `file`; the others end with it.
fn pass_signals(
    mut signals: Signals,
    input: &Mutex<Option<ChildStdin>>,
    is_forced: &AtomicBool,
    file: &Path,
) {
    let mut has_asked = false;
    for number in signals.forever() {
        // A closed terminal is no reason to lose a step.
        let number = if number == SIGHUP { SIGTERM } else { number };
        let mut input = input.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(input), Ok(number)) = (&mut *input, u8::try_from(number)) {
            // One that has ended meanwhile needs none.
            let _ = input.write_all(&[number]);
        }
        drop(input);
        if has_asked {
            thread::sleep(GRACE);
            is_forced.store(true, Ordering::Relaxed);
            thread::sleep(GRACE);
            let _ = fs::remove_file(file);
            low_level::exit(128 + number);
        }
        has_asked = true;
    }
}

/// Passes on the events of rank 0, but for the `last` one, and makes some of what else it, MLX or ssh says.
fn pass_on(said: PipeReader, last: &Mutex<Option<String>>) {
    for line in lines(said) {
        // Nobody may read it, so that nothing is locked meanwhile.
        match serde_json::from_str::<Event>(&line) {
            Ok(said) if LAST.contains(&said.event.as_str()) => {
                let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                let earlier = last.replace(line);
                drop(last);
                if let Some(earlier) = earlier {
                    stderr::pass_on(&earlier);
                }
            }
            Ok(_) => stderr::pass_on(&line),
            Err(_) => stderr::note(&line),
        }
    }
}

/// Repeats what another rank says, with its name.
fn repeat(said: PipeReader, name: &str, has_joined: &AtomicBool) {
    for line in lines(said) {
        match line == JOINED {
            true => has_joined.store(true, Ordering::Relaxed),
            false => stderr::repeat(&format!("{name}: {line}")),
        }
    }
}

/// Lines, as far as they are text.
fn lines(said: PipeReader) -> impl Iterator<Item = String> {
    let lines = BufReader::new(said).split(b'\n');
    let lines = lines.map_while(std::result::Result::ok);
    let lines = lines.map(|line| String::from_utf8_lossy(&line).trim_end().to_owned());
    // What MLX says of a rank that is gone, several times; the ranks say who it was.
    let is_verbose = env::var_os("MLX_RING_VERBOSE").is_some();
    lines.filter(move |line| is_verbose || !line.starts_with("[ring]"))
}

/// Waits for the ranks, and has all end when one does, unless rank 0 `goes_on` without those that it has met;
/// returns rank 0's exit code, or that of a rank without which it could not begin.
fn wait_for(mut ranks: Vec<Rank>, is_forced: &AtomicBool, goes_on: bool) -> ExitCode {
    let Some((first, others)) = ranks.split_first_mut() else {
        return ExitCode::FAILURE;
    };
    // The rank that has failed first, what may help, how it has, and when.
    let mut failed: Option<(String, String, ExitStatus, Instant)> = None;
    let mut is_stopped = false;
    let status = loop {
        if let Some(status) = first.ended() {
            break status;
        }
        for rank in others.iter_mut().filter(|rank| rank.status.is_none()) {
            if let Some(status) = rank.ended().filter(|status| !status.success()) {
                stderr::warning(&format!("{} has ended with {status}", rank.name));
                let can_do_without = goes_on && rank.has_joined.load(Ordering::Relaxed);
                if !can_do_without || status.code() == Some(LOST.into()) {
                    failed.get_or_insert_with(|| {
                        let hint = rank.hint(status);
                        (rank.name.clone(), hint, status, Instant::now())
                    });
                }
            }
        }
        let due = failed.as_ref();
        // Rank 0 finds out itself, unless it waits for the ranks to begin.
        let due = due.filter(|(.., since)| since.elapsed() > GRACE);
        is_stopped = due.is_some();
        match due {
            // It has shown no sign of life for long.
            Some((.., status, _)) if status.code() == Some(LOST.into()) => first.kill(),
            Some(_) => first.close(),
            None if is_forced.load(Ordering::Relaxed) => first.kill(),
            None => {}
        }
        thread::sleep(LOOK);
    };
    let end = Instant::now() + GRACE;
    let are_over = |ranks: &mut [Rank]| ranks.iter_mut().all(Rank::is_over);
    for rank in others.iter_mut() {
        rank.close();
    }
    while !(are_over(others) && first.is_over()) && Instant::now() < end {
        thread::sleep(LOOK);
    }
    let last = first
        .last
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    let is_told = last.is_some();
    if let Some(event) = last {
        stderr::pass_on(&event);
    }
    // Rank 0's own end says more, unless it was told to.
    match failed.filter(|_| is_stopped) {
        Some((name, hint, status, _)) => {
            let (code, rank_0) = (exit_code(status), &first.name);
            stderr::error(
                &format!("{name} has ended with {status}; {rank_0} was stopped{hint}"),
                code,
            );
            ExitCode::from(code)
        }
        None => {
            let code = exit_code(status);
            // The shell's or ssh's own end has no event.
            let is_missed = style() == Style::Json && !is_told && code != 0;
            let hint = first.hint(status);
            if status.code().is_none() || is_missed || !hint.is_empty() {
                stderr::error(
                    &format!("{} has ended with {status}{hint}", first.name),
                    code,
                );
            }
            ExitCode::from(code)
        }
    }
}

/// As a shell has it.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| Some(128 + status.signal()?));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// Fails if standard input is `launch`'s own; `what` would be read from it.
pub(super) fn has_input(what: &str) -> Result<()> {
    ensure!(env::var_os(LAUNCHED).is_none(), "{what}: {NO_INPUT}");
    Ok(())
}

/// Tells `launch` that this rank has met rank 0, if it has started it.
pub(super) fn tell_of_joining(rank: usize) -> Result<()> {
    match rank > 0 && env::var_os(LAUNCHED).is_some() {
        true => print_raw(format!("{JOINED}\n").as_bytes()),
        false => Ok(()),
    }
}

/// Has this process take the signals that `launch` passes on over its standard input, and stop as at Ctrl-C
/// when that ends, if `launch` has started it.
pub(super) fn end_with_input() -> Result<()> {
    if env::var_os(LAUNCHED).is_none() {
        return Ok(());
    }
    // Whoever reads standard input finds none.
    let mut input = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    thread::Builder::new().spawn(move || {
        let mut number = [0];
        loop {
            let signal = match input.read(&mut number) {
                Ok(1) => i32::from(number[0]),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                _ => break,
            };
            if [SIGINT, SIGTERM].contains(&signal) {
                let _ = low_level::raise(signal);
            }
        }
        let _ = low_level::raise(SIGINT);
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_arrive_over_ssh_as_they_are() {
        let flags = ["--prompt", "it's \"$HOME\" `x`; rm -rf /", "*", ""].map(OsString::from);
        let folder = tempfile::tempdir().unwrap();
        let odd = folder.path().join("a 'b' $c");
        std::fs::create_dir(&odd).unwrap();
        let script = script(
            1,
            "[[\"10.0.0.1:1\"]]",
            &odd,
            Path::new("/usr/bin/printf"),
            &[&[OsString::from("%s\\n")][..], &flags].concat(),
        );
        let output = Command::new("sh")
            .arg("-c")
            .arg(script.unwrap())
            .output()
            .unwrap();
        let expected: Vec<_> = flags.iter().map(|flag| flag.to_str().unwrap()).collect();
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            expected.join("\n") + "\n"
        );
    }

    #[test]
    fn hosts_have_ports_of_their_own() {
        let both = [Ipv4Addr::LOCALHOST; 2];
        assert_eq!(host_file(&both, 7), r#"[["127.0.0.1:7"],["127.0.0.1:8"]]"#);
        assert!(free_ports(&both).unwrap() > 1023);
        assert!(is_here(both[0]) && !is_here(Ipv4Addr::new(192, 0, 2, 1)));
    }
}
