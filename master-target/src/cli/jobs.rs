//! `jobs`: what the agent does and did.

use jobs::cli::{Action, JobsArgs};
use proto::control::{CancelJobRequest, FollowJobRequest, JobsRequest};

use super::commands::{CommandError, client, print_json};
use crate::config::Config;

/// `jobs`, `jobs cancel`, `jobs follow`
pub async fn jobs(args: &JobsArgs) -> Result<(), CommandError> {
    let path = args.config().map_err(|what| CommandError::Agent(what.to_owned()))?;
    let config = Config::load(path)?;
    let mut client = client(&config).await?;
    match args.action {
        None => {
            let jobs = client.jobs(JobsRequest {}).await?.into_inner().jobs;
            if args.json {
                return print_json(&jobs);
            }
            print!("{}", jobs::cli::table(&jobs));
            Ok(())
        }
        Some(Action::Cancel { id }) => {
            client.cancel_job(CancelJobRequest { id }).await?;
            println!("job {id} was asked to end");
            Ok(())
        }
        Some(Action::Follow { id }) => {
            let stream = client.follow_job(FollowJobRequest { id }).await?.into_inner();
            let job = jobs::cli::follow(stream).await?.ok_or(CommandError::Interrupted)?;
            if args.json {
                print_json(&job)?;
            } else if job.state == "done" {
                println!("{}", jobs::cli::line(&job));
            }
            if job.state == "done" { Ok(()) } else { Err(CommandError::Agent(jobs::cli::line(&job))) }
        }
    }
}
