//! A PostgreSQL server on a folder of a mounted disk, and a client that knows what was committed.
//!
//! The server runs as the user `postgres` that Debian's package makes, on a unix socket only.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::tool;

/// A server that runs until it is dropped.
pub struct Server {
    data: PathBuf,
}

impl Server {
    /// Makes a new cluster in `data` and starts it.
    ///
    /// # Panics
    /// If it can't.
    #[track_caller]
    #[must_use]
    pub fn create(data: &Path) -> Self {
        std::fs::create_dir(data).expect("a folder");
        tool::run("chown", ["postgres:", &data.to_string_lossy()]).ok();
        as_postgres("initdb", &["--no-sync", "-A", "trust", "-D", &data.to_string_lossy()]).ok();
        Self::start(data)
    }

    /// Starts the server on a cluster that is there, which recovers what a power cut left of it.
    ///
    /// # Panics
    /// If it does not come up.
    #[track_caller]
    #[must_use]
    pub fn start(data: &Path) -> Self {
        let data = data.to_owned();
        let socket = data.to_string_lossy().into_owned();
        let log = data.join("server.log").to_string_lossy().into_owned();
        let options = format!("-c listen_addresses= -c unix_socket_directories={socket} -c max_connections=20");
        as_postgres("pg_ctl", &["-w", "-t", "60", "-D", &socket, "-l", &log, "-o", &options, "start"]).ok();
        Self { data }
    }

    /// Runs one statement and returns what it answers.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    #[must_use]
    pub fn ask(&self, statement: &str) -> String {
        let socket = self.data.to_string_lossy();
        as_postgres("psql", &["-h", &socket, "-At", "-v", "ON_ERROR_STOP=1", "-c", statement, "postgres"]).ok().stdout
    }

    /// Runs pgbench in the background, or to its end with `-i`.
    ///
    /// # Panics
    /// If it can't be started.
    #[must_use]
    pub fn pgbench(&self, arguments: &[&str]) -> Child {
        let socket = self.data.to_string_lossy().into_owned();
        let mut command = postgres_command("pgbench");
        command.args(["-h", &socket]).args(arguments).arg("postgres");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("pgbench")
    }

    /// A session that commits one row after the other.
    ///
    /// # Panics
    /// If it can't be started.
    #[must_use]
    pub fn session(&self) -> Session {
        let socket = self.data.to_string_lossy().into_owned();
        let mut command = postgres_command("psql");
        command.args(["-h", &socket, "-At", "postgres"]);
        let mut psql = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("psql");
        let input = psql.stdin.take().expect("its input");
        let output = BufReader::new(psql.stdout.take().expect("its output"));
        Session { psql, input, output }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let stopped = as_postgres("pg_ctl", &["-w", "-D", &self.data.to_string_lossy(), "-m", "immediate", "stop"]);
        if stopped.code != Some(0) {
            eprintln!("left behind: {stopped:?}");
        }
    }
}

/// One connection of psql.
pub struct Session {
    psql: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Session {
    /// Commits a row; returns when the server has said that it is committed.
    ///
    /// # Panics
    /// If the server says something else.
    pub fn commit(&mut self, number: u64) {
        writeln!(self.input, "INSERT INTO seen VALUES ({number});").expect("a session");
        let mut answer = String::new();
        self.output.read_line(&mut answer).expect("an answer");
        assert_eq!(answer.trim(), "INSERT 0 1");
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // The server may have been stopped before: what is left of psql goes with it.
        let _ = self.psql.kill();
        let _ = self.psql.wait();
    }
}

/// Where Debian keeps the programs of the newest version that is installed.
fn folder() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("Debian's package postgresql");
    let newest = versions.flatten().map(|entry| entry.path()).max().expect("a version of PostgreSQL");
    newest.join("bin")
}

fn postgres_command(program: &str) -> Command {
    let mut command = Command::new("runuser");
    command.args(["-u", "postgres", "--"]).arg(folder().join(program)).current_dir("/");
    command
}

fn as_postgres(program: &str, arguments: &[&str]) -> tool::Output {
    let program = folder().join(program);
    let program = program.to_string_lossy();
    tool::run("runuser", [&["-u", "postgres", "--", &program], arguments].concat())
}
