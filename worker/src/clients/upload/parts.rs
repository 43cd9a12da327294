//! How large the parts of an upload are.
//!
//! S3 takes at most 10,000 parts of 5 MiB to 5 GiB (all but the last) and 5 TiB in all
//! (<https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html>). How long an export gets is not known beforehand, so parts
//! begin small and double every thousand:
//!
//! | object | a part | held at a time |
//! |---|---|---|
//! | up to 8 GiB | 8 MiB | 24 MiB |
//! | up to 24 GiB | 16 MiB | 48 MiB |
//! | up to 55 GiB | 32 MiB | 96 MiB |
//! | up to 117 GiB | 64 MiB | 192 MiB |
//! | … to 5 TiB | 4 GiB | 8 GiB: one travels, one fills |

/// The first parts' size.
pub(super) const FIRST: usize = 8 * 1024 * 1024;

/// From here on a part travels alone.
pub(super) const LARGE: usize = 64 * 1024 * 1024;

/// The most parts.
pub(super) const MOST: i32 = 10_000;

/// By how much a part usually exceeds its size: the rows that were under way when it was full.
pub(super) const SLACK: usize = 1024 * 1024;

/// Parts between two doublings.
const STRIDE: i32 = 1_000;

/// The least bytes of a part by its number, from 1.
pub(super) fn size(number: i32) -> usize {
    let doublings = u32::try_from((number - 1) / STRIDE).unwrap_or(0).min(9);
    FIRST << doublings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_thousand_parts_hold_the_largest_object() {
        assert_eq!((size(0), size(1), size(1_000), size(1_001), size(2_001)), (FIRST, FIRST, FIRST, 2 * FIRST, 4 * FIRST));
        let total: u64 = (1..=MOST).map(|number| size(number) as u64).sum();
        assert!(total >= 5 << 40, "{total}");
        assert!((1..=MOST).all(|number| size(number) <= 5 << 30));
        let after = |parts: i32| (1..=parts).map(|number| size(number) as u64).sum::<u64>() >> 30;
        assert_eq!([1_000, 2_000, 3_000, 4_000].map(after), [7, 23, 54, 117]);
    }
}
