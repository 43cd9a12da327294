//! Keys that sign mail (DKIM, RFC 6376; Ed25519 by RFC 8463).

use std::fmt;

use aws_lc_rs::{
    digest,
    rand::SystemRandom,
    rsa::KeyPair,
    signature::{Ed25519KeyPair, RSA_PKCS1_SHA256},
};
use base64::{Engine, prelude::BASE64_STANDARD};

/// A private key. `Debug` shows its algorithm.
pub enum DkimKey {
    /// RSA, which every receiver knows.
    Rsa(Box<KeyPair>),
    /// Ed25519, which not every receiver knows.
    Ed25519(Box<Ed25519KeyPair>),
}

impl fmt::Debug for DkimKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DkimKey({})", self.algorithm())
    }
}

impl DkimKey {
    /// Reads a private key: PEM, or its base64 alone, of PKCS #8 or (RSA) PKCS #1.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        let base64: String = text.lines().filter(|line| !line.starts_with("-----")).flat_map(str::split_ascii_whitespace).collect();
        let der = BASE64_STANDARD.decode(base64).ok()?;
        let rsa = KeyPair::from_pkcs8(&der).or_else(|_| KeyPair::from_der(&der));
        if let Ok(pair) = rsa {
            return Some(Self::Rsa(Box::new(pair)));
        }
        Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).ok().map(|pair| Self::Ed25519(Box::new(pair)))
    }

    /// The algorithm's name in a signature (`a=`).
    #[must_use]
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Rsa(_) => "rsa-sha256",
            Self::Ed25519(_) => "ed25519-sha256",
        }
    }

    /// Signs the canonical headers. `None` when the machine has no randomness.
    #[must_use]
    pub fn sign(&self, headers: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), headers, &mut signature).ok()?;
                Some(signature)
            }
            // RFC 8463, section 3: the digest is what is signed.
            Self::Ed25519(pair) => Some(pair.try_sign(digest::digest(&digest::SHA256, headers).as_ref()).ok()?.as_ref().to_vec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_in_the_forms_that_tools_write() {
        // RFC 8032, section 7.1, test 1, as PKCS #8; `openssl genpkey` writes the same shape.
        let ed25519 = "MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g";
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{ed25519}\n-----END PRIVATE KEY-----\n");
        for text in [ed25519, &pem] {
            let key = DkimKey::read(text).unwrap();
            assert_eq!((key.algorithm(), key.sign(b"a").unwrap().len()), ("ed25519-sha256", 64));
            assert_eq!(format!("{key:?}"), "DkimKey(ed25519-sha256)");
        }
        for wrong in ["", "AAAA", "-----BEGIN PRIVATE KEY-----", &ed25519[..40], "not base64!"] {
            assert!(DkimKey::read(wrong).is_none(), "{wrong}");
        }
    }
}
