//! The ring: set up for one thread, entered once per turn.
//!
//! With SINGLE_ISSUER and DEFER_TASKRUN (Linux 6.1) completions are run when the owner enters and
//! never interrupt it; the ring then belongs to the thread that enabled it, which is the one that
//! waits first. Older kernels get COOP_TASKRUN, or a plain ring.

use std::io;
use std::sync::OnceLock;
use std::thread::{self, ThreadId};
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, opcode, squeue};

/// The kernel's error, a positive errno, or the result.
pub(super) type Outcome = i32;

/// How long a wait gathers completions before it is content with one.
const GATHER_TIME: Duration = Duration::from_micros(50);
/// Time-out of a wait without one. The kernel takes the gathering time for one where there is no other.
const LONG: Duration = Duration::from_secs(3600);

pub(super) struct Ring {
    ring: IoUring,
    /// The kernel can wait for several completions, and be content with one after a while.
    gathers: bool,
    entries: u32,
    /// Set when only one thread may enter.
    single_issuer: bool,
    owner: Option<ThreadId>,
}

/// What to do with a ring in the hands of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// This thread may enter it.
    Me,
    /// Nobody has entered yet.
    Nobody,
    /// Only that other thread may.
    Another,
}

impl Ring {
    /// Whether the kernel has, and lets us use, everything that the engine needs. Asked once.
    pub(super) fn is_available() -> bool {
        static AVAILABLE: OnceLock<bool> = OnceLock::new();
        *AVAILABLE.get_or_init(|| probe().unwrap_or(false))
    }

    pub(super) fn new(entries: u32) -> io::Result<Self> {
        let (ring, single_issuer) = build(entries)?;
        // Waits with a time-out and completions that are never dropped: Linux 5.11.
        if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let gathers = ring.params().is_feature_min_timeout();
        Ok(Self { ring, gathers, entries, single_issuer, owner: None })
    }

    pub(super) fn owner(&self) -> Owner {
        match self.owner {
            None => Owner::Nobody,
            Some(owner) if !self.single_issuer || owner == thread::current().id() => Owner::Me,
            Some(_) => Owner::Another,
        }
    }

    /// Makes the calling thread the owner of a ring that has none.
    pub(super) fn adopt(&mut self) -> io::Result<()> {
        assert_eq!(self.owner(), Owner::Nobody);
        if self.single_issuer {
            self.ring.submitter().register_enable_rings()?;
        }
        self.owner = Some(thread::current().id());
        Ok(())
    }

    /// Gives up the ring for a new one that the calling thread owns.
    pub(super) fn replace(&mut self) -> io::Result<()> {
        *self = Self::new(self.entries)?;
        self.adopt()
    }

    /// Queues an entry for the next enter; false if there is no room.
    ///
    /// # Safety
    /// Memory and descriptor in the entry stay valid until its completion has been taken.
    pub(super) unsafe fn push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: promised by the caller.
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }

    /// Submits what is queued and waits for at least one completion, at most for `patience`; for `want` of them at first,
    /// where the kernel can give that up after a moment (Linux 6.12).
    pub(super) fn enter(&self, patience: Option<Duration>, want: usize) -> io::Result<()> {
        let submitter = self.ring.submitter();
        let patience = patience.unwrap_or(LONG);
        let timeout = Timespec::from(patience);
        let args = SubmitArgs::new().timespec(&timeout);
        let entered = if want > 1 && self.gathers && patience > GATHER_TIME {
            submitter.submit_with_args(want, &args.min_wait_usec(GATHER_TIME.as_micros() as u32))
        } else {
            submitter.submit_with_args(1, &args)
        };
        match entered {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR) => Ok(()),
                // Short of memory, or completions must be taken first. What was not submitted stays
                // queued for the next enter.
                Some(libc::EAGAIN | libc::EBUSY) => {
                    thread::yield_now();
                    Ok(())
                }
                _ => Err(error),
            },
        }
    }

    /// Moves all completions to `taken`, as (user data, outcome).
    pub(super) fn take_completions(&mut self, taken: &mut Vec<(u64, Outcome)>) {
        taken.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result())));
    }
}

fn build(entries: u32) -> io::Result<(IoUring, bool)> {
    let deferred = IoUring::builder().setup_r_disabled().setup_single_issuer().setup_defer_taskrun().build(entries);
    match deferred {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
        built => return Ok((built?, true)),
    }
    match IoUring::builder().setup_coop_taskrun().build(entries) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
        built => return Ok((built?, false)),
    }
    Ok((IoUring::new(entries)?, false))
}

fn probe() -> io::Result<bool> {
    let ring = Ring::new(8)?.ring;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    Ok([
        opcode::Read::CODE,
        opcode::Write::CODE,
        opcode::Fsync::CODE,
        opcode::Fallocate::CODE,
        opcode::PollAdd::CODE,
        opcode::PollRemove::CODE,
    ]
    .into_iter()
    .all(|code| probe.is_supported(code)))
}
