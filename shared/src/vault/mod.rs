//! Other people's secrets at rest: AES-256-GCM (NIST SP 800-38D) in an envelope. Each secret has a data key of its own, made with it; that
//! key is wrapped by one of the installation's (`OFFSTAGE_VAULT_KEYS`), named by its version. To change the installation's key is to wrap
//! the data keys anew (`api vault rotate`): no secret is touched, and what the old key wrapped is read meanwhile.
//!
//! ```text
//!  1 format  1 version of the wrapping key  12 nonce  32 + 16 the wrapped data key  12 nonce  n + 16 the secret
//! ```
//!
//! What must stay true:
//! - every nonce is 96 random bits (SP 800-38D, section 8.2.2); a data key seals once, and a wrapping key far fewer than the 2^32 times
//!   that section 8.3 allows;
//! - both layers are bound to whose secret it is, and for whom: a row that is put in another's place, or whose version was changed, opens
//!   for nobody;
//! - a secret and a key are in no `Debug`, no error and no log; memory that held them is wiped.

#[cfg(test)]
mod tests;

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use secrecy::{ExposeSecret, SecretSlice, SecretString, zeroize::Zeroizing};

use crate::random;

/// The layout above.
const FORMAT: u8 = 1;

/// Bytes of a key, and of GCM's tag.
const KEY: usize = 32;
const TAG: usize = 16;

/// Where the parts begin.
const WRAP_NONCE: usize = 2;
const WRAPPED: usize = WRAP_NONCE + NONCE_LEN;
const DATA_NONCE: usize = WRAPPED + KEY + TAG;
const DATA: usize = DATA_NONCE + NONCE_LEN;

/// The most wrapping keys at a time.
const MOST_KEYS: usize = 8;

const BASE64: GeneralPurpose =
    GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));

/// Whose secret it is, and for whom: what seals are bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding<'a> {
    /// The product.
    pub tenant: i32,
    /// The end user.
    pub user: &'a str,
    /// The provider that the secret opens.
    pub provider: &'a str,
}

/// Why a seal does not open. Nothing of what is in it is told: whoever changed it should learn nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VaultError {
    /// Its wrapping key is not among the installation's.
    #[error("the key of version {0} is not in OFFSTAGE_VAULT_KEYS: put it back, behind the current one, and run `api vault rotate`")]
    NoKey(u8),
    /// It is no seal, was changed, or stands in another's place.
    #[error("what is kept is not what was sealed for this user and provider")]
    Broken,
}

/// The keys that wrap: the first one does, all of them open.
#[derive(Clone)]
pub struct VaultKeys(Vec<WrappingKey>);

#[derive(Clone)]
struct WrappingKey {
    version: u8,
    key: SecretSlice<u8>,
}

impl fmt::Debug for VaultKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| key.version)).finish()
    }
}

impl VaultKeys {
    /// Reads keys that are parted by spaces, the newest first: a version from 1 to 255, a colon, 32 random bytes in base64.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        let key = |text: &str| {
            let (version, key) = text.split_once(':')?;
            let version = version.parse().ok().filter(|version| *version > 0)?;
            let key = Zeroizing::new(BASE64.decode(key).ok()?);
            (key.len() == KEY).then(|| WrappingKey { version, key: SecretSlice::from(key.to_vec()) })
        };
        let keys: Vec<WrappingKey> = text.split_ascii_whitespace().map(key).collect::<Option<_>>()?;
        let distinct = keys.iter().enumerate().all(|(place, key)| keys.iter().take(place).all(|other| other.version != key.version));
        ((1..=MOST_KEYS).contains(&keys.len()) && distinct).then_some(Self(keys))
    }

    /// The version that wraps.
    #[must_use]
    pub fn current(&self) -> u8 {
        self.0.first().map_or(0, |key| key.version)
    }

    /// Seals a secret.
    ///
    /// # Errors
    /// [`VaultError::Broken`]: of none is known.
    pub fn seal(&self, binding: &Binding<'_>, secret: &SecretString) -> Result<Vec<u8>, VaultError> {
        let data_key = Zeroizing::new(random::bytes::<KEY>());
        let mut sealed = self.wrap(binding, data_key.as_slice())?;
        let nonce = random::bytes::<NONCE_LEN>();
        sealed.extend(nonce);
        let mut data = Zeroizing::new(secret.expose_secret().as_bytes().to_vec());
        let tag = cipher(data_key.as_slice())?
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(bound(Layer::Data, binding)), data.as_mut_slice())
            .map_err(|_| VaultError::Broken)?;
        sealed.extend_from_slice(&data);
        sealed.extend_from_slice(tag.as_ref());
        Ok(sealed)
    }

    /// Opens a seal.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn open(&self, binding: &Binding<'_>, sealed: &[u8]) -> Result<SecretString, VaultError> {
        let data_key = self.unwrap(binding, sealed)?;
        let nonce = sealed.get(DATA_NONCE..DATA).and_then(|nonce| nonce.try_into().ok()).ok_or(VaultError::Broken)?;
        let mut data = Zeroizing::new(sealed.get(DATA..).ok_or(VaultError::Broken)?.to_vec());
        let opened = cipher(&data_key)?
            .open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(bound(Layer::Data, binding)), data.as_mut_slice())
            .map_err(|_| VaultError::Broken)?;
        let text = std::str::from_utf8(opened).map_err(|_| VaultError::Broken)?;
        Ok(SecretString::from(text))
    }

    /// The seal with its data key wrapped by the current key; `None` where it is so already.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn rewrap(&self, binding: &Binding<'_>, sealed: &[u8]) -> Result<Option<Vec<u8>>, VaultError> {
        if sealed.get(1) == Some(&self.current()) {
            return Ok(None);
        }
        let data_key = self.unwrap(binding, sealed)?;
        let mut anew = self.wrap(binding, &data_key)?;
        anew.extend_from_slice(sealed.get(DATA_NONCE..).ok_or(VaultError::Broken)?);
        Ok(Some(anew))
    }

    /// Whether the key of its version is the one that wrapped a seal's data key. The secret itself stays closed.
    ///
    /// # Errors
    /// [`VaultError`]: it is not, or the seal was changed.
    pub fn unwraps(&self, binding: &Binding<'_>, sealed: &[u8]) -> Result<(), VaultError> {
        self.unwrap(binding, sealed).map(drop)
    }

    /// A seal up to the secret's nonce.
    fn wrap(&self, binding: &Binding<'_>, data_key: &[u8]) -> Result<Vec<u8>, VaultError> {
        let WrappingKey { version, key } = self.0.first().ok_or(VaultError::NoKey(0))?;
        let nonce = random::bytes::<NONCE_LEN>();
        let mut wrapped = Zeroizing::new(data_key.to_vec());
        let aad = Aad::from(bound(Layer::Key(*version), binding));
        let tag = cipher(key.expose_secret())?
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), aad, wrapped.as_mut_slice())
            .map_err(|_| VaultError::Broken)?;
        Ok([&[FORMAT, *version], nonce.as_slice(), wrapped.as_slice(), tag.as_ref()].concat())
    }

    fn unwrap(&self, binding: &Binding<'_>, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let [FORMAT, version, ..] = *sealed else { return Err(VaultError::Broken) };
        let wrapping = self.0.iter().find(|key| key.version == version).ok_or(VaultError::NoKey(version))?;
        let nonce = sealed.get(WRAP_NONCE..WRAPPED).and_then(|nonce| nonce.try_into().ok()).ok_or(VaultError::Broken)?;
        let mut data_key = Zeroizing::new(sealed.get(WRAPPED..DATA_NONCE).ok_or(VaultError::Broken)?.to_vec());
        let aad = Aad::from(bound(Layer::Key(version), binding));
        cipher(wrapping.key.expose_secret())?
            .open_in_place(Nonce::assume_unique_for_key(nonce), aad, data_key.as_mut_slice())
            .map_err(|_| VaultError::Broken)?;
        data_key.truncate(KEY);
        Ok(data_key)
    }
}

fn cipher(key: &[u8]) -> Result<LessSafeKey, VaultError> {
    UnboundKey::new(&AES_256_GCM, key).map(LessSafeKey::new).map_err(|_| VaultError::Broken)
}

/// Which of the two.
#[derive(Debug, Clone, Copy)]
enum Layer {
    /// The data key, wrapped by the key of this version.
    Key(u8),
    /// The secret.
    Data,
}

/// What a layer is bound to: names with their lengths before them, so that no two bindings read the same.
fn bound(layer: Layer, binding: &Binding<'_>) -> Vec<u8> {
    let Binding { tenant, user, provider } = binding;
    let mut bound = b"offstage.vault".to_vec();
    match layer {
        Layer::Key(version) => bound.extend([1, FORMAT, version]),
        Layer::Data => bound.extend([2, FORMAT, 0]),
    }
    bound.extend(tenant.to_be_bytes());
    for name in [user, provider] {
        bound.extend(u32::try_from(name.len()).unwrap_or(u32::MAX).to_be_bytes());
        bound.extend_from_slice(name.as_bytes());
    }
    bound
}
