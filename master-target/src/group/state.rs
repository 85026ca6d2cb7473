//! The state of a group as people see it: derived from facts, never set by hand.
//!
//! Pure: takes the facts and `now`, keeps since when the state holds. It decides nothing about replication.

use std::time::Duration;

use crate::receive::admission::FULL;

/// What is known about a group at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Why the group can't be served, if it can't.
    pub failure: Option<String>,
    /// What room is missing on the retention volume, if the group takes no more for want of it.
    pub shortage: Option<String>,
    /// Where a failback stands.
    pub recovery: Recovery,
    /// Whether a session with the source is open.
    pub session: Session,
    /// A catching-up is unfinished: the disks are a mixture until it ends.
    pub bulk_open: bool,
    /// Something was ever replicated.
    pub has_history: bool,
    /// Name of the process-server that may write the group.
    pub process_server: String,
}

/// Where a failback stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovery {
    /// Replication.
    None,
    /// A failback is under way; the text says what it does now.
    FailingBack(String),
    /// The disks were handed over.
    FailedBack(String),
}

/// Whether the source is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Session {
    /// Never since this agent started.
    Never,
    /// It was, and is not now.
    Lost,
    /// Open now.
    Open,
    /// Open, but nothing was heard for this many seconds.
    Silent(u64),
}

/// A state of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// No session with the source.
    Waiting,
    /// Initial synchronisation or catching up: no new points meanwhile.
    Syncing,
    /// Sets arrive as points.
    Protected,
    /// A failback is under way.
    FailingBack,
    /// The disks were handed over; the group takes nothing.
    FailedBack,
    /// A human must look.
    Failed,
}

impl State {
    /// The word of the contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Syncing => "syncing",
            Self::Protected => "protected",
            Self::FailingBack => "failing-back",
            Self::FailedBack => "failed-back",
            Self::Failed => "failed",
        }
    }
}

/// The state that follows from the facts, and its reason in words.
pub fn derive(facts: &Facts) -> (State, Option<String>) {
    if let Some(failure) = &facts.failure {
        return (State::Failed, Some(failure.clone()));
    }
    match &facts.recovery {
        Recovery::FailingBack(step) => return (State::FailingBack, Some(step.clone())),
        Recovery::FailedBack(report) => return (State::FailedBack, Some(report.clone())),
        Recovery::None => {}
    }
    if let Some(shortage) = &facts.shortage {
        return (State::Waiting, Some(format!("{FULL}: {shortage}")));
    }
    let source = &facts.process_server;
    match facts.session {
        Session::Never => (State::Waiting, Some(format!("{source} has not connected yet"))),
        Session::Lost => (State::Waiting, Some(format!("{source} is not connected"))),
        Session::Open => connected(facts, None),
        Session::Silent(seconds) => {
            connected(facts, Some(format!("nothing heard from {source} for {seconds} s: check the link and the agent")))
        }
    }
}

fn connected(facts: &Facts, silence: Option<String>) -> (State, Option<String>) {
    if !facts.has_history {
        return (State::Syncing, silence.or_else(|| Some("initial synchronisation".to_owned())));
    }
    if facts.bulk_open {
        return (State::Syncing, silence.or_else(|| Some("catching up with the source".to_owned())));
    }
    (State::Protected, silence)
}

/// Remembers since when the state holds.
#[derive(Debug)]
pub struct StateClock {
    state: State,
    since: Duration,
}

impl StateClock {
    /// Starts in `Waiting` at `now` (monotonic time since the agent started).
    pub fn new(now: Duration) -> Self {
        Self { state: State::Waiting, since: now }
    }

    /// Takes the newest state. Returns the one it replaces when it changed.
    pub fn observe(&mut self, state: State, now: Duration) -> Option<State> {
        if state == self.state {
            return None;
        }
        self.since = now;
        Some(std::mem::replace(&mut self.state, state))
    }

    /// Time in the state.
    pub fn elapsed(&self, now: Duration) -> Duration {
        now.saturating_sub(self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            failure: None,
            shortage: None,
            recovery: Recovery::None,
            session: Session::Open,
            bulk_open: false,
            has_history: true,
            process_server: "ps-1".into(),
        }
    }

    #[test]
    fn an_open_session_with_history_and_no_bulk_is_protected() {
        assert_eq!(derive(&facts()), (State::Protected, None));
    }

    #[test]
    fn a_group_without_a_session_waits_and_names_its_source() {
        for session in [Session::Never, Session::Lost] {
            let (state, reason) = derive(&Facts { session, ..facts() });
            assert_eq!(state, State::Waiting);
            assert!(reason.unwrap().contains("ps-1"));
        }
    }

    #[test]
    fn an_open_bulk_and_a_first_synchronisation_are_syncing() {
        assert_eq!(derive(&Facts { bulk_open: true, ..facts() }).0, State::Syncing);
        assert_eq!(derive(&Facts { has_history: false, ..facts() }).0, State::Syncing);
    }

    #[test]
    fn a_silent_source_is_the_reason_but_not_the_state() {
        let (state, reason) = derive(&Facts { session: Session::Silent(12), ..facts() });
        assert_eq!(state, State::Protected);
        assert!(reason.unwrap().contains("12 s"));
    }

    #[test]
    fn a_failback_outranks_the_session_and_a_failure_outranks_both() {
        let failing = Facts { recovery: Recovery::FailingBack("draining".into()), session: Session::Lost, ..facts() };
        assert_eq!(derive(&failing), (State::FailingBack, Some("draining".into())));
        let done = Facts { recovery: Recovery::FailedBack("at set 9".into()), ..facts() };
        assert_eq!(derive(&done).0, State::FailedBack);
        let failed = Facts { failure: Some("disk gone".into()), ..failing };
        assert_eq!(derive(&failed), (State::Failed, Some("disk gone".into())));
    }

    #[test]
    fn time_in_a_state_starts_anew_with_each_change_only() {
        let mut clock = StateClock::new(Duration::from_secs(1));
        assert_eq!(clock.observe(State::Waiting, Duration::from_secs(3)), None);
        assert_eq!(clock.elapsed(Duration::from_secs(4)), Duration::from_secs(3));
        assert_eq!(clock.observe(State::Syncing, Duration::from_secs(5)), Some(State::Waiting));
        assert_eq!(clock.elapsed(Duration::from_secs(7)), Duration::from_secs(2));
    }
}
