//! `status` and `point`: questions to the running agent over its control socket.

use std::path::Path;

use proto::control::{PointRequest, ProcessServerStatus, StatusRequest};

use super::args::PointArgs;
use super::error::CliError;

/// What the agent says about itself.
pub(super) async fn status(socket: &Path) -> Result<ProcessServerStatus, CliError> {
    let reply = proto::uds::process_server(socket).await?.status(StatusRequest {}).await.map_err(in_words)?;
    Ok(reply.into_inner())
}

/// Takes a point and waits until it is durable; returns its id.
pub(super) async fn point(socket: &Path, args: PointArgs) -> Result<String, CliError> {
    let request = PointRequest { group: args.group, label: args.label, app_consistent: args.app_consistent };
    let reply = proto::uds::process_server(socket).await?.point(request).await.map_err(in_words)?;
    Ok(reply.into_inner().id)
}

/// The JSON of the contract, with a line break at its end.
pub(super) fn to_json(status: &impl serde::Serialize) -> Result<String, CliError> {
    let mut text = serde_json::to_string_pretty(status).map_err(CliError::Json)?;
    text.push('\n');
    Ok(text)
}

/// The agent's own sentence where it sent one.
pub(super) fn in_words(status: tonic::Status) -> CliError {
    CliError::Agent(match status.message() {
        "" => format!("the agent answered {:?} without a reason: see its log", status.code()),
        message => message.to_owned(),
    })
}
