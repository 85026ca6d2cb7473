//! The link between source and target: loopback as fast as it is, a rate shaped by the kernel between two network
//! namespaces, or a long way with loss through the UDP proxy. Peers go through the same link as the agents.

use anyhow::Result;
use tests::namespaces::{Namespaces, TARGET_ADDRESS};
use tests::proxy::{Proxy, Weather};
use tests::site::Site;

use std::time::Duration;

/// Which link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// As fast as it goes.
    Loopback,
    /// 1 Gbit/s.
    Gbit,
    /// 100 Mbit/s.
    Mbit100,
    /// 100 Mbit/s, 40 ms there and back, 0.1 % lost each way. For the agents only.
    FarAway,
}

/// A link that is there until this is dropped.
#[derive(Debug)]
pub struct Link {
    kind: Kind,
    namespaces: Option<Namespaces>,
    proxy: Option<Proxy>,
}

impl Link {
    /// Makes it.
    pub fn new(kind: Kind) -> Result<Self> {
        // A burst of one millisecond of the link, and no less than a GSO packet.
        let shape = match kind {
            Kind::Gbit => Some(("1gbit", "128kb")),
            Kind::Mbit100 => Some(("100mbit", "64kb")),
            Kind::Loopback | Kind::FarAway => None,
        };
        if shape.is_some() && !rustix::process::geteuid().is_root() {
            anyhow::bail!("needs root: network namespaces");
        }
        let namespaces = shape.map(|(rate, burst)| Namespaces::shaped(rate, burst));
        Ok(Self { kind, namespaces, proxy: None })
    }

    /// Puts the agents of a site on both ends; before they start.
    pub fn carry(&mut self, site: &mut Site) {
        if let Some(namespaces) = &self.namespaces {
            site.into_namespaces(&namespaces.source, &namespaces.target, TARGET_ADDRESS);
        }
        if self.kind == Kind::FarAway {
            let weather = Weather {
                delay: Duration::from_millis(20),
                lost_ppm: 1000,
                bits_per_second: 100_000_000,
                ..Weather::default()
            };
            self.proxy = Some(site.through_proxy(1, weather));
        }
    }

    /// Where the source's programs run.
    pub fn source(&self) -> Option<&str> {
        self.namespaces.as_ref().map(|namespaces| namespaces.source.as_str())
    }

    /// Where the target's programs run.
    pub fn target(&self) -> Option<&str> {
        self.namespaces.as_ref().map(|namespaces| namespaces.target.as_str())
    }

    /// The target's address, as the source sees it.
    pub fn target_address(&self) -> &'static str {
        if self.namespaces.is_some() { TARGET_ADDRESS } else { "127.0.0.1" }
    }

    /// Bits per second that it carries; none if nothing limits it.
    pub fn rate(&self) -> Option<f64> {
        match self.kind {
            Kind::Loopback => None,
            Kind::Gbit => Some(1e9),
            Kind::Mbit100 | Kind::FarAway => Some(1e8),
        }
    }

    /// Part of the rate that these bytes took.
    pub fn share(&self, bytes: Option<u64>, seconds: f64) -> Option<f64> {
        Some(bytes? as f64 * 8.0 / seconds / self.rate()?)
    }

    /// Bytes that have left the source's end, as far as the link counts them.
    pub fn sent_bytes(&self) -> Option<u64> {
        let shaped = self.namespaces.as_ref().map(Namespaces::sent_bytes);
        shaped.or_else(|| self.proxy.as_ref().map(Proxy::from_source))
    }
}
