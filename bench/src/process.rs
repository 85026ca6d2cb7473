//! Other programs: started, watched, ended by their id. Every wait here ends on an interrupt or after a limit, and what
//! was started is gone when its owner is, so nothing outlives a run that fails or is interrupted.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tests::wait::is_interrupted;

/// From the start of a server to its first connection.
const START_MAX: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(10);
/// Linux counts CPU time for user space in hundredths of a second (`USER_HZ`), on every architecture.
const TICKS_PER_SECOND: f64 = 100.0;

/// A command that runs `program`, in a network namespace if there is one. `ip netns exec` becomes the program itself.
pub fn command(namespace: Option<&str>, program: impl AsRef<OsStr>) -> Command {
    let Some(namespace) = namespace else { return Command::new(program) };
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace]).arg(program);
    command
}

/// A program in the background; it is killed when this is dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    name: String,
}

impl Server {
    /// Starts it. What it says on standard error goes to the bench's.
    pub fn start(mut command: Command) -> Result<Self> {
        let name = shown(&command);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Ok(Self { child: child.with_context(|| missing(&name))?, name })
    }

    /// Waits until it listens on a unix socket.
    pub fn on_unix(mut self, socket: &Path) -> Result<Self> {
        self.wait_until("listens", || UnixStream::connect(socket).is_ok())?;
        Ok(self)
    }

    /// Waits until it listens at a TCP address, seen from `namespace`.
    pub fn on_tcp(mut self, namespace: Option<&str>, address: &str) -> Result<Self> {
        match namespace {
            None => self.wait_until("listens", || TcpStream::connect(address).is_ok())?,
            Some(namespace) => {
                // /proc/net/tcp of the namespace would do as well; bash is there on every Debian.
                let (host, port) = address.rsplit_once(':').context("host:port")?;
                let probe = format!("exec 3<>/dev/tcp/{host}/{port}");
                self.wait_until("listens", || {
                    let mut probing = command(Some(namespace), "bash");
                    probing.args(["-c", &probe]).stderr(Stdio::null());
                    probing.status().is_ok_and(|status| status.success())
                })?;
            }
        }
        Ok(self)
    }

    /// Waits for a condition; an error if the program ends first.
    pub fn wait_until(&mut self, what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
        let started = Instant::now();
        while !done() {
            check_interrupt()?;
            if let Some(status) = self.child.try_wait()? {
                bail!("`{}` ended with {status} before it {what}", self.name);
            }
            if started.elapsed() > START_MAX {
                bail!("waited {} s until `{}` {what}", START_MAX.as_secs(), self.name);
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Waits for its end, which must be a success.
    pub fn finish(mut self, within: Duration) -> Result<()> {
        let status = wait(&mut self.child, within).with_context(|| self.name.clone())?;
        if !status.success() {
            bail!("`{}` ended with {status}", self.name);
        }
        Ok(())
    }

    /// SIGTERM, and its end: a server that holds a file system wants to let go of it in order.
    pub fn terminate(mut self, within: Duration) -> Result<()> {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), rustix::process::Signal::TERM)?;
        wait(&mut self.child, within).with_context(|| self.name.clone())?;
        Ok(())
    }

    /// CPU seconds that it has used so far.
    pub fn cpu_seconds(&self) -> Result<f64> {
        cpu_seconds(self.child.id())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself. Waiting frees its files for the next one.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a program to its end, which must be a success, and returns what it printed.
pub fn run(mut command: Command, within: Duration) -> Result<String> {
    let name = shown(&command);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.with_context(|| missing(&name))?;
    let (stdout, stderr) = (drain(child.stdout.take()), drain(child.stderr.take()));
    let status = wait(&mut child, within);
    let (stdout, stderr) = (stdout.join().unwrap_or_default(), stderr.join().unwrap_or_default());
    let status = status.with_context(|| name.clone())?;
    if !status.success() {
        bail!("`{name}` ended with {status}\n{stdout}{stderr}");
    }
    Ok(stdout)
}

fn wait(child: &mut Child, within: Duration) -> Result<std::process::ExitStatus> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        let late = started.elapsed() > within;
        if late || is_interrupted() {
            // It may end between the two calls; then there is nothing to kill.
            let _ = child.kill();
            let _ = child.wait();
            check_interrupt()?;
            bail!("did not end within {} s", within.as_secs());
        }
        thread::sleep(PAUSE);
    }
}

/// An error once the run was interrupted.
pub fn check_interrupt() -> Result<()> {
    if is_interrupted() { bail!("interrupted") } else { Ok(()) }
}

/// CPU seconds of a process, children not included.
pub fn cpu_seconds(id: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).with_context(|| format!("the times of process {id}"))?;
    cpu_of(&stat).with_context(|| format!("/proc/{id}/stat"))
}

fn cpu_of(stat: &str) -> Option<f64> {
    // The name, in parentheses, may hold anything; what follows is numbers, utime and stime the 12th and 13th.
    let mut numbers = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = numbers.next()?.parse().ok()?;
    let system: u64 = numbers.next()?.parse().ok()?;
    Some((user + system) as f64 / TICKS_PER_SECOND)
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

fn missing(name: &str) -> String {
    format!("start `{name}` (scripts/require-tools.sh bench installs what is missing)")
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // A pipe that breaks has given all it had.
        let _ = pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

#[cfg(test)]
mod tests_of_times {
    use super::*;

    #[test]
    fn cpu_time_is_that_of_user_and_system_whatever_the_name() {
        let stat = "7 (a b) c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20";
        assert_eq!(cpu_of(stat), Some(2.0));
        assert_eq!(cpu_of("7 (x) S 1 2"), None);
    }
}
