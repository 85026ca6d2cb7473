//! Runs the real NBD clients. A client that is missing is a failure that names its Debian package.

use std::path::Path;
use std::process::{Command, Output};

/// No client needs longer; one that hangs fails its test.
const SECONDS_MAX: &str = "60";

fn output(program: &str, args: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.arg(SECONDS_MAX).arg(program).args(args);
    command.output().unwrap_or_else(|error| panic!("can't run timeout (package coreutils): {error}"))
}

fn package(program: &str) -> &'static str {
    match program {
        "nbdinfo" | "nbdcopy" => "libnbd-bin",
        "qemu-io" | "qemu-img" => "qemu-utils",
        "fio" => "fio",
        _ => "python3-libnbd",
    }
}

/// Runs a client that must succeed, and gives its standard output.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = output(program, args);
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_ne!(output.status.code(), Some(127), "{program} is missing: apt-get install {}", package(program));
    assert!(output.status.success(), "{program} {args:?}: {}\n{stdout}\n{stderr}", output.status);
    stdout.into_owned()
}

/// Runs a client that must fail in good order, and gives what it printed.
pub fn run_failing(program: &str, args: &[&str]) -> String {
    let output = output(program, args);
    let printed = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    let printed = String::from_utf8_lossy(&printed).into_owned();
    let code = output.status.code().unwrap_or_else(|| panic!("{program} was killed: {printed}"));
    assert!((1..124).contains(&code), "{program} {args:?}: exit code {code}\n{printed}");
    printed
}

/// Runs a Python program with libnbd, connected to `uri` as `h`.
pub fn python(uri: &str, program: &str) -> String {
    let program = format!("import nbd\nURI = {uri:?}\n{program}");
    let interpreter = ["python3", "/usr/bin/python3"]
        .into_iter()
        .find(|python| output(python, &["-c", "import nbd"]).status.success());
    let interpreter = interpreter.expect("no Python with libnbd: apt-get install python3-libnbd");
    run(interpreter, &["-c", &program])
}

/// The URI of an export on a unix socket.
pub fn unix_uri(socket: &Path, export: &str) -> String {
    format!("nbd+unix:///{export}?socket={}", socket.display())
}
