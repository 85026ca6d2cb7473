//! Accepts connections, a bounded number at a time.

use std::sync::Arc;

use proto::endpoint::CloseCode;
use quinn::Endpoint;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::connection::serve;
use crate::agent::Agent;

/// Connections served at a time. A site has tens of process-servers.
const CONNECTIONS_MAX: usize = 256;

/// Serves connections until the endpoint is closed and each of them has ended.
pub async fn listen(endpoint: Endpoint, agent: Arc<Agent>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut serving = JoinSet::new();
    while let Some(incoming) = endpoint.accept().await {
        while serving.try_join_next().is_some() {}
        let Ok(place) = room.clone().try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let agent = agent.clone();
        serving.spawn(async move {
            let remote = incoming.remote_address();
            match incoming.await {
                Ok(connection) => serve(connection, &agent).await,
                Err(error) => tracing::info!(%remote, %error, "a peer was refused before it said its name"),
            }
            drop(place);
        });
    }
    while serving.join_next().await.is_some() {}
}

/// Closes every connection in words, and waits a moment until they have been told.
pub async fn shut(endpoint: &Endpoint) {
    endpoint.close(quinn::VarInt::from_u32(CloseCode::Stopping as u32), b"the master-target stops");
    endpoint.wait_idle().await;
}
