//! Answers the calls of the control interface.
//!
//! Errors become gRPC statuses whose message is the one line that the command line prints.

use std::pin::Pin;
use std::sync::Arc;

use proto::control::master_target_server::MasterTarget;
use proto::control::{
    CancelFailbackReply, CancelFailbackRequest, CancelJobReply, CancelJobRequest, CommitReply, CommitRequest,
    FailbackEstimate, FailbackProgress, FailbackRequest, FollowJobRequest, JobsReply, JobsRequest, MasterTargetStatus,
    MountReply, MountRequest, PinReply, PinRequest, PointsReply, PointsRequest, ReprotectProgress, ReprotectRequest,
    RestoreProgress, RestoreRequest, ScrubProgress, ScrubRequest, StatusRequest, UnmountReply, UnmountRequest,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use super::{restore_job, scrub_job};
use crate::agent::{Agent, Member};
use crate::journal::History;
use crate::mount::{self, NoMount};
use crate::recover::Commit;
use crate::recover::desk::Shown;
use crate::recover::steps::Source;

/// Why a mount ends when an operator ends it.
const UNMOUNTED: &str = "it was unmounted";

/// Progress messages that wait for a slow terminal.
const PROGRESS_MAX: usize = 16;

/// The service.
pub struct ControlServer {
    agent: Arc<Agent>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl ControlServer {
    /// The service of an agent.
    pub fn new(agent: Arc<Agent>) -> Self {
        Self { agent }
    }

    fn member(&self, group: &str) -> Result<&Member, Status> {
        self.agent.member(group).ok_or_else(|| {
            let known: Vec<&str> = self.agent.members().map(|member| member.group.name()).collect();
            Status::not_found(format!("there is no group \"{group}\": the groups are {}", known.join(", ")))
        })
    }
}

#[tonic::async_trait]
impl MasterTarget for ControlServer {
    type RestoreStream = Answers<RestoreProgress>;
    type FailbackStream = Answers<FailbackProgress>;
    type ScrubStream = Answers<ScrubProgress>;
    type ReprotectStream = Answers<ReprotectProgress>;
    type FollowJobStream = jobs::answer::Followed;

    async fn status(&self, _request: Request<StatusRequest>) -> Result<Response<MasterTargetStatus>, Status> {
        Ok(Response::new(MasterTargetStatus {
            name: self.agent.name().to_owned(),
            peers: self.agent.peers().status(self.agent.clock().elapsed().as_millis() as u64),
            groups: self.agent.members().map(|member| member.group.status()).collect(),
            mounts: self.agent.members().flat_map(|member| member.group.mounts().status()).collect(),
        }))
    }

    async fn points(&self, request: Request<PointsRequest>) -> Result<Response<PointsReply>, Status> {
        let member = self.member(&request.get_ref().group)?;
        Ok(Response::new(PointsReply { points: member.group.points().map_err(failed)? }))
    }

    async fn pin(&self, request: Request<PinRequest>) -> Result<Response<PinReply>, Status> {
        let PinRequest { group, point, unpin } = request.into_inner();
        let point = self.member(&group)?.group.pin(&point, unpin).await.map_err(failed)?;
        Ok(Response::new(PinReply { point }))
    }

    async fn restore(&self, request: Request<RestoreRequest>) -> Result<Response<Self::RestoreStream>, Status> {
        let request = request.into_inner();
        let group = self.member(&request.group)?.group.clone();
        let job = restore_job::prepare(group, &request).await.map_err(failed)?;
        let (answers, stream) = mpsc::channel(PROGRESS_MAX);
        let jobs = self.agent.jobs().clone();
        tokio::task::spawn_blocking(move || job.run(&jobs, &answers));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn failback(&self, request: Request<FailbackRequest>) -> Result<Response<Self::FailbackStream>, Status> {
        let request = request.into_inner();
        let source = if request.without_source { Source::Without } else { Source::Fence };
        let member = self.member(&request.group)?;
        let shown = member.desk.begin(request.point.as_deref(), source).await.map_err(failed)?;
        let (answers, stream) = mpsc::channel(PROGRESS_MAX);
        tokio::spawn(follow(shown, answers));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn mount(&self, request: Request<MountRequest>) -> Result<Response<MountReply>, Status> {
        let group = self.member(&request.get_ref().group)?.group.clone();
        // To its end, also when the command is interrupted: a mount is listed, or was never made.
        let jobs = self.agent.jobs().clone();
        let opened = tokio::spawn(async move { mount::open(group, request.get_ref(), &jobs).await });
        let opened = opened.await.map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(opened.map_err(failed)?))
    }

    async fn unmount(&self, request: Request<UnmountRequest>) -> Result<Response<UnmountReply>, Status> {
        let Some(id) = request.into_inner().id else {
            let mut ended = 0;
            for member in self.agent.members() {
                ended += member.group.mounts().end_all(UNMOUNTED).await as u64;
            }
            return Ok(Response::new(UnmountReply { ended }));
        };
        // The name of a mount is that of its group with a number behind it.
        let group = id.rsplit_once('-').and_then(|(group, _)| self.agent.group(group));
        match group {
            Some(group) => group.mounts().end(&id, UNMOUNTED).await.map_err(failed)?,
            None => return Err(failed(NoMount(id))),
        }
        Ok(Response::new(UnmountReply { ended: 1 }))
    }

    async fn scrub(&self, request: Request<ScrubRequest>) -> Result<Response<Self::ScrubStream>, Status> {
        let named = request.into_inner().group;
        let groups = match &named {
            Some(name) => vec![(self.member(name)?.group.clone(), true)],
            None => self.agent.members().map(|member| (member.group.clone(), false)).collect(),
        };
        let mut candidates = Vec::with_capacity(groups.len());
        for (group, is_named) in groups {
            candidates.extend(scrub_job::candidate(group, is_named).map_err(failed)?);
        }
        let (answers, stream) = mpsc::channel(PROGRESS_MAX);
        let jobs = self.agent.jobs().clone();
        tokio::task::spawn_blocking(move || scrub_job::run(candidates, named.as_deref(), &jobs, &answers));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn estimate_failback(&self, request: Request<FailbackRequest>) -> Result<Response<FailbackEstimate>, Status> {
        let request = request.into_inner();
        let desk = &self.member(&request.group)?.desk;
        Ok(Response::new(desk.estimate(request.point.as_deref()).await.map_err(failed)?))
    }

    async fn cancel_failback(
        &self,
        request: Request<CancelFailbackRequest>,
    ) -> Result<Response<CancelFailbackReply>, Status> {
        self.member(&request.get_ref().group)?.desk.cancel().await.map_err(failed)?;
        Ok(Response::new(CancelFailbackReply {}))
    }

    async fn commit(&self, request: Request<CommitRequest>) -> Result<Response<CommitReply>, Status> {
        let request = request.into_inner();
        let history = if request.keep_points { History::Kept } else { History::Discarded };
        let commit = Commit { history, confirmed: request.confirmed.then_some(request.point) };
        Ok(Response::new(self.member(&request.group)?.desk.commit(commit).await.map_err(failed)?))
    }

    async fn reprotect(&self, request: Request<ReprotectRequest>) -> Result<Response<Self::ReprotectStream>, Status> {
        let request = request.into_inner();
        let history = if request.discard_points { History::Discarded } else { History::Kept };
        let news = self.member(&request.group)?.desk.reprotect(history).await.map_err(failed)?;
        let answers = ReceiverStream::new(news).map(|news| news.map_err(Status::aborted));
        Ok(Response::new(Box::pin(answers)))
    }

    async fn jobs(&self, _request: Request<JobsRequest>) -> Result<Response<JobsReply>, Status> {
        Ok(jobs::answer::list(self.agent.jobs()))
    }

    async fn cancel_job(&self, request: Request<CancelJobRequest>) -> Result<Response<CancelJobReply>, Status> {
        jobs::answer::cancel(self.agent.jobs(), request.get_ref().id)
    }

    async fn follow_job(&self, request: Request<FollowJobRequest>) -> Result<Response<Self::FollowJobStream>, Status> {
        jobs::answer::follow(self.agent.jobs(), request.get_ref().id)
    }
}

/// An error as the one line that the operator sees.
pub(super) fn failed(error: impl std::fmt::Display) -> Status {
    Status::failed_precondition(error.to_string())
}

/// Tells a watcher of a failback what is shown, until its end or the watcher's.
async fn follow(mut shown: watch::Receiver<Shown>, answers: mpsc::Sender<Result<FailbackProgress, Status>>) {
    loop {
        let now = shown.borrow_and_update().clone();
        let is_last = now.is_last();
        let answer = match now.failure {
            Some(failure) => Err(Status::aborted(failure)),
            None => Ok(now.progress),
        };
        if answers.send(answer).await.is_err() || is_last {
            return;
        }
        if shown.changed().await.is_err() {
            let _ = answers.send(Err(Status::unavailable("the agent stops"))).await;
            return;
        }
    }
}
