//! Signatures of Standard Webhooks (<https://www.standardwebhooks.com/>, version 1.0.0): what a receiver proves a delivery by.
//!
//! What must stay true: a key is in no log and no `Debug`; a delivery's id has no dot, since dots part what is signed.

use std::fmt;

use aws_lc_rs::hmac;
use base64::{Engine, prelude::BASE64_STANDARD};

/// What a symmetric key's text begins with.
const PREFIX: &str = "whsec_";

/// The fewest and the most bytes of a key, as the specification has it.
const BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// The most signatures of one delivery that are looked at.
const MOST_SIGNATURES: usize = 8;

/// The keys of one sender: one, or several while one takes another's place.
#[derive(Clone)]
pub struct SigningKeys(Vec<hmac::Key>);

impl fmt::Debug for SigningKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKeys({})", self.0.len())
    }
}

impl SigningKeys {
    /// Reads keys that are parted by spaces: `whsec_` and 24 to 64 bytes in base64.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        let key = |text: &str| {
            let bytes = BASE64_STANDARD.decode(text.strip_prefix(PREFIX)?).ok().filter(|bytes| BYTES.contains(&bytes.len()))?;
            Some(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
        };
        let keys: Vec<_> = text.split_ascii_whitespace().map(key).collect::<Option<_>>()?;
        (!keys.is_empty()).then_some(Self(keys))
    }

    /// The header `webhook-signature` of a delivery: one signature a key. `timestamp` is in seconds since 1970.
    #[must_use]
    pub fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let signed = [format!("{id}.{timestamp}.").as_bytes(), body].concat();
        let signatures = self.0.iter().map(|key| format!("v1,{}", BASE64_STANDARD.encode(hmac::sign(key, &signed))));
        signatures.collect::<Vec<_>>().join(" ")
    }

    /// Whether one of the signatures of such a header is by one of the keys. Whether `timestamp` is of now is the caller's to ask.
    #[must_use]
    pub fn verify(&self, id: &str, timestamp: i64, body: &[u8], header: &str) -> bool {
        let signed = [format!("{id}.{timestamp}.").as_bytes(), body].concat();
        let signatures: Vec<_> = header
            .split(' ')
            .take(MOST_SIGNATURES)
            .filter_map(|signature| BASE64_STANDARD.decode(signature.strip_prefix("v1,")?).ok())
            .collect();
        // Compared in constant time.
        self.0.iter().any(|key| signatures.iter().any(|signature| hmac::verify(key, &signed, signature).is_ok()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_signs_as_the_reference_does() {
        // The example of the reference implementations' own tests.
        let keys = SigningKeys::read("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signature = keys.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        let both = SigningKeys::read("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw  whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX").unwrap();
        let signatures = both.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert!(signatures.starts_with(&format!("{signature} v1,")) && signatures.split(' ').count() == 2);

        let verify = |keys: &SigningKeys, timestamp, header: &str| {
            keys.verify("msg_p5jXN8AQM9LWM0D4loKWxJek", timestamp, br#"{"test": 2432232314}"#, header)
        };
        assert!(
            verify(&keys, 1_614_265_330, &signature)
                && verify(&keys, 1_614_265_330, &signatures)
                && verify(&both, 1_614_265_330, &signature)
        );
        assert!(!verify(&keys, 1_614_265_331, &signature));
        for wrong in ["", "v1,", "v1,AAAA", &signature[3..], &signature.replace("v1,", "v1a,"), &signature.replace('g', "h")] {
            assert!(!verify(&keys, 1_614_265_330, wrong), "{wrong}");
        }
    }

    #[test]
    fn keys_are_read_to_the_letter_and_never_shown() {
        for wrong in
            ["", " ", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_", "whsec_AAAA", "whsec_!", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw x"]
        {
            assert!(SigningKeys::read(wrong).is_none(), "{wrong}");
        }
        let keys = SigningKeys::read("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        assert_eq!(format!("{keys:?}"), "SigningKeys(1)");
    }
}
