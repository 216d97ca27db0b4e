//! `wan-i2v launch`: the ranks of a group, on this machine and over ssh on others.
//!
//! A rank ends when its standard input does, so that none is left over whatever happens to this program
//! or to ssh.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Write, pipe};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level;
use tempfile::NamedTempFile;

use super::LOST;
use crate::cli::flags::{Host, LaunchArgs, command};
use crate::cli::ui::{info, print_raw, stderr};
use crate::util::show::Show;

/// The variable by which a rank knows that it ends with its standard input.
const LAUNCHED: &str = "WAN_LAUNCHED";
/// What a rank other than 0 writes to its standard output, where nothing else goes, once it has met rank 0.
const JOINED: &str = "wan-i2v: this rank has joined";
/// The first port, as `mlx.launch` has it.
const PORT: u16 = 32323;
/// Commands that several machines can share, and those that go on when one is lost.
const SHARED: [&str; 3] = ["batch", "sweep", "doctor"];
const GOING_ON: [&str; 2] = ["batch", "sweep"];
/// What a rank gets to end by itself.
const GRACE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(20);

/// A started rank.
struct Rank {
    name: String,
    child: Child,
    /// Ends it when dropped.
    input: Option<ChildStdin>,
    status: Option<ExitStatus>,
    /// Whether it has met rank 0.
    has_joined: Arc<AtomicBool>,
    /// Shows what it says.
    voice: Option<JoinHandle<()>>,
}

impl LaunchArgs {
    /// Starts the ranks, and waits for them.
    ///
    /// # Errors
    /// When a machine is unknown or a rank cannot be started.
    pub(super) fn run(self) -> Result<ExitCode> {
        self.check()?;
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
        let mut file = NamedTempFile::new()?;
        file.write_all(hosts.as_bytes())?;
        let signals = Arc::<AtomicUsize>::default();
        for signal in [SIGINT, SIGTERM] {
            let signals = Arc::clone(&signals);
            // SAFETY: it counts, and does nothing else.
            unsafe {
                low_level::register(signal, move || _ = signals.fetch_add(1, Ordering::Relaxed))?
            };
        }
        let mut ranks = Vec::new();
        for (rank, (host, here)) in self.hosts.iter().zip(here).enumerate() {
            let command = match here {
                true => self.local(rank, file.path())?,
                false => self.remote(rank, &host.name, &hosts)?,
            };
            ranks.push(Rank::start(rank, host, command)?);
        }
        let first = self.flags.first().and_then(|word| word.to_str());
        let goes_on = first.is_some_and(|name| GOING_ON.contains(&name));
        Ok(wait_for(ranks, &signals, goes_on))
    }

    fn check(&self) -> Result<()> {
        ensure!(
            self.hosts.len() > 1,
            "--hosts: 1 machine; expected at least 2\nhint: without launch one machine does it all"
        );
        let first = self.flags.first().and_then(|word| word.to_str());
        let commands = command();
        let mut commands = commands.get_subcommands().map(clap::Command::get_name);
        if let Some(name) = first
            && commands.any(|command| command == name)
            && !SHARED.contains(&name)
        {
            bail!(
                "launch: {name} is nothing that machines share; expected the flags of a clip, batch, sweep or doctor"
            );
        }
        ensure!(
            (self.flags.iter())
                .all(|word| word != "-" && !word.as_encoded_bytes().ends_with(b"=-")),
            "launch: - reads standard input, which several machines cannot share\nhint: give a file"
        );
        Ok(())
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

/// What ssh runs on another machine, whatever shell it has there.
fn script(
    rank: usize,
    hosts: &str,
    folder: &Path,
    program: &Path,
    flags: &[OsString],
) -> Result<String> {
    let words = [program.as_os_str()]
        .into_iter()
        .chain(flags.iter().map(OsString::as_os_str));
    let words = words.map(quoted).collect::<Result<Vec<_>>>()?.join(" ");
    let script = format!(
        "cd {} && f=$(mktemp) && trap 'rm -f \"$f\"' EXIT && printf %s {} > \"$f\" && \
         MLX_RANK={rank} MLX_HOSTFILE=\"$f\" {LAUNCHED}=1 {words}",
        quoted(folder.as_os_str())?,
        quoted(OsStr::new(hosts))?,
    );
    Ok(format!("sh -c {}", quoted(OsStr::new(&script))?))
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

/// The first of as many free ports as the ranks take, and one more.
fn free_ports(addresses: &[Ipv4Addr]) -> Result<u16> {
    let first = addresses.first().context("no machines")?;
    for _ in 0..100 {
        let start = TcpListener::bind((*first, 0))?.local_addr()?.port();
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
    fn start(rank: usize, host: &Host, mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped());
        // Ctrl-C is passed on, to rank 0 alone.
        command.process_group(0);
        let name = format!("rank {rank} ({})", host.name);
        let mut lines = None;
        if rank > 0 {
            let (read, write) = pipe()?;
            command.stdout(write.try_clone()?).stderr(write);
            lines = Some(BufReader::new(read).lines());
        }
        let started = command.spawn();
        let mut child = started.with_context(|| {
            let program = PathBuf::from(command.get_program());
            format!("{name} cannot be started: {}", program.shown())
        })?;
        // Its end of the pipe is the child's alone.
        drop(command);
        let has_joined = Arc::<AtomicBool>::default();
        let voice = lines.map(|lines| {
            let (name, has_joined) = (name.clone(), Arc::clone(&has_joined));
            thread::Builder::new().spawn(move || {
                for line in lines.map_while(std::result::Result::ok) {
                    match line == JOINED {
                        true => has_joined.store(true, Ordering::Relaxed),
                        false => info!("{name}: {line}"),
                    }
                }
            })
        });
        Ok(Self {
            name,
            input: child.stdin.take(),
            child,
            status: None,
            has_joined,
            voice: voice.transpose()?,
        })
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

/// Waits for the ranks, and has all end when one does, unless rank 0 `goes_on` without those that it has met;
/// returns rank 0's exit code, or that of a rank without which it could not begin.
fn wait_for(mut ranks: Vec<Rank>, signals: &AtomicUsize, goes_on: bool) -> ExitCode {
    let Some((first, others)) = ranks.split_first_mut() else {
        return ExitCode::FAILURE;
    };
    let (mut failed, mut is_stopped) = (None, false);
    let status = loop {
        if let Some(status) = first.ended() {
            break status;
        }
        for rank in others.iter_mut().filter(|rank| rank.status.is_none()) {
            if let Some(status) = rank.ended().filter(|status| !status.success()) {
                stderr::warning(&format!("{} has ended with {status}", rank.name));
                let can_do_without = goes_on && rank.has_joined.load(Ordering::Relaxed);
                if !can_do_without || status.code() == Some(LOST.into()) {
                    failed = failed.or(Some((status, Instant::now())));
                }
            }
        }
        let due = failed.filter(|(_, since)| since.elapsed() > GRACE);
        match (signals.load(Ordering::Relaxed), due) {
            // Rank 0 finds out itself, unless it waits for the ranks to begin.
            (0, None) => {}
            // It has shown no sign of life for long.
            (_, Some((status, _))) if status.code() == Some(LOST.into()) => first.kill(),
            (0 | 1, _) => first.input = None,
            _ => first.kill(),
        }
        is_stopped = due.is_some();
        thread::sleep(LOOK);
    };
    let end = Instant::now() + GRACE;
    for rank in others.iter_mut() {
        rank.input = None;
        while !rank.is_over() && Instant::now() < end {
            thread::sleep(LOOK);
        }
    }
    // Rank 0's own end says more, unless it was told to.
    let status = failed
        .filter(|_| is_stopped)
        .map_or(status, |(status, _)| status);
    let code = status.code().or_else(|| Some(128 + status.signal()?));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// Tells `launch` that this rank has met rank 0, if it has started it.
pub(super) fn tell_of_joining(rank: usize) -> Result<()> {
    match rank > 0 && env::var_os(LAUNCHED).is_some() {
        true => print_raw(format!("{JOINED}\n").as_bytes()),
        false => Ok(()),
    }
}

/// Has this process stop as at Ctrl-C when its standard input ends, if `launch` has started it.
pub(super) fn end_with_input() -> Result<()> {
    if env::var_os(LAUNCHED).is_none() {
        return Ok(());
    }
    thread::Builder::new().spawn(|| {
        // Nothing is written there.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
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
