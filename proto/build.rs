//! Compiles the protobuf schemas with protox, so that no `protoc` needs to be installed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["control.proto", "replication.proto"], ["proto"])?;
    tonic_prost_build::configure()
        // The command line prints these messages as JSON: field names are the contract, an absent optional is null.
        .message_attribute(".backhaul.control.v1", "#[derive(serde::Serialize)]")
        // Maps are printed in order.
        .btree_map(".backhaul.control.v1")
        .compile_fds(descriptors)?;
    Ok(())
}
