//! The process-server binary: the library's command line, with the NBD tap as the capture that `run` starts.

use std::process::ExitCode;

fn main() -> ExitCode {
    process_server::cli::main(process_server::capture::tap::start)
}
