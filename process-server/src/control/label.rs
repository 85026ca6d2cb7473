//! What a point's label may be.
//!
//! `--point P` of the master-target takes `latest`, an id, a label or a time. A label that reads as
//! one of the others could never be asked for, so it is refused where it is given.

use proto::limits::LABEL_BYTES_MAX;
use proto::time::Timestamp;

/// Why a label was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// Nothing in it.
    #[error("the label is empty: leave --label out for a point without one")]
    Empty,
    /// Longer than [`LABEL_BYTES_MAX`].
    #[error("the label has {bytes} bytes, more than {LABEL_BYTES_MAX}: choose a shorter one")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Line breaks and the like.
    #[error("the label contains a control character: choose one of printable characters")]
    ControlCharacter,
    /// Could not be told from another way to name a point.
    #[error("the label {label:?} reads as {reads_as}: choose one that can't be mistaken")]
    Ambiguous {
        /// The label.
        label: String,
        /// What it looks like.
        reads_as: &'static str,
    },
}

/// Accepts a label that can later be used to name its point.
pub fn check_label(label: &str) -> Result<(), LabelError> {
    let ambiguous = |reads_as| Err(LabelError::Ambiguous { label: label.to_owned(), reads_as });
    if label.trim().is_empty() {
        return Err(LabelError::Empty);
    }
    if label.len() > LABEL_BYTES_MAX {
        return Err(LabelError::TooLong { bytes: label.len() });
    }
    if label.chars().any(char::is_control) {
        return Err(LabelError::ControlCharacter);
    }
    if label == "latest" {
        return ambiguous("the newest point");
    }
    if label.bytes().all(|byte| byte.is_ascii_digit()) {
        return ambiguous("the id of a point");
    }
    if label.parse::<Timestamp>().is_ok() {
        return ambiguous("a time");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_people_are_accepted() {
        for label in ["before upgrade", "v1.2", "2024-q1", "größer", "-"] {
            assert_eq!(check_label(label), Ok(()), "{label}");
        }
        assert_eq!(check_label(&"x".repeat(LABEL_BYTES_MAX)), Ok(()));
    }

    #[test]
    fn labels_that_name_something_else_are_refused() {
        for label in ["latest", "17", "2026-11-23T10:00:00.000000Z"] {
            assert!(matches!(check_label(label), Err(LabelError::Ambiguous { .. })), "{label}");
        }
    }

    #[test]
    fn empty_long_and_unprintable_labels_are_refused() {
        assert_eq!(check_label(" "), Err(LabelError::Empty));
        assert_eq!(
            check_label(&"x".repeat(LABEL_BYTES_MAX + 1)),
            Err(LabelError::TooLong { bytes: LABEL_BYTES_MAX + 1 })
        );
        assert_eq!(check_label("a\nb"), Err(LabelError::ControlCharacter));
    }
}
