//! The process-server binary: the library's command line, with the NBD tap as the capture that `run` starts.

use std::process::ExitCode;

use process_server::capture::tap;
use process_server::cli::Capture;

fn main() -> ExitCode {
    blockio::memory::keep_freed();
    process_server::cli::main(Capture { spawn_group: tap::start, claim: tap::claim })
}
