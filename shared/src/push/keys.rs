//! The keys by which push services know us (RFC 8292): P-256, one that new subscriptions are made with, and those before it.

use std::fmt;

use aws_lc_rs::{
    agreement::{ECDH_P256, PrivateKey},
    digest,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

use super::PUBLIC_KEY;

/// The most keys at a time.
const MOST_KEYS: usize = 8;

/// What a subscription is kept with, to know later by which key it is pushed to: 8 bytes of the public key's SHA-256, in base64url.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(String);

impl KeyId {
    fn of(public: &[u8]) -> Self {
        let digest = digest::digest(&digest::SHA256, public);
        Self(BASE64_URL_SAFE_NO_PAD.encode(digest.as_ref().get(..8).unwrap_or_default()))
    }

    /// As it was kept.
    #[must_use]
    pub fn from_kept(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// As it is kept.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One key pair. `Debug` shows its id.
pub struct VapidKey {
    id: KeyId,
    public: [u8; PUBLIC_KEY],
    pair: EcdsaKeyPair,
}

impl fmt::Debug for VapidKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VapidKey({})", self.id.as_str())
    }
}

impl VapidKey {
    /// Reads a private key: the 32 bytes of its number in base64url, as every library of web push writes it.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        let number = BASE64_URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok().filter(|number| number.len() == 32)?;
        let private = PrivateKey::from_private_key(&ECDH_P256, &number).ok()?;
        let public: [u8; PUBLIC_KEY] = private.compute_public_key().ok()?.as_ref().try_into().ok()?;
        let pair = EcdsaKeyPair::from_private_key_and_public_key(&ECDSA_P256_SHA256_FIXED_SIGNING, &number, &public).ok()?;
        Some(Self { id: KeyId::of(&public), public, pair })
    }

    /// By what a subscription remembers it.
    #[must_use]
    pub fn id(&self) -> &KeyId {
        &self.id
    }

    /// The public key as browsers want it (`applicationServerKey`) and as it goes into the header (`k`).
    #[must_use]
    pub fn public(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(self.public)
    }

    /// ES256 over a text: both numbers, 64 bytes (RFC 7518, section 3.4). `None` when the machine has no randomness.
    #[must_use]
    pub fn sign(&self, text: &[u8]) -> Option<[u8; 64]> {
        self.pair.sign(&SystemRandom::new(), text).ok()?.as_ref().try_into().ok()
    }
}

/// An installation's keys, the current one first.
#[derive(Debug)]
pub struct VapidKeys {
    current: VapidKey,
    before: Vec<VapidKey>,
}

impl VapidKeys {
    /// Reads keys that are parted by spaces, the current one first. To rotate: put a new key before the old one, and drop the old one when
    /// no subscription is kept with it any more.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        let mut keys = text.split_ascii_whitespace().map(VapidKey::read).collect::<Option<Vec<_>>>()?.into_iter();
        let (current, before) = (keys.next()?, keys.collect::<Vec<_>>());
        (before.len() < MOST_KEYS).then_some(Self { current, before })
    }

    /// The key that new subscriptions are made with.
    #[must_use]
    pub fn current(&self) -> &VapidKey {
        &self.current
    }

    /// The key of a public key in base64url, as a page hands it to its browser.
    #[must_use]
    pub fn find_public(&self, public: &str) -> Option<&VapidKey> {
        let public = public.trim_end_matches('=');
        std::iter::once(&self.current).chain(&self.before).find(|key| key.public() == public)
    }

    /// The key that a subscription was made with, while it is still here.
    #[must_use]
    pub fn find(&self, id: &KeyId) -> Option<&VapidKey> {
        std::iter::once(&self.current).chain(&self.before).find(|key| key.id == *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The key pair of the user agent in RFC 8291, section 5: a public key that somebody else computed.
    const PRIVATE: &str = "q1dXpw3UpT5VOmu_cf_v6ih07Aems3njxI-JWgLcM94";
    const PUBLIC: &str = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";
    const OTHER: &str = "yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw";

    #[test]
    fn keys_take_each_others_place_and_old_ones_are_still_found() {
        let before = VapidKeys::read(PRIVATE).unwrap();
        let id = before.current().id().clone();
        assert_eq!(before.current().public(), PUBLIC);
        let after = VapidKeys::read(&format!("{OTHER}  {PRIVATE}=")).unwrap();
        assert_ne!(*after.current().id(), id);
        assert_eq!(after.find(&KeyId::from_kept(id.as_str())).unwrap().public(), PUBLIC);
        assert!(VapidKeys::read(OTHER).unwrap().find(&id).is_none());
        assert_eq!(after.find_public(&format!("{PUBLIC}=")).unwrap().id(), &id);
        assert!(after.find_public(PRIVATE).is_none());
    }

    #[test]
    fn keys_are_read_to_the_letter_and_never_shown() {
        let zero = "A".repeat(43);
        let too_large = "_".repeat(42) + "8";
        for wrong in ["", "abc", PUBLIC, &zero, &too_large, &format!("{PRIVATE} x"), &format!("{PRIVATE} ").repeat(9)] {
            assert!(VapidKeys::read(wrong).is_none(), "{wrong}");
        }
        let shown = format!("{:?}", VapidKeys::read(PRIVATE).unwrap());
        assert!(!shown.contains("q1dX") && shown.len() < 80, "{shown}");
    }
}
