//! Progress of long work on standard error: a bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Shows the progress of one piece of work, step by step.
#[derive(Debug)]
pub struct Progress {
    style: Style,
    step: String,
}

#[derive(Debug)]
enum Style {
    Bar(ProgressBar),
    Lines(Lines),
}

impl Progress {
    /// Chooses the style by what standard error is.
    pub fn on_stderr() -> Self {
        let style = if std::io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            let template =
                "{msg} [{bar:32}] {percent:>3}% {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
            bar.set_style(
                ProgressStyle::with_template(template)
                    .unwrap_or_else(|_| ProgressStyle::default_bar())
                    .progress_chars("=> "),
            );
            Style::Bar(bar)
        } else {
            Style::Lines(Lines::default())
        };
        Self { style, step: String::new() }
    }

    /// Shows how far a step is; `total_bytes` 0 means that it has no measure.
    pub fn show(&mut self, step: &str, done_bytes: u64, total_bytes: u64) {
        let new_step = step != self.step;
        self.step = step.to_owned();
        match &mut self.style {
            Style::Bar(bar) => {
                if new_step {
                    bar.reset();
                    bar.set_message(step.to_owned());
                }
                bar.set_length(total_bytes);
                bar.set_position(done_bytes);
            }
            Style::Lines(lines) => {
                if let Some(line) = lines.line(step, new_step, done_bytes, total_bytes) {
                    eprintln!("{line}");
                }
            }
        }
    }

    /// Ends the display: what follows on standard error starts on a line of its own.
    pub fn finish(self) {
        if let Style::Bar(bar) = self.style {
            bar.finish_and_clear();
        }
    }
}

/// Decides which plain lines are worth a line: each new step, and each further tenth of it.
#[derive(Debug, Default)]
struct Lines {
    tenths: u64,
}

impl Lines {
    fn line(&mut self, step: &str, new_step: bool, done_bytes: u64, total_bytes: u64) -> Option<String> {
        let tenths = match total_bytes {
            0 => 0,
            // More than all is a peer's mistake, not a reason to fail.
            total => (u128::from(done_bytes) * 10 / u128::from(total)).min(10) as u64,
        };
        if !new_step && tenths <= self.tenths {
            return None;
        }
        self.tenths = tenths;
        Some(match total_bytes {
            0 => step.to_owned(),
            total => format!("{step}: {}% of {}", tenths * 10, crate::amount::amount(total)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_lines_come_once_per_step_and_tenth() {
        let mut lines = Lines::default();
        assert_eq!(lines.line("draining", true, 0, 0).unwrap(), "draining");
        assert_eq!(lines.line("draining", false, 0, 0), None);
        assert_eq!(lines.line("checksums", true, 0, 1 << 20).unwrap(), "checksums: 0% of 1.0 MiB");
        assert_eq!(lines.line("checksums", false, 100_000, 1 << 20), None);
        assert_eq!(lines.line("checksums", false, 1 << 19, 1 << 20).unwrap(), "checksums: 50% of 1.0 MiB");
        assert_eq!(lines.line("checksums", false, 1 << 20, 1 << 20).unwrap(), "checksums: 100% of 1.0 MiB");
    }

    #[test]
    fn a_peers_absurd_numbers_do_not_overflow() {
        assert!(Lines::default().line("x", true, u64::MAX, 1).is_some());
    }
}
