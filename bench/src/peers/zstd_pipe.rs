//! `zstd -1 | socket | zstd -d`: what a shell does with a disk and a link. Neither encrypted nor able to go on after a break.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::link::Link;
use crate::outcome::Outcome;
use crate::peers::{free_port, sync};
use crate::process::{self, Server};

/// Takes one connection as standard input and becomes zstd. perl is part of every Debian; netcat is not.
const RECEIVER: &str = r#"
my $listener = IO::Socket::INET->new(Listen => 1, LocalAddr => $ARGV[0], ReuseAddr => 1) or die "listen: $!";
open(my $ready, ">", $ARGV[2]) or die; close($ready);
my $connection = $listener->accept or die "accept: $!";
open(STDIN, "<&", $connection) or die; exec "zstd", "-d", "-q", "-f", "--no-sparse", "-o", $ARGV[1];
"#;

/// Copies `disk` into a new file in `folder`.
pub fn run(folder: &Path, disk: &Path, link: &Link, within: Duration) -> Result<Outcome> {
    let (copy, ready) = (folder.join("piped.img"), folder.join("ready"));
    let (host, port) = (link.target_address(), free_port()?);
    let mut command = process::command(link.target(), "perl");
    command.args(["-MIO::Socket::INET", "-e", RECEIVER, &format!("{host}:{port}")]).arg(&copy).arg(&ready);
    let mut receiver = Server::start(command)?;
    receiver.wait_until("listens", || ready.exists())?;

    let mut command = process::command(link.source(), "bash");
    let send = format!("exec zstd -1 -q -c \"$0\" > /dev/tcp/{host}/{port}");
    command.args(["-c", &send]).arg(disk);
    let (sent, started) = (link.sent_bytes(), Instant::now());
    process::run(command, within)?;
    receiver.finish(within)?;
    sync(&copy)?;
    let seconds = started.elapsed().as_secs_f64();
    let wire_bytes = link.sent_bytes().zip(sent).map(|(now, then)| now - then);
    crate::agents::same(disk, "raw", &copy, "raw")?;
    fs::remove_file(&copy)?;
    Ok(Outcome {
        seconds: Some(seconds),
        content_bytes: Some(disk.metadata()?.len()),
        wire_bytes,
        link_use: link.share(wire_bytes, seconds),
        ..Outcome::default()
    })
}
