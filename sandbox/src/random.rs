//! Passwords and unguessable names. Real ones: a sandbox may run for days on a machine that others use too.

use crate::error::{Doing, Result};

/// Letters and digits only, so that a secret needs no escaping in a URL, in SQL or in a shell.
const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// `length` characters from letters and digits, each equally likely.
pub(crate) fn characters(length: usize) -> Result<String> {
    let mut text = String::with_capacity(length);
    let mut bytes = [0_u8; 64];
    while text.len() < length {
        fill(&mut bytes)?;
        // 248 is the largest multiple of 62 in a byte: rejecting the rest keeps the letters equally likely.
        let usable = bytes.iter().filter(|byte| **byte < 248);
        text.extend(
            usable.filter_map(|byte| ALPHABET.get(usize::from(*byte % 62))).map(|byte| char::from(*byte)).take(length - text.len()),
        );
    }
    Ok(text)
}

/// `N` random bytes.
pub(crate) fn bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    fill(&mut bytes)?;
    Ok(bytes)
}

#[expect(clippy::disallowed_methods, reason = "the sandbox depends on no other crate of ours: this is its one place for randomness")]
fn fill(bytes: &mut [u8]) -> Result<()> {
    getrandom::fill(bytes).map_err(std::io::Error::from).doing(|| "get random bytes from the operating system".to_owned())
}

#[cfg(test)]
mod tests {
    #[test]
    fn characters_have_the_asked_length_and_differ() {
        let one = super::characters(40).unwrap();
        let other = super::characters(40).unwrap();
        assert_eq!(one.len(), 40);
        assert!(one.chars().all(|letter| letter.is_ascii_alphanumeric()));
        assert_ne!(one, other);
    }
}
