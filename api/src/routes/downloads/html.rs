//! The pages themselves: small, without scripts, pictures or anything from elsewhere; readable with any browser, by any reader
//! of screens, in the light and in the dark.

use std::{fmt::Write, sync::LazyLock};

use aws_lc_rs::digest;
use axum::http::HeaderValue;
use base64::{Engine, engine::general_purpose::STANDARD};
use chrono::{DateTime, Utc};

use super::find::FoundPage;

const STYLE: &str = include_str!("page.css");

/// Nothing but our own style, and nobody's frame (<https://www.w3.org/TR/CSP3/>).
pub static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| policy("'none'"));

/// The same for a page with a button that asks this very place for something.
pub static FORM_POLICY: LazyLock<HeaderValue> = LazyLock::new(|| policy("'self'"));

fn policy(form_action: &str) -> HeaderValue {
    let style = STANDARD.encode(digest::digest(&digest::SHA256, STYLE.as_bytes()));
    let policy =
        format!("default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; form-action {form_action}; frame-ancestors 'none'");
    // Base64 is visible ASCII; without a policy of its own the page would only lose its style to the stricter general one.
    HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"))
}

/// The page of a file that is there.
pub fn file(token: &str, found: &FoundPage, now: DateTime<Utc>) -> String {
    let name = escape(&found.file_name);
    let mut sha256 = String::with_capacity(64);
    for byte in &found.sha256 {
        // Writing to a string can't fail.
        _ = write!(sha256, "{byte:02x}");
    }
    let main = format!(
        "<p class=\"product\">{product}</p>\n\
         <h1><bdi>{name}</bdi></h1>\n\
         <p>Your file is ready to download.</p>\n\
         <p><a class=\"button\" href=\"{token}/file\" rel=\"nofollow\">Download<span class=\"aside\"> ({size})</span></a></p>\n\
         <dl>\n<div><dt>Size</dt><dd>{exact}</dd></div>\n\
         <div><dt>Made</dt><dd>{made}</dd></div>\n\
         <div><dt>Available until</dt><dd>{until} ({left})</dd></div>\n\
         <div><dt>SHA-256</dt><dd><code>{sha256}</code></dd></div>\n</dl>\n\
         <p class=\"note\">Whoever has the address of this page can download the file. Pass it on with care.</p>",
        product = escape(&found.product),
        size = size(found.bytes),
        exact = exact_size(found.bytes),
        made = time(found.completed_at),
        until = time(found.expires_at),
        left = left(found.expires_at, now),
    );
    document(&found.file_name, &main)
}

/// The page of a file that has been deleted.
pub fn gone(found: &FoundPage) -> String {
    let why = match found.removed_at {
        Some(removed_at) => format!("It was deleted by its owner on {}.", time(removed_at)),
        None => format!("It was kept until {}.", time(found.expires_at)),
    };
    let main = format!(
        "<p class=\"product\">{product}</p>\n<h1>This file is not available any more</h1>\n<p><bdi>{name}</bdi>: {why}</p>\n\
         <p>If you still need it, ask for the export again where you asked for this one.</p>",
        product = escape(&found.product),
        name = escape(&found.file_name),
    );
    document("This file is not available any more", &main)
}

/// The page of an address that leads nowhere.
pub fn unknown() -> String {
    let main = "<h1>There is nothing at this address</h1>\n\
                <p>Check that it is complete: mail programs sometimes break long addresses. It may also have been taken back by \
                whoever gave it to you; then ask for another.</p>";
    document("There is nothing at this address", main)
}

/// A page.
pub fn document(title: &str, main: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"robots\" content=\"noindex, nofollow, noarchive\">\n<meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{main}\n</main>\n</body>\n</html>\n",
        title = escape(title),
    )
}

/// For people and for programs.
fn time(time: DateTime<Utc>) -> String {
    format!("<time datetime=\"{}\">{}</time>", time.format("%FT%TZ"), time.format("%-d %B %Y, %H:%M UTC"))
}

/// How long is left, in words that are never too generous.
fn left(until: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let left = until - now;
    let count = |number: i64, unit: &str| format!("{number} {unit}{} left", if number == 1 { "" } else { "s" });
    match (left.num_days(), left.num_hours()) {
        (days @ 1.., _) => count(days, "day"),
        (_, hours @ 1..) => count(hours, "hour"),
        _ => count(left.num_minutes().max(0), "minute"),
    }
}

/// Three digits at most, in steps of a thousand as storage is sold.
fn size(bytes: i64) -> String {
    if bytes < 1_000 {
        return if bytes == 1 { "1 byte".to_owned() } else { format!("{bytes} bytes") };
    }
    let mut size = bytes as f64 / 1_000.0;
    let mut unit = "kB";
    for larger in ["MB", "GB", "TB"] {
        if size < 999.5 {
            break;
        }
        size /= 1_000.0;
        unit = larger;
    }
    if size < 9.95 { format!("{size:.1} {unit}") } else { format!("{size:.0} {unit}") }
}

fn exact_size(bytes: i64) -> String {
    if bytes < 1_000 {
        return size(bytes);
    }
    let digits = bytes.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{} ({grouped} bytes)", size(bytes))
}

/// For text and for quoted attributes.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    fn found(name: &str) -> FoundPage {
        let now = DateTime::from_timestamp(1_767_225_600, 0).unwrap();
        FoundPage {
            product: "promptlockr".into(),
            object_key: "1/secret".into(),
            file_name: name.into(),
            content_type: "text/csv".into(),
            bytes: 1_234_567,
            sha256: vec![0xab; 32],
            completed_at: now,
            expires_at: now + TimeDelta::days(7),
            removed_at: None,
            deleted_at: None,
        }
    }

    #[test]
    fn a_page_shows_the_file_and_no_more() {
        let found = found("<b onload=\"x\">'&.csv");
        let page = file("TOKEN", &found, found.completed_at);
        assert!(page.contains("<bdi>&lt;b onload=&quot;x&quot;&gt;&#39;&amp;.csv</bdi>") && !page.contains("<b onload"), "{page}");
        assert!(
            page.contains("href=\"TOKEN/file\"") && page.contains("1.2 MB (1,234,567 bytes)") && page.contains("(7 days left)"),
            "{page}"
        );
        assert!(page.contains("8 January 2026, 00:00 UTC") && page.contains(&"ab".repeat(32)), "{page}");
        assert!(!page.contains("secret") && !page.contains("<script"), "{page}");
        assert!(gone(&found).contains("It was kept until <time datetime=\"2026-01-08T00:00:00Z\">"));
        assert!(!gone(&found).contains("href"));
    }

    #[test]
    fn sizes_and_times_read_well() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1, "1 byte"),
            (999, "999 bytes"),
            (1_000, "1.0 kB"),
            (9_949, "9.9 kB"),
            (9_960, "10 kB"),
            (999_499, "999 kB"),
            (999_500, "1.0 MB"),
            (5_000_000_000, "5.0 GB"),
            (2_000_000_000_000_000, "2000 TB"),
        ] {
            assert_eq!(size(bytes), text, "{bytes}");
        }
        let now = DateTime::<Utc>::UNIX_EPOCH;
        let left = |seconds| left(now + TimeDelta::seconds(seconds), now);
        assert_eq!(
            [left(7 * 86_400), left(86_400), left(86_399), left(3_600), left(61), left(5), left(-5)],
            ["7 days left", "1 day left", "23 hours left", "1 hour left", "1 minute left", "0 minutes left", "0 minutes left"]
        );
    }
}
