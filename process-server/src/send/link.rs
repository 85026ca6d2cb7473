//! The loop that keeps a session: connect, run it, wait a little, again, until the agent stops.

use std::sync::Arc;
use std::time::Duration;

use proto::config::HostPort;
use proto::endpoint::LinkOptions;
use proto::ids::AgentName;
use proto::throttle::LinkRate;
use proto::tls::TlsPaths;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::info;

use super::backoff::{Backoff, HEALTHY_AFTER};
use super::bandwidth;
use super::encode::Workshop;
use super::error::LinkError;
use super::liveness::CauseLog;
use super::peer::PeerView;
use super::port::LinkPort;
use super::session::{self, Shared};
use crate::config::Schedule;

/// How long the farewell may take to reach the target when the agent stops.
const FAREWELL: Duration = Duration::from_secs(1);

/// Where the target is, and who speaks to it.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// This agent.
    pub name: AgentName,
    /// Where the target listens.
    pub address: HostPort,
    /// Name of the target; must be in its certificate.
    pub peer_name: AgentName,
    /// This agent's certificate, key and authority.
    pub tls: TlsPaths,
    /// What may leave for the target, hour by hour.
    pub schedule: Schedule,
}

/// The connection to one master-target, for all groups.
pub struct Link {
    endpoint: quinn::Endpoint,
    rate: LinkRate,
    schedule: Schedule,
    shared: Shared,
    random: Box<dyn FnMut() -> u64 + Send + Sync>,
}

impl Link {
    /// Opens the local end. Fails when the certificates can't be used or there is no socket to be had.
    ///
    /// `random` gives the jitter between attempts. Call within a tokio runtime.
    pub fn new(
        config: LinkConfig,
        ports: Vec<LinkPort>,
        random: impl FnMut() -> u64 + Send + Sync + 'static,
    ) -> Result<Self, proto::endpoint::EndpointError> {
        let rate = LinkRate::unlimited();
        // Before the first packet: an agent that starts must not begin with a burst.
        bandwidth::set(&config.schedule, &rate);
        let endpoint = proto::endpoint::client_with(&config.tls, LinkOptions::default(), rate.clone())?;
        let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let shared = Shared {
            name: config.name,
            view: PeerView::new(config.peer_name.clone(), config.address.to_string()),
            peer_name: config.peer_name,
            address: config.address.to_string(),
            ports: ports.into(),
            workshop: Arc::new(Workshop::new(workers)),
        };
        Ok(Self { endpoint, rate, schedule: config.schedule, shared, random: Box::new(random) })
    }

    /// What is known about the target, for `status`.
    pub fn peer(&self) -> PeerView {
        self.shared.view.clone()
    }

    /// How the link is capped and used, for `status`.
    pub fn rate(&self) -> LinkRate {
        self.rate.clone()
    }

    /// Keeps a session until `stop` becomes true or its sender is gone.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut backoff = Backoff::default();
        let mut causes = CauseLog::default();
        let mut clockwork = JoinSet::new();
        clockwork.spawn(bandwidth::follow(self.schedule.clone(), self.rate.clone()));
        loop {
            let (error, lived) = self.attempt(&mut stop).await;
            if matches!(error, LinkError::Stopping) {
                break;
            }
            if lived >= HEALTHY_AFTER {
                causes.clear();
            }
            backoff.session_ended(lived);
            let delay = backoff.next_delay((self.random)());
            self.shared.view.set_down(error.to_string());
            if causes.is_news(&error.to_string()) {
                info!(peer = %self.shared.peer_name, address = %self.shared.address, %error, "no connection; trying on");
            }
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = stopped(&mut stop) => break,
            }
        }
        // Lets the close frame out; a target that does not answer must not hold the agent up.
        _ = tokio::time::timeout(FAREWELL, self.endpoint.wait_idle()).await;
    }
}

impl Link {
    /// One connection from attempt to end. The second value is how long a session lived on it.
    async fn attempt(&self, stop: &mut watch::Receiver<bool>) -> (LinkError, Duration) {
        let connecting = proto::endpoint::connect(&self.endpoint, &self.shared.address, self.shared.peer_name.as_str());
        let connection = tokio::select! {
            connected = connecting => match connected {
                Ok(connection) => connection,
                Err(error) => return (error.into(), Duration::ZERO),
            },
            () = stopped(stop) => return (LinkError::Stopping, Duration::ZERO),
        };
        session::run(&self.shared, connection, stopped(stop)).await
    }
}

/// Resolves when the agent stops.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the one who could say so is gone: the agent is ending.
    _ = stop.wait_for(|stop| *stop).await;
}
