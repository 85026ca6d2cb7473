//! The thread of a group, and how the rest of the agent learns that it has ended.

use std::io;
use std::thread;

use tokio::sync::oneshot;

/// A running group thread. Dropping it does not stop the thread.
#[derive(Debug)]
pub struct GroupThread {
    ended: oneshot::Receiver<Result<(), String>>,
}

impl GroupThread {
    /// Starts `work` on a thread of its own. `Ok` means that it ended because it was told to stop and
    /// saved all it had to; `Err` says in words what went wrong.
    pub fn start(name: String, work: impl FnOnce() -> Result<(), String> + Send + 'static) -> io::Result<Self> {
        let (sender, ended) = oneshot::channel();
        thread::Builder::new().name(name).spawn(move || {
            // Nobody may be waiting any more: the agent is past its own end then.
            _ = sender.send(work());
        })?;
        Ok(Self { ended })
    }

    /// Waits for the end. Cancel safe.
    pub async fn ended(&mut self) -> Result<(), String> {
        match (&mut self.ended).await {
            Ok(result) => result,
            // The sender is dropped without a word only by a panic, whose message is in the log.
            Err(_) => Err("its thread panicked: see the log, and report it".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_a_thread_is_told_with_its_reason() {
        let mut thread = GroupThread::start("group".to_owned(), || Err("disk full".to_owned())).unwrap();
        assert_eq!(thread.ended().await, Err("disk full".to_owned()));
        let mut thread = GroupThread::start("group".to_owned(), || Ok(())).unwrap();
        assert_eq!(thread.ended().await, Ok(()));
    }

    #[tokio::test]
    async fn a_panic_is_an_end_too() {
        let mut thread = GroupThread::start("group".to_owned(), || std::panic::resume_unwind(Box::new(()))).unwrap();
        assert!(thread.ended().await.unwrap_err().contains("panicked"));
    }
}
