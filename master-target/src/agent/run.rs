//! Starts the agent, runs it until it is told to stop, and stops it in order.
//!
//! Start: one agent per state folder, then every group opens what an earlier life left, then sources may connect.
//! Stop: no new connections, sessions end, threads finish, disks are let go, the control socket last.

use std::fs::File;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proto::config::ConfigError;
use proto::control::master_target_server::MasterTargetServer;

use super::{Agent, Clock};
use crate::config::Config;
use crate::control::ControlServer;
use crate::receive::{listen, shut};
use crate::recover::RecoveryState;

/// Why the agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The state folder.
    #[error(transparent)]
    Folder(#[from] blockio::IoError),
    /// The state folder is another agent's.
    #[error("{}: {what}; stop the other agent, or give this one a state_dir of its own", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        what: String,
    },
    /// Listening for sources.
    #[error(transparent)]
    Endpoint(#[from] proto::endpoint::EndpointError),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] proto::uds::UdsError),
}

/// Runs the agent of a configuration file until `stop` completes.
pub async fn run(path: &Path, stop: impl Future<Output = ()>) -> Result<(), RunError> {
    let config = Config::load(path)?;
    Config::check_files(path)?;
    let _lock = lock_state(&config.state_dir)?;
    let clock = Clock::start();
    let agent = Arc::new(Agent::new(&config, clock));
    let endpoint = proto::endpoint::server(config.listen, &config.tls)?;
    let socket = proto::uds::bind(&config.control)?;
    tracing::info!(name = agent.name(), listen = %config.listen, "the master-target starts");
    let (stop_control, control_stops) = tokio::sync::oneshot::channel::<()>();
    let service = MasterTargetServer::new(ControlServer::new(agent.clone()));
    let control = tokio::spawn(proto::uds::serve(socket, service, async {
        let _ = control_stops.await;
    }));
    let mut upkeep = start_groups(&agent);
    upkeep.spawn(proto::clock::watch(move || (clock.elapsed(), clock.wall())));
    let listener = tokio::spawn(listen(endpoint.clone(), agent.clone()));
    stop.await;
    tracing::info!("the master-target stops");
    // First for all: what is broken off in the middle of opening must not be opened beside it.
    agent.members().for_each(|member| member.group.begin_stop());
    upkeep.abort_all();
    shut(&endpoint).await;
    for member in agent.members() {
        member.desk.stop().await;
        member.group.stop().await;
    }
    // Its connections have ended with the sessions; one that hangs must not keep the agent from stopping.
    let _ = tokio::time::timeout(STOP_TIME_MAX, listener).await;
    let _ = stop_control.send(());
    // A command that still waits for a long job must not keep the agent from stopping.
    let served = tokio::time::timeout(STOP_TIME_MAX, control).await;
    if let Ok(Ok(served)) = served {
        served?;
    }
    Ok(())
}

/// How long commands that are under way may take to see the end.
const STOP_TIME_MAX: std::time::Duration = std::time::Duration::from_secs(2);

/// Opens every group beside the others and keeps it up; a group that can't be opened says so in its state.
fn start_groups(agent: &Arc<Agent>) -> tokio::task::JoinSet<()> {
    let mut upkeep = tokio::task::JoinSet::new();
    for member in agent.members() {
        let (agent, name) = (agent.clone(), member.group.name().to_owned());
        upkeep.spawn(async move {
            let Some(member) = agent.member(&name) else { return };
            let resume = |recovery: &RecoveryState| member.desk.resume(recovery).map_err(|error| error.to_string());
            member.group.clone().keep_up(resume).await;
        });
    }
    upkeep
}

/// One agent per state folder: two would write the same journals.
fn lock_state(folder: &Path) -> Result<File, RunError> {
    blockio::durable::create_dir_all(folder)?;
    let path = folder.join("lock");
    let locked = |what: String| RunError::Locked { path: path.clone(), what };
    let file =
        File::options().create(true).truncate(false).write(true).open(&path).map_err(|e| locked(e.to_string()))?;
    file.try_lock().map_err(|error| match error {
        std::fs::TryLockError::WouldBlock => locked("another agent uses this state folder".to_owned()),
        std::fs::TryLockError::Error(error) => locked(error.to_string()),
    })?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_folder_belongs_to_one_agent() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let first = lock_state(&state).unwrap();
        let text = lock_state(&state).unwrap_err().to_string();
        assert!(text.contains("another agent") && text.contains("state_dir"), "{text}");
        drop(first);
        lock_state(&state).unwrap();
    }
}
