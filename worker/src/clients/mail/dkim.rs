//! Signing a mail: DKIM (RFC 6376) with relaxed canonicalisation of headers and body.
//!
//! What must stay true: what one-click unsubscribing stands on is signed (RFC 8058, section 4), and so is whom the mail is from, also
//! against a second such header that somebody adds on the way.

use base64::{Engine, prelude::BASE64_STANDARD};
use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use shared::mail::DkimKey;

/// The headers that are signed where they are there (RFC 6376, section 5.4.1, and RFC 8058).
const SIGNED: [&str; 11] = [
    "from",
    "reply-to",
    "subject",
    "date",
    "to",
    "message-id",
    "mime-version",
    "content-type",
    "content-transfer-encoding",
    "list-unsubscribe",
    "list-unsubscribe-post",
];

/// Named once more than they are there: one that is added breaks the signature (RFC 6376, section 8.15).
const OVERSIGNED: [&str; 4] = ["from", "subject", "to", "reply-to"];

/// Whose signature it is.
pub(super) struct Signing<'a> {
    pub(super) domain: &'a str,
    pub(super) selector: &'a str,
    pub(super) key: &'a DkimKey,
    pub(super) at: DateTime<Utc>,
}

impl Signing<'_> {
    /// Whether domain and selector are names, and nothing that could end the header.
    pub(super) fn is_well_formed(&self) -> bool {
        let is_name = |name: &str| {
            let label = |label: &str| !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
            name.len() <= 253 && name.split('.').all(label)
        };
        is_name(self.domain) && is_name(self.selector)
    }
}

/// The header `DKIM-Signature`, with its line's end, to be put before all others.
pub(super) fn header(mail: &[u8], signing: &Signing<'_>) -> Option<Vec<u8>> {
    let end = mail.windows(4).position(|window| window == b"\r\n\r\n")?;
    // Headers are ASCII: lettre encodes the rest.
    let headers = std::str::from_utf8(mail.get(..end + 2)?).ok()?;
    let headers = fields(headers);
    let body = BASE64_STANDARD.encode(Sha256::digest(relaxed_body(mail.get(end + 4..)?)));

    let mut names = Vec::new();
    let mut signed = String::new();
    for name in SIGNED {
        // Each is there once at most, as lettre writes it.
        if let Some((_, value)) = headers.iter().find(|(found, _)| found == name) {
            names.push(name);
            signed.push_str(&format_field(name, value));
        }
    }
    names.extend(OVERSIGNED);
    let Signing { domain, selector, key, at } = signing;
    let value = format!(
        "v=1; a={}; c=relaxed/relaxed; d={domain}; s={selector};\r\n\tt={}; h={};\r\n\tbh={body};\r\n\tb=",
        key.algorithm(),
        at.timestamp(),
        names.join(":\r\n\t"),
    );
    // The signature's own header, without the signature and without a line's end (RFC 6376, section 3.7).
    signed.push_str(format_field("dkim-signature", &value).trim_end_matches("\r\n"));
    let signature = BASE64_STANDARD.encode(key.sign(signed.as_bytes())?);
    let mut header = format!("DKIM-Signature: {value}");
    for (index, letter) in signature.char_indices() {
        if index > 0 && index.is_multiple_of(70) {
            header.push_str("\r\n\t");
        }
        header.push(letter);
    }
    header.push_str("\r\n");
    Some(header.into_bytes())
}

/// Names in lower case, and values as they stand, folded.
fn fields(headers: &str) -> Vec<(String, String)> {
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in headers.split_inclusive("\r\n") {
        match (line.starts_with([' ', '\t']), fields.last_mut()) {
            (true, Some((_, value))) => value.push_str(line),
            _ => {
                if let Some((name, value)) = line.split_once(':') {
                    fields.push((name.trim().to_ascii_lowercase(), value.to_owned()));
                }
            }
        }
    }
    fields
}

/// RFC 6376, section 3.4.2: one line, white space once.
fn format_field(name: &str, value: &str) -> String {
    let words: Vec<_> = value.split([' ', '\t', '\r', '\n']).filter(|word| !word.is_empty()).collect();
    format!("{name}:{}\r\n", words.join(" "))
}

/// RFC 6376, section 3.4.4: white space once and none at a line's end; no empty lines at the end.
fn relaxed_body(body: &[u8]) -> Vec<u8> {
    let mut relaxed = Vec::with_capacity(body.len());
    let mut empty = 0;
    let mut lines = body.split(|byte| *byte == b'\n').peekable();
    while let Some(line) = lines.next() {
        if lines.peek().is_none() && line.is_empty() {
            // Behind the last line's end there is no line.
            break;
        }
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let mut text = Vec::with_capacity(line.len());
        for byte in line {
            match byte {
                b' ' | b'\t' if text.last() == Some(&b' ') => {}
                b' ' | b'\t' => text.push(b' '),
                byte => text.push(*byte),
            }
        }
        if text.last() == Some(&b' ') {
            text.pop();
        }
        if text.is_empty() {
            empty += 1;
            continue;
        }
        for _ in 0..std::mem::take(&mut empty) {
            relaxed.extend_from_slice(b"\r\n");
        }
        relaxed.extend_from_slice(&text);
        relaxed.extend_from_slice(b"\r\n");
    }
    relaxed
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6376, section 3.4.5.
    #[test]
    fn the_rfcs_examples_of_canonical_forms() {
        let headers = fields("A: X\r\nB : Y\t\r\n\tZ  \r\n");
        let canonical: String = headers.iter().map(|(name, value)| format_field(name, value)).collect();
        assert_eq!(canonical, "a:X\r\nb:Y Z\r\n");
        assert_eq!(relaxed_body(b" C \r\nD \t E\r\n\r\n\r\n"), b" C\r\nD E\r\n");
        assert_eq!(relaxed_body(b""), b"");
        assert_eq!(relaxed_body(b"\r\n\r\n"), b"");
        assert_eq!(relaxed_body(b"a\r\n\r\nb"), b"a\r\n\r\nb\r\n");
    }
}
