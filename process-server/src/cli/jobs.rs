//! `jobs`: what the agent does and did.

use jobs::cli::{Action, JobsArgs};
use proto::control::{CancelJobRequest, FollowJobRequest, JobsRequest};

use super::client::{in_words, to_json};
use super::error::CliError;
use crate::config;

/// `jobs`, `jobs cancel`, `jobs follow`: what goes to standard output.
pub(super) async fn run(args: &JobsArgs) -> Result<String, CliError> {
    let path = args.config().map_err(|what| CliError::Agent(what.to_owned()))?;
    let mut client = proto::uds::process_server(&config::load(path)?.control).await?;
    match args.action {
        None => {
            let jobs = client.jobs(JobsRequest {}).await.map_err(in_words)?.into_inner().jobs;
            if args.json { to_json(&jobs) } else { Ok(jobs::cli::table(&jobs)) }
        }
        Some(Action::Cancel { id }) => {
            client.cancel_job(CancelJobRequest { id }).await.map_err(in_words)?;
            Ok(format!("job {id} was asked to end\n"))
        }
        Some(Action::Follow { id }) => {
            let stream = client.follow_job(FollowJobRequest { id }).await.map_err(in_words)?.into_inner();
            let ended = || CliError::Agent("the agent ended before the job: see its log".to_owned());
            let job = jobs::cli::follow(stream).await.map_err(in_words)?.ok_or_else(ended)?;
            if job.state != "done" {
                return Err(CliError::Agent(jobs::cli::line(&job)));
            }
            if args.json { to_json(&job) } else { Ok(format!("{}\n", jobs::cli::line(&job))) }
        }
    }
}
