//! The gRPC service behind `process-server status` and `process-server point`.
//!
//! It translates: requests into commands of a group's mailbox, snapshots into replies. Whoever may open the
//! socket (mode 0600) may ask.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use jobs::{Cancel, Kind, Table};
use proto::control::process_server_server::{ProcessServer, ProcessServerServer};
use proto::control::{
    CancelJobReply, CancelJobRequest, FollowJobRequest, JobsReply, JobsRequest, LinkStatus, PointReply, PointRequest,
    ProcessServerStatus, StatusRequest, VerifyRequest,
};
use proto::ids::GroupName;
use proto::throttle::LinkRate;
use tonic::{Request, Response, Status};

use super::label::check_label;
use super::mailbox::{GroupHandle, PointOrder};
use super::verify_job;
use crate::quiesce::{QuiesceError, Quiescer};
use crate::send::PeerView;

/// The service's state.
pub struct ControlServer {
    name: String,
    peer: PeerView,
    link: LinkRate,
    groups: Vec<Arc<dyn GroupHandle>>,
    quiescers: HashMap<GroupName, Arc<Quiescer>>,
    jobs: Table,
}

/// The service to serve with `proto::uds`.
pub fn service(
    name: String,
    peer: PeerView,
    link: LinkRate,
    groups: Vec<Arc<dyn GroupHandle>>,
    quiescers: HashMap<GroupName, Arc<Quiescer>>,
    jobs: Table,
) -> ProcessServerServer<ControlServer> {
    ProcessServerServer::new(ControlServer { name, peer, link, groups, quiescers, jobs })
}

#[tonic::async_trait]
impl ProcessServer for ControlServer {
    async fn status(&self, _request: Request<StatusRequest>) -> Result<Response<ProcessServerStatus>, Status> {
        let now = now();
        let groups = self.groups.iter();
        Ok(Response::new(ProcessServerStatus {
            name: self.name.clone(),
            peer: Some(self.peer.to_status(now.into())),
            link: Some(link_status(&self.link, now)),
            groups: groups.map(|group| group.snapshot().to_status(group.name().as_str(), now)).collect(),
        }))
    }

    type VerifyStream = verify_job::Answers;

    async fn verify(&self, request: Request<VerifyRequest>) -> Result<Response<Self::VerifyStream>, Status> {
        let VerifyRequest { group: name, disk, repair } = request.into_inner();
        let Some(group) = self.groups.iter().find(|group| group.name().as_str() == name) else {
            return Err(Status::not_found(self.unknown_group(&name)));
        };
        let disks: Vec<String> = group.snapshot().disks.into_iter().map(|disk| disk.name).collect();
        let only = match &disk {
            None => None,
            Some(disk) => match (0..).zip(&disks).find(|(_, name)| *name == disk) {
                Some((index, _)) => Some(index),
                None => {
                    let known = disks.join(", ");
                    return Err(Status::not_found(format!("no disk {disk:?} in group {name}; it has: {known}")));
                }
            },
        };
        let job = self.jobs.begin(Kind::Verify, Some(&name), Cancel::Taken);
        let news = group.verify(only, repair);
        Ok(Response::new(verify_job::answers(name, disks, news, now(), job)))
    }

    type FollowJobStream = jobs::answer::Followed;

    async fn jobs(&self, _request: Request<JobsRequest>) -> Result<Response<JobsReply>, Status> {
        Ok(jobs::answer::list(&self.jobs))
    }

    async fn cancel_job(&self, request: Request<CancelJobRequest>) -> Result<Response<CancelJobReply>, Status> {
        jobs::answer::cancel(&self.jobs, request.get_ref().id)
    }

    async fn follow_job(&self, request: Request<FollowJobRequest>) -> Result<Response<Self::FollowJobStream>, Status> {
        jobs::answer::follow(&self.jobs, request.get_ref().id)
    }

    async fn point(&self, request: Request<PointRequest>) -> Result<Response<PointReply>, Status> {
        let PointRequest { group: name, label, app_consistent } = request.into_inner();
        if let Some(label) = &label {
            check_label(label).map_err(|error| Status::invalid_argument(error.to_string()))?;
        }
        let Some(group) = self.groups.iter().find(|group| group.name().as_str() == name) else {
            return Err(Status::not_found(self.unknown_group(&name)));
        };
        if app_consistent {
            return self.app_point(group, label).await;
        }
        match group.point(PointOrder { label, frozen: None }).await {
            Ok(Ok(id)) => Ok(Response::new(PointReply { id })),
            Ok(Err(reason)) => Err(Status::failed_precondition(format!("no point of group {name}: {reason}"))),
            Err(_) => Err(Status::unavailable(format!(
                "no point of group {name}: the group ended before the point was durable"
            ))),
        }
    }
}

impl ControlServer {
    async fn app_point(
        &self,
        group: &Arc<dyn GroupHandle>,
        label: Option<String>,
    ) -> Result<Response<PointReply>, Status> {
        let name = group.name();
        let Some(quiescer) = self.quiescers.get(name) else {
            return Err(Status::failed_precondition(format!(
                "no application-consistent point of group {name}: it has no [group.hook] with freeze and thaw in the configuration"
            )));
        };
        let (quiescer, handle) = (Arc::clone(quiescer), Arc::clone(group));
        match tokio::task::spawn_blocking(move || quiescer.take(&*handle, label)).await {
            Ok(Ok(id)) => Ok(Response::new(PointReply { id })),
            Ok(Err(error @ QuiesceError::Stuck { .. })) => Err(Status::internal(format!("group {name}: {error}"))),
            Ok(Err(error)) => {
                Err(Status::failed_precondition(format!("no application-consistent point of group {name}: {error}")))
            }
            Err(panicked) => Err(Status::internal(panicked.to_string())),
        }
    }

    fn unknown_group(&self, name: &str) -> String {
        let known: Vec<_> = self.groups.iter().map(|group| group.name().as_str()).collect();
        format!("no group {name:?} in this agent's configuration; it has: {}", known.join(", "))
    }
}

fn link_status(link: &LinkRate, now: Instant) -> LinkStatus {
    let used = link.used(now.into());
    LinkStatus {
        rate_limit_bits_per_second: used.rate.map(|rate| rate.0),
        sent_bytes: used.sent_bytes,
        throttled_seconds: used.throttled.as_secs_f64(),
    }
}

#[expect(clippy::disallowed_methods, reason = "the control server is a shell: it reads the clock for status")]
pub(super) fn now() -> Instant {
    Instant::now()
}
