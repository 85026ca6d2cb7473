//! Which threads give way when the processors are short: those that no guest's write waits for.

/// Steps of `nice` that a background thread goes down: about a ninth of the weight of a thread that serves a guest.
const BACKGROUND_NICE: i32 = 10;

/// Lowers the calling thread's claim on the processors, for good.
///
/// A guest's write is served by one thread of its group. Compressing and encrypting what was written a second ago
/// must not make it wait a scheduler's slice, which is 3 ms and more. Where the system refuses, all stay equal.
pub fn step_back() {
    // It takes effect on the calling thread alone: on Linux the priority belongs to the thread.
    let _ = rustix::process::nice(BACKGROUND_NICE);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_calling_thread_steps_back() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let before = nice();
        let there = std::thread::spawn(move || {
            step_back();
            nice()
        });
        assert_eq!(there.join().unwrap(), (before + BACKGROUND_NICE).min(19));
        assert_eq!(nice(), before);
    }
}
