//! `[group.hook]` and `app_consistent_every`: how and how often application-consistent points are taken.

use std::time::Duration;

use proto::config::{ConfigError, Source};

use super::file;
use crate::quiesce::Hook;

/// `timeout` where the file has none. Guests notice longer pauses; Windows ends a freeze of its own after as much.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
/// Shorter than this no command starts reliably.
const TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// Longer than this is an outage.
const TIMEOUT_MAX: Duration = Duration::from_secs(300);
/// `app_consistent_every` where the file has none and there is a hook.
const EVERY_DEFAULT: Duration = Duration::from_secs(3600);
/// Machines that are frozen more often do little else.
const EVERY_MIN: Duration = Duration::from_secs(60);
/// Beyond a week somebody meant another unit.
const EVERY_MAX: Duration = Duration::from_secs(7 * 86_400);

/// A hook whose commands are not empty and whose time-out makes sense.
pub(super) fn hook(source: &Source, table: &file::Hook) -> Result<Hook, ConfigError> {
    for (command, key) in [(&table.freeze, "freeze"), (&table.thaw, "thaw")] {
        if command.get_ref().trim().is_empty() {
            let remedy = "write the command, such as \"/usr/lib/backhaul/fsfreeze-hook freeze /srv\"";
            return Err(source.invalid(command, format!("{key} of the hook is empty"), remedy));
        }
    }
    let timeout = table.timeout.as_ref().map_or(TIMEOUT_DEFAULT, |at| at.get_ref().0);
    if let Some(at) = &table.timeout
        && !(TIMEOUT_MIN..=TIMEOUT_MAX).contains(&timeout)
    {
        let what = format!("timeout of the hook is {}", at.get_ref());
        return Err(source.invalid(at, what, "choose one from 1s to 5m; 10s is the default"));
    }
    Ok(Hook { freeze: table.freeze.get_ref().clone(), thaw: table.thaw.get_ref().clone(), timeout })
}

/// Time between application-consistent points; `None` without a hook, and for "0s": on demand only.
pub(super) fn every(source: &Source, group: &file::Group) -> Result<Option<Duration>, ConfigError> {
    let Some(at) = &group.app_consistent_every else {
        return Ok(group.hook.as_ref().map(|_| EVERY_DEFAULT));
    };
    let name = group.name.get_ref();
    if group.hook.is_none() {
        let what = format!("group {name} has app_consistent_every and no hook");
        return Err(source.invalid(at, what, "add [group.hook] with freeze and thaw, or remove the key"));
    }
    match at.get_ref().0 {
        Duration::ZERO => Ok(None),
        every if (EVERY_MIN..=EVERY_MAX).contains(&every) => Ok(Some(every)),
        _ => {
            let what = format!("app_consistent_every of group {name} is {}", at.get_ref());
            Err(source.invalid(at, what, "choose one from 1m to 7d, or 0s for points on demand only"))
        }
    }
}
