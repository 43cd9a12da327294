//! The one place that asks for random: keys and tokens (nobody may guess them) and jitter (nobody must move in step).
//! All of it comes from the operating system's generator. A kernel that can't answer is a machine on which no key, no
//! claim and no TLS session can be made, so the process ends there; nothing a caller sends can bring that about.

/// `N` random bytes.
///
/// # Panics
/// Where the operating system has no random generator.
#[must_use]
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    #[expect(clippy::disallowed_methods, reason = "the one place that may")]
    let filled = getrandom::fill(&mut bytes);
    if let Err(error) = filled {
        panic!("the operating system gives no random numbers: {error}");
    }
    bytes
}

/// A random 64-bit number, of either sign: a claim's token, an advisory lock's name.
#[must_use]
pub fn token() -> i64 {
    i64::from_le_bytes(bytes())
}

/// A random fraction in `[0, 1)`, all 53 bits that an `f64` can hold: for jitter.
#[must_use]
pub fn fraction() -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit an f64 exactly")]
    let bits = (u64::from_le_bytes(bytes()) >> 11) as f64;
    bits / 9_007_199_254_740_992.0
}

/// `length` characters of `0-9A-Za-z`, each equally likely (5.95 bits apiece).
#[must_use]
pub fn base62(length: usize) -> String {
    const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut text = String::with_capacity(length);
    while text.len() < length {
        // 248 is the largest multiple of 62 in a byte: dropping what lies above keeps the remainder unbiased.
        let fresh = bytes::<64>().into_iter().filter(|byte| *byte < 248).take(length - text.len());
        text.extend(fresh.filter_map(|byte| ALPHABET.get(usize::from(byte % 62))).map(|byte| char::from(*byte)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base62_uses_its_whole_alphabet_evenly() {
        let text = base62(62_000);
        assert_eq!(text.len(), 62_000);
        let mut counts = std::collections::BTreeMap::new();
        for character in text.chars() {
            *counts.entry(character).or_insert(0_u32) += 1;
        }
        assert_eq!(counts.len(), 62);
        // Expected 1,000 each, standard deviation 31: eight deviations is one run in 10^13.
        assert!(counts.values().all(|count| (750..1_250).contains(count)), "{counts:?}");
    }

    #[test]
    fn fractions_stay_below_one_and_reach_both_halves() {
        let fractions: Vec<f64> = (0..1_000).map(|_| fraction()).collect();
        assert!(fractions.iter().all(|fraction| (0.0..1.0).contains(fraction)));
        assert!(fractions.iter().any(|fraction| *fraction < 0.5));
        assert!(fractions.iter().any(|fraction| *fraction >= 0.5));
    }

    #[test]
    fn tokens_differ() {
        assert_ne!(token(), token());
    }
}
