//! Language tags (BCP 47: RFC 5646, section 2.1), as far as form goes: whether a subtag is registered is not asked, or each year's
//! new ones would be refused.

/// The longest tag, in characters: what RFC 5646, section 4.4.1, reckons for the longest without extensions.
const LONGEST: usize = 35;

/// A tag in its canonical case (RFC 5646, section 2.1.1): `zh-Hant-TW`; `None` for what is none.
#[must_use]
pub fn canonical(tag: &str) -> Option<String> {
    if tag.len() > LONGEST || !tag.is_ascii() {
        return None;
    }
    let subtags: Vec<&str> = tag.split('-').collect();
    if subtags.iter().any(|subtag| !(1..=8).contains(&subtag.len()) || !subtag.bytes().all(|byte| byte.is_ascii_alphanumeric())) {
        return None;
    }
    let mut rest = subtags.into_iter().peekable();
    let alphabetic = |subtag: &&str| subtag.bytes().all(|byte| byte.is_ascii_alphabetic());
    let language = rest.next().filter(alphabetic).filter(|subtag| subtag.len() >= 2)?;
    let mut out = vec![language.to_ascii_lowercase()];
    if language.len() <= 3 {
        // Extended language subtags, three at most.
        for _ in 0..3 {
            let Some(subtag) = rest.next_if(|subtag| subtag.len() == 3 && alphabetic(subtag)) else { break };
            out.push(subtag.to_ascii_lowercase());
        }
    }
    if let Some(script) = rest.next_if(|subtag| subtag.len() == 4 && alphabetic(subtag)) {
        let (first, others) = script.split_at(1);
        out.push(first.to_ascii_uppercase() + &others.to_ascii_lowercase());
    }
    let is_region = |subtag: &&str| {
        (subtag.len() == 2 && alphabetic(subtag)) || (subtag.len() == 3 && subtag.bytes().all(|byte| byte.is_ascii_digit()))
    };
    if let Some(region) = rest.next_if(is_region) {
        out.push(region.to_ascii_uppercase());
    }
    let is_variant =
        |subtag: &&str| subtag.len() >= 5 || (subtag.len() == 4 && subtag.bytes().next().is_some_and(|first| first.is_ascii_digit()));
    while let Some(variant) = rest.next_if(is_variant) {
        out.push(variant.to_ascii_lowercase());
    }
    // Extensions and private use: a singleton, and at least one subtag behind it.
    while let Some(singleton) = rest.next() {
        if singleton.len() != 1 {
            return None;
        }
        out.push(singleton.to_ascii_lowercase());
        let private = singleton.eq_ignore_ascii_case("x");
        let mut any = false;
        while let Some(subtag) = rest.next_if(|subtag| private || subtag.len() > 1) {
            out.push(subtag.to_ascii_lowercase());
            any = true;
        }
        if !any {
            return None;
        }
    }
    Some(out.join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_of_the_specification() {
        // RFC 5646, appendix A.
        for tag in [
            "de",
            "fr",
            "ja",
            "zh-Hant",
            "zh-Hans",
            "sr-Cyrl",
            "zh-cmn-Hans-CN",
            "zh-yue-HK",
            "sr-Latn-RS",
            "sl-rozaj",
            "sl-rozaj-biske",
            "de-CH-1901",
            "sl-IT-nedis",
            "hy-Latn-IT-arevela",
            "de-DE",
            "es-419",
            "de-CH-x-phonebk",
            "az-Arab-x-aze-derbend",
            "en-US-u-islamcal",
        ] {
            assert_eq!(canonical(&tag.to_ascii_uppercase()).as_deref(), Some(tag));
        }
    }

    #[test]
    fn nonsense() {
        for other in [
            "",
            "e",
            "x",
            "de-",
            "-de",
            "de--CH",
            "de_CH",
            "de-419-DE",
            "a-DE",
            "de-x",
            "en-u",
            "1a",
            "dé",
            "en-GB-a",
            "de DE",
            "x-whatever",
        ] {
            assert_eq!(canonical(other), None, "{other}");
        }
        assert_eq!(canonical(&format!("de-x-{}", "a-".repeat(20))), None);
    }
}
