//! A browser's side of RFC 8291 and a push service's side of RFC 8292, on `RustCrypto`: the product seals and signs by another library.

use aes_gcm::{Aes128Gcm, KeyInit, Nonce, aead::Aead};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use hkdf::Hkdf;
use p256::ecdsa::{Signature, VerifyingKey, signature::Verifier};
use p256::{PublicKey, SecretKey};
use sha2::Sha256;

use crate::error::{Error, Result};
use crate::random;

/// Salt, record size and the length of the key that follows (RFC 8188, section 2.1).
const PREFIX: usize = 16 + 4 + 1;

/// A browser's keys.
#[derive(Debug)]
pub(super) struct Keys {
    private: SecretKey,
    auth: [u8; 16],
}

impl Keys {
    pub(super) fn new() -> Result<Self> {
        // Hardly any 32 bytes are no key: those above the curve's order.
        for _ in 0..8 {
            if let Ok(private) = SecretKey::from_slice(&random::bytes::<32>()?) {
                return Ok(Self { private, auth: random::bytes()? });
            }
        }
        Err(Error::Invalid("the operating system's random numbers make no key of P-256".to_owned()))
    }

    pub(super) fn private(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(self.private.to_bytes())
    }

    pub(super) fn public(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(self.private.public_key().to_sec1_bytes())
    }

    pub(super) fn auth(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(self.auth)
    }

    /// A body's payload; `None` when it was not sealed for this browser.
    pub(super) fn unseal(&self, body: &[u8]) -> Option<Vec<u8>> {
        let (prefix, rest) = body.split_at_checked(PREFIX)?;
        let (salt, sizes) = prefix.split_at_checked(16)?;
        let (record_size, key_length) = sizes.split_at_checked(4)?;
        let record_size = u32::from_be_bytes(record_size.try_into().ok()?);
        let (public, record) = rest.split_at_checked(usize::from(*key_length.first()?))?;
        // One record only (RFC 8291, section 4).
        if record.len() > usize::try_from(record_size).ok()? {
            return None;
        }
        let sender = PublicKey::from_sec1_bytes(public).ok()?;
        let agreed = p256::ecdh::diffie_hellman(self.private.to_nonzero_scalar(), sender.as_affine());
        let info = [b"WebPush: info\0".as_slice(), &self.private.public_key().to_sec1_bytes(), public].concat();
        let (mut secret, mut key, mut nonce) = ([0; 32], [0; 16], [0; 12]);
        Hkdf::<Sha256>::new(Some(&self.auth), agreed.raw_secret_bytes()).expand(&info, &mut secret).ok()?;
        let content = Hkdf::<Sha256>::new(Some(salt), &secret);
        content.expand(b"Content-Encoding: aes128gcm\0", &mut key).ok()?;
        content.expand(b"Content-Encoding: nonce\0", &mut nonce).ok()?;
        let mut payload = Aes128Gcm::new(&key.into()).decrypt(&Nonce::from(nonce), record).ok()?;
        // Zeros, then the delimiter of the last record.
        let delimiter = payload.iter().rposition(|byte| *byte != 0)?;
        if payload.get(delimiter) != Some(&2) {
            return None;
        }
        payload.truncate(delimiter);
        Some(payload)
    }
}

/// Who sent a message: claims of a token that was signed by this key.
pub(super) struct Sender {
    pub(super) key: String,
    pub(super) token: String,
    pub(super) claims: serde_json::Value,
}

/// Reads and checks `vapid t=…, k=…`.
pub(super) fn sender(authorization: &str) -> Option<Sender> {
    let parameters = authorization.strip_prefix("vapid ")?;
    let parameter = |name: &str| parameters.split(',').find_map(|pair| pair.trim().strip_prefix(name)?.strip_prefix('='));
    let (token, key) = (parameter("t")?, parameter("k")?);
    let decode = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text).ok();
    let (signed, signature) = token.rsplit_once('.')?;
    let (header, claims) = signed.split_once('.')?;
    let header: serde_json::Value = serde_json::from_slice(&decode(header)?).ok()?;
    if header.get("alg")?.as_str()? != "ES256" {
        return None;
    }
    let verifier = VerifyingKey::from_sec1_bytes(&decode(key)?).ok()?;
    verifier.verify(signed.as_bytes(), &Signature::from_slice(&decode(signature)?).ok()?).ok()?;
    let claims = serde_json::from_slice(&decode(claims)?).ok()?;
    Some(Sender { key: key.to_owned(), token: token.to_owned(), claims })
}
