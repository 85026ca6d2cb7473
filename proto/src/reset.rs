//! How a restarted master-target tells a process-server that their connection is no more.
//!
//! An agent that was killed says no farewell, and a UDP port that answers again looks like silence: the peer would wait for
//! its time-out, 10 s, before it connects anew. QUIC has the stateless reset for this (RFC 9000, 10.3): whoever gets a
//! packet of a connection that it does not know answers with a token that only the true peer of old can have made. For
//! that the token is derived from what survives the restart, the agent's private key, and connection ids carry
//! nothing that only the old process could check.

use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::{CryptoError, HmacKey};
use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig};
use rustls::SupportedCipherSuite;
use rustls::crypto::tls13::{Hkdf, OkmBlock};
use rustls::crypto::{SecureRandom, ring};

/// Bytes of an id: of ids drawn at random, two connections never share one.
const ID_BYTES: usize = 8;
/// SHA-256.
const SIGNATURE_BYTES: usize = 32;
/// Keeps this use of the private key apart from every other.
const PURPOSE: &[u8] = b"backhaul stateless reset, version 1";

/// An endpoint whose resets are understood by the peers of its earlier lives, if it has the same private key (DER).
pub(crate) fn endpoint_config(private_key: &[u8]) -> EndpointConfig {
    let mut config = EndpointConfig::new(Arc::new(ResetKey::new(private_key)));
    config.cid_generator(|| Box::new(RandomIds(ring::default_provider().secure_random)));
    config
}

/// HMAC-SHA-256, of TLS 1.3's own making.
struct ResetKey {
    hkdf: &'static dyn Hkdf,
    key: OkmBlock,
}

impl ResetKey {
    fn new(private_key: &[u8]) -> Self {
        let SupportedCipherSuite::Tls13(suite) = ring::cipher_suite::TLS13_AES_128_GCM_SHA256 else {
            unreachable!("its name says that it is a suite of TLS 1.3");
        };
        let hkdf = suite.hkdf_provider;
        let derived = hkdf.hmac_sign(&OkmBlock::new(PURPOSE), private_key);
        Self { hkdf, key: OkmBlock::new(derived.as_ref()) }
    }
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(self.hkdf.hmac_sign(&self.key, data).as_ref());
    }

    fn signature_len(&self) -> usize {
        SIGNATURE_BYTES
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let expected = self.hkdf.hmac_sign(&self.key, data);
        // Every byte is looked at, so that the time taken tells nothing.
        let differing = expected.as_ref().iter().zip(signature).fold(0, |bits, (a, b)| bits | (a ^ b));
        if signature.len() == SIGNATURE_BYTES && differing == 0 { Ok(()) } else { Err(CryptoError) }
    }
}

struct RandomIds(&'static dyn SecureRandom);

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; ID_BYTES];
        self.0.fill(&mut id).expect("the system gives random bytes, or there is no TLS either");
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(key: &ResetKey, data: &[u8]) -> [u8; SIGNATURE_BYTES] {
        let mut signature = [0; SIGNATURE_BYTES];
        key.sign(data, &mut signature);
        signature
    }

    #[test]
    fn the_same_private_key_makes_the_same_tokens_in_the_next_life_and_another_one_does_not() {
        let (first, second, other) = (ResetKey::new(b"key"), ResetKey::new(b"key"), ResetKey::new(b"yek"));
        assert_eq!(signed(&first, b"id"), signed(&second, b"id"));
        assert_ne!(signed(&first, b"id"), signed(&first, b"di"));
        assert_ne!(signed(&first, b"id"), signed(&other, b"id"));
        assert!(second.verify(b"id", &signed(&first, b"id")).is_ok());
        assert!(other.verify(b"id", &signed(&first, b"id")).is_err());
        assert!(first.verify(b"id", &signed(&first, b"id")[..31]).is_err());
    }
}
