//! A recipient as the ledger knows it: a hash of the address under the installation's key, and what one click in a mail says of it.
//!
//! What must stay true: no address is kept in the clear, and the key is in no row: a copy of the database can't be tried against a list of
//! addresses; the same address of two products has two hashes; a token names its recipient and category by itself, for as long as mails are
//! kept, and nobody can make one without the key.

use std::fmt;

use aws_lc_rs::hmac;
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};

/// The fewest and the most bytes of a key.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 32..=64;

/// The longest name of a category, in bytes.
const LONGEST_CATEGORY: usize = 63;

/// The form of tokens; another form gets another number.
const FORM: u8 = 1;

/// What of a signature a token carries, in bytes: nobody has the time to try 2^128.
const SIGNATURE: usize = 16;

/// The longest token, in characters.
const LONGEST_TOKEN: usize = 200;

/// The key by which addresses are hashed and tokens signed. It is made once: under another one no suppression is found again.
#[derive(Clone)]
pub struct RecipientKey {
    hashing: hmac::Key,
    signing: hmac::Key,
}

impl fmt::Debug for RecipientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecipientKey")
    }
}

/// The hash of an address for a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RecipientHash(pub [u8; 32]);

/// What a token says: this recipient wants no more mail of this category.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsubscription {
    /// Whose product.
    pub tenant: i32,
    /// Who.
    pub recipient: RecipientHash,
    /// Of what.
    pub category: String,
}

/// Whether a text names a category of mail: lower-case letters, digits, `_`, `-` and `.`, beginning with a letter, at most 63.
#[must_use]
pub fn is_category(text: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-' | b'.');
    text.len() <= LONGEST_CATEGORY && text.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase()) && text.bytes().all(legal)
}

impl RecipientKey {
    /// Reads a key: 32 to 64 random bytes in base64.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        let bytes = BASE64_STANDARD.decode(text).ok().filter(|bytes| KEY_BYTES.contains(&bytes.len()))?;
        let master = hmac::Key::new(hmac::HMAC_SHA256, &bytes);
        // One key a purpose, so that neither's output is of use for the other.
        let derived = |purpose: &[u8]| hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&master, purpose).as_ref());
        Some(Self { hashing: derived(b"offstage recipient hash"), signing: derived(b"offstage unsubscribe token") })
    }

    /// The hash of an address for a product; `None` for what is no address. Case does not count, on either side of the `@`: no provider that
    /// is in use tells mailboxes apart by it.
    #[must_use]
    pub fn hash(&self, tenant: i32, address: &str) -> Option<RecipientHash> {
        let (user, domain) = super::address(address)?;
        let mut context = hmac::Context::with_key(&self.hashing);
        context.update(&tenant.to_be_bytes());
        context.update(user.to_ascii_lowercase().as_bytes());
        context.update(b"@");
        context.update(domain.as_bytes());
        Some(RecipientHash(context.sign().as_ref().try_into().ok()?))
    }

    /// The token by which a recipient unsubscribes: letters, digits, `-` and `_`.
    #[must_use]
    pub fn token(&self, unsubscription: &Unsubscription) -> String {
        let Unsubscription { tenant, recipient, category } = unsubscription;
        let mut bytes = vec![FORM];
        bytes.extend(tenant.to_be_bytes());
        bytes.extend(recipient.0);
        bytes.extend(category.as_bytes());
        let signature = hmac::sign(&self.signing, &bytes);
        bytes.extend(signature.as_ref().iter().take(SIGNATURE));
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    /// What a token says; `None` for one that this installation did not make.
    #[must_use]
    pub fn read_token(&self, text: &str) -> Option<Unsubscription> {
        let bytes = (text.len() <= LONGEST_TOKEN).then(|| BASE64_URL_SAFE_NO_PAD.decode(text).ok())??;
        let (said, signature) = bytes.split_at_checked(bytes.len().checked_sub(SIGNATURE)?)?;
        let expected = hmac::sign(&self.signing, said);
        aws_lc_rs::constant_time::verify_slices_are_equal(expected.as_ref().get(..SIGNATURE)?, signature).ok()?;
        let (FORM, rest) = said.split_first().map(|(form, rest)| (*form, rest))? else { return None };
        let (tenant, rest) = rest.split_first_chunk::<4>()?;
        let (recipient, category) = rest.split_first_chunk::<32>()?;
        let category = std::str::from_utf8(category).ok().filter(|category| is_category(category))?.to_owned();
        Some(Unsubscription { tenant: i32::from_be_bytes(*tenant), recipient: RecipientHash(*recipient), category })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> RecipientKey {
        RecipientKey::read(&BASE64_STANDARD.encode([byte; 32])).unwrap()
    }

    #[test]
    fn one_mailbox_has_one_hash_for_a_product_and_a_key() {
        let hash = |tenant, address| key(1).hash(tenant, address).unwrap();
        let ada = hash(1, "ada@example.com");
        assert_eq!(hash(1, "Ada@EXAMPLE.com"), ada);
        assert_eq!(hash(1, "a@bücher.example"), hash(1, "a@xn--bcher-kva.example"));
        assert_ne!(hash(2, "ada@example.com"), ada);
        assert_ne!(hash(1, "ada@example.org"), ada);
        assert_ne!(key(2).hash(1, "ada@example.com").unwrap(), ada);
        for none in ["", "ada", "ada@", "ada@127.0.0.1", "a b@example.com"] {
            assert_eq!(key(1).hash(1, none), None, "{none}");
        }
    }

    #[test]
    fn tokens_say_what_they_were_made_for_and_no_other_is_believed() {
        let said = Unsubscription { tenant: 7, recipient: key(1).hash(7, "ada@example.com").unwrap(), category: "digest".into() };
        let token = key(1).token(&said);
        assert!(token.len() < 120 && !token.contains("ada"), "{token}");
        assert_eq!(key(1).read_token(&token), Some(said.clone()));
        assert_eq!(key(2).read_token(&token), None);
        for at in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            // The last character has bits that say nothing.
            assert!(key(1).read_token(&changed).is_none_or(|read| read == said && at == token.len() - 1), "{changed}");
        }
        for wrong in ["", "A", &token[1..], &token[..token.len() - 1], &format!("{token}AAAA"), &"A".repeat(10_000)] {
            assert_eq!(key(1).read_token(wrong), None, "{wrong}");
        }
        let longest = Unsubscription { category: "a".repeat(LONGEST_CATEGORY), ..said };
        assert_eq!(key(1).read_token(&key(1).token(&longest)), Some(longest));
    }

    #[test]
    fn keys_are_read_to_the_letter_and_never_shown() {
        for wrong in ["", "abc", &BASE64_STANDARD.encode([1; 31]), &BASE64_STANDARD.encode([1; 65]), "not base64!"] {
            assert!(RecipientKey::read(wrong).is_none(), "{wrong}");
        }
        assert_eq!(format!("{:?}", key(1)), "RecipientKey");
        assert!(is_category("one_time-code.v2") && !is_category("") && !is_category("Digest") && !is_category("1x") && !is_category("a b"));
    }
}
