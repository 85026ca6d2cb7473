//! Configuration files: TOML whose errors name file, line and remedy, and the value types that both agents use.
//!
//! [`load`] parses; an agent's own checks between values report through [`Source::invalid`], so that they point at
//! a line too. This file knows no key of either agent.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use thiserror::Error;

use crate::limits::{CONFIG_BYTES_MAX, UNIX_PATH_BYTES_MAX};

/// A value that remembers where in the file it stands, for [`Source::invalid`].
pub use toml::Spanned;

/// Why an agent doesn't start with this configuration. The text is complete: file, line, what, and what to do.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{}: can't read the configuration: {source}; check the path given with --config and its permissions", file.display())]
    Read {
        /// Path of the file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is implausibly large.
    #[error("{}: is larger than {CONFIG_BYTES_MAX} bytes: this is not a configuration file", file.display())]
    TooLarge {
        /// Path of the file.
        file: PathBuf,
    },
    /// A key or a value is refused.
    #[error("{}{}: {what}; {remedy}", file.display(), line.map(|line| format!(":{line}")).unwrap_or_default())]
    Invalid {
        /// Path of the file.
        file: PathBuf,
        /// Line, from 1; `None` where no single line is at fault.
        line: Option<usize>,
        /// What is wrong.
        what: String,
        /// What to do about it.
        remedy: String,
    },
}

/// A configuration file as read, to point at its lines.
#[derive(Debug, Clone)]
pub struct Source {
    file: PathBuf,
    text: String,
}

impl Source {
    /// Reads a file of at most 1 MiB.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::Read { file: file.to_owned(), source };
        let mut text = String::new();
        let opened = File::open(file).map_err(unreadable)?;
        let bytes = opened.take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
        if bytes as u64 > CONFIG_BYTES_MAX {
            return Err(ConfigError::TooLarge { file: file.to_owned() });
        }
        Ok(Self { file: file.to_owned(), text })
    }

    /// A text that stands in no file, for tests.
    #[must_use]
    pub fn from_text(file: &Path, text: &str) -> Self {
        Self { file: file.to_owned(), text: text.to_owned() }
    }

    /// Path of the file.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Parses the whole text.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        toml::from_str(&self.text).map_err(|error| {
            let line = error.span().map(|span| self.line_of(span.start));
            let what = error.message().trim().replace('\n', ", ");
            let remedy = remedy_for(&what).to_owned();
            ConfigError::Invalid { file: self.file.clone(), line, what, remedy }
        })
    }

    /// Line, from 1, of a byte of the text.
    #[must_use]
    pub fn line_of(&self, byte: usize) -> usize {
        1 + self.text.bytes().take(byte).filter(|byte| *byte == b'\n').count()
    }

    /// A refusal of one value, pointing at its line.
    #[must_use]
    pub fn invalid<T>(&self, at: &Spanned<T>, what: impl Into<String>, remedy: impl Into<String>) -> ConfigError {
        let line = Some(self.line_of(at.span().start));
        ConfigError::Invalid { file: self.file.clone(), line, what: what.into(), remedy: remedy.into() }
    }

    /// A refusal of the file as a whole.
    #[must_use]
    pub fn invalid_file(&self, what: impl Into<String>, remedy: impl Into<String>) -> ConfigError {
        ConfigError::Invalid { file: self.file.clone(), line: None, what: what.into(), remedy: remedy.into() }
    }
}

/// Reads and parses a configuration file.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    load_with_source(path).map(|(value, _)| value)
}

/// As [`load`], with the text, so that checks between values can point at lines.
pub fn load_with_source<T: DeserializeOwned>(path: &Path) -> Result<(T, Source), ConfigError> {
    let source = Source::read(path)?;
    Ok((source.parse()?, source))
}

fn remedy_for(what: &str) -> &'static str {
    if what.contains("unknown field") {
        "correct the spelling of the key or remove it"
    } else if what.contains("missing field") {
        "add the key"
    } else if what.contains("duplicate") {
        "keep one of them"
    } else {
        "correct the value"
    }
}

/// A length of time as operators write it: "1s", "250ms", "24h", "1h 30m".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HumanDuration(pub Duration);

impl FromStr for HumanDuration {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let refused =
            |_| format!("{text:?} is not a length of time: write a number and a unit, such as \"1s\" or \"24h\"");
        humantime::parse_duration(text).map(Self).map_err(refused)
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

/// A number of bytes as operators write it: "256MiB", "4 GiB", "4096".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let shift = match unit.trim_start() {
            "" | "B" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            "TiB" => 40,
            _ => u32::MAX,
        };
        let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1_u64.checked_shl(shift)?));
        let refused = || format!("{text:?} is not a number of bytes: write a number and B, KiB, MiB, GiB or TiB");
        bytes.map(Self).ok_or_else(refused)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// Host and port, such as `10.0.0.2:9443`, `mt.example:9443` or `[fe80::1]:9443`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// Name or address, without brackets.
    pub host: String,
    /// Port, not 0.
    pub port: u16,
}

impl FromStr for HostPort {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("{text:?} is not an address: write HOST:PORT, an IPv6 address in brackets");
        let (host, port) = text.rsplit_once(':').ok_or_else(refused)?;
        let port: u16 = port.parse().ok().filter(|port| *port != 0).ok_or_else(refused)?;
        let host = match host.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']').filter(|ip| matches!(ip.parse(), Ok(IpAddr::V6(_)))),
            None => Some(host).filter(|host| is_host(host)),
        };
        Ok(Self { host: host.ok_or_else(refused)?.to_owned(), port })
    }
}

fn is_host(host: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    (1..=253).contains(&host.len()) && host.bytes().all(legal)
}

impl HostPort {
    /// True where nothing beyond this host can reach the address: a loopback address or "localhost".
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl<'de> Deserialize<'de> for HostPort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// Where a disk is exported over NBD: "unix:/PATH" or "tcp:HOST:PORT".
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NbdAddress {
    /// A unix socket, by absolute path.
    Unix(PathBuf),
    /// A TCP port.
    Tcp(HostPort),
}

impl FromStr for NbdAddress {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            if !path.starts_with('/') || path.contains('\0') {
                return Err(format!("{text:?} is not an NBD address: the path of a unix socket has to be absolute"));
            }
            if path.len() > UNIX_PATH_BYTES_MAX {
                return Err(format!("{text:?}: the path of a unix socket has at most {UNIX_PATH_BYTES_MAX} bytes"));
            }
            return Ok(Self::Unix(path.into()));
        }
        let address = text.strip_prefix("tcp:").and_then(|address| address.parse().ok());
        address
            .map(Self::Tcp)
            .ok_or_else(|| format!("{text:?} is not an NBD address: write \"unix:/PATH\" or \"tcp:HOST:PORT\""))
    }
}

impl fmt::Display for NbdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

impl<'de> Deserialize<'de> for NbdAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::GroupName;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Example {
        name: Spanned<String>,
        #[serde(default)]
        group: Vec<Group>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Group {
        #[expect(dead_code, reason = "only its spelling is tested")]
        name: GroupName,
        interval: HumanDuration,
        #[expect(dead_code, reason = "only its spelling is tested")]
        nbd: NbdAddress,
    }

    const GOOD: &str = "name = \"ps-1\"\n\n[[group]]\nname = \"web\"\ninterval = \"1s\"\nnbd = \"unix:/run/a.sock\"\n";

    fn message(text: &str) -> String {
        Source::from_text(Path::new("/etc/x.toml"), text).parse::<Example>().unwrap_err().to_string()
    }

    #[test]
    fn a_file_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.toml");
        std::fs::write(&path, GOOD).unwrap();
        let example: Example = load(&path).unwrap();
        assert_eq!(example.name.get_ref(), "ps-1");
        assert_eq!(example.group[0].interval.0, Duration::from_secs(1));
    }

    #[test]
    fn errors_name_file_line_and_remedy() {
        for (from, to, start, remedy) in [
            ("interval =", "intervall =", "/etc/x.toml:5: unknown field `intervall`", "correct the spelling"),
            ("\"1s\"", "\"soon\"", "/etc/x.toml:5: \"soon\" is not a length of time", "correct the value"),
            ("\"1s\"", "7", "/etc/x.toml:5: invalid type", "correct the value"),
            ("\"web\"", "\"../web\"", "/etc/x.toml:4: \"../web\" is not a valid name", "correct the value"),
            ("unix:/", "unix:", "/etc/x.toml:6: ", "correct the value"),
            ("interval = \"1s\"\n", "", "/etc/x.toml:3: missing field `interval`", "add the key"),
            (
                "interval = \"1s\"\n",
                "interval = \"1s\"\ninterval = \"2s\"\n",
                "/etc/x.toml:6: duplicate key",
                "keep one",
            ),
            ("\"ps-1\"", "\"ps-1", "/etc/x.toml:1: ", "correct the value"),
        ] {
            let text = message(&GOOD.replace(from, to));
            assert!(text.starts_with(start) && text.contains(remedy), "{text}");
            assert!(!text.contains('\n'), "{text}");
        }
    }

    #[test]
    fn a_check_between_values_points_at_its_line() {
        let source = Source::from_text(Path::new("/etc/x.toml"), GOOD);
        let example: Example = source.parse().unwrap();
        let error = source.invalid(&example.name, "the name is taken", "choose another");
        assert_eq!(error.to_string(), "/etc/x.toml:1: the name is taken; choose another");
        assert_eq!(source.invalid_file("no group", "add one").to_string(), "/etc/x.toml: no group; add one");
    }

    #[test]
    fn a_missing_an_unreadable_and_a_huge_file_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("none.toml");
        let text = load::<Example>(&missing).unwrap_err().to_string();
        assert!(text.contains("none.toml") && text.contains("--config"), "{text}");
        let huge = folder.path().join("huge.toml");
        std::fs::write(&huge, vec![b'\n'; usize::try_from(CONFIG_BYTES_MAX).unwrap() + 1]).unwrap();
        assert!(matches!(load::<Example>(&huge), Err(ConfigError::TooLarge { .. })));
        let binary = folder.path().join("binary.toml");
        std::fs::write(&binary, [0xff, 0xfe]).unwrap();
        assert!(matches!(load::<Example>(&binary), Err(ConfigError::Read { .. })));
    }

    #[test]
    fn sizes_are_read_in_binary_units() {
        for (text, bytes) in [("256MiB", 256 << 20), ("4 GiB", 4 << 30), ("0", 0), ("12B", 12), ("1TiB", 1 << 40)] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "MiB", "-1", "1.5GiB", "1GB", "18446744073709551616", "16777216TiB", "1 KiB "] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_are_read_and_written_back() {
        for text in ["unix:/run/web.sock", "tcp:127.0.0.1:10809", "tcp:[::1]:10809", "tcp:ps.example:1"] {
            assert_eq!(text.parse::<NbdAddress>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "/run/web.sock",
            "unix:",
            "unix:run/web.sock",
            "tcp:",
            "tcp:host",
            "tcp:host:0",
            "tcp::1",
            "tcp:::1:5",
            "tcp:host:65536",
            "tcp:[host]:1",
            "tcp:[::1:1",
            "tcp:a b:1",
            "udp:host:1",
            &format!("unix:/{}", "x".repeat(UNIX_PATH_BYTES_MAX)),
        ] {
            assert!(text.parse::<NbdAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn only_loopback_addresses_count_as_loopback() {
        let is_loopback = |text: &str| text.parse::<HostPort>().unwrap().is_loopback();
        assert!(
            is_loopback("127.0.0.1:1")
                && is_loopback("127.9.9.9:1")
                && is_loopback("[::1]:1")
                && is_loopback("localhost:1")
        );
        assert!(
            !is_loopback("0.0.0.0:1")
                && !is_loopback("10.0.0.2:1")
                && !is_loopback("[::]:1")
                && !is_loopback("localhost.evil:1")
        );
    }
}
