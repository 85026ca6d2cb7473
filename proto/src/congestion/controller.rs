//! What quinn asks: its trait, told to the pilot. Pacing is quinn's, at 1.25 windows a round trip.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory};

use super::pilot::Pilot;

/// Makes a controller for each path of a connection.
#[derive(Debug, Clone, Copy, Default)]
pub struct SteadyConfig;

impl ControllerFactory for SteadyConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Steady(Pilot::new(now, current_mtu)))
    }
}

#[derive(Debug, Clone)]
struct Steady(Pilot);

impl Controller for Steady {
    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, _rtt: &quinn_proto::RttEstimator) {
        self.0.acked(now, sent, bytes, app_limited);
    }

    fn on_end_acks(&mut self, now: Instant, _in_flight: u64, app_limited: bool, _largest: Option<u64>) {
        self.0.acks_ended(now, app_limited);
    }

    fn on_congestion_event(&mut self, now: Instant, _sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        if is_persistent_congestion { self.0.silent(now) } else { self.0.lost(lost_bytes) }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.0.set_packet_bytes(new_mtu);
    }

    fn window(&self) -> u64 {
        self.0.window()
    }

    fn initial_window(&self) -> u64 {
        self.0.window_first()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
