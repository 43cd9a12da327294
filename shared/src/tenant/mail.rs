//! `[mail]` of a manifest: whom a product's mail is from, over which server it goes, by which key it is signed.
//!
//! What must stay true: passwords and keys stand in variables of the worker that the manifest names, never in the manifest; a job may say
//! whom its mail is from, but not in the name of another domain.

use serde::{Deserialize, Serialize};

use crate::mail::{DKIM_VARIABLE, HOOK_VARIABLE, SERVER_VARIABLE};

/// The longest name of a sender, in characters.
const LONGEST_NAME: usize = 255;

/// How a product's mail is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MailDeclaration {
    /// The worker's variable that holds the server's URL, `OFFSTAGE_SMTP_…`.
    pub server_env: String,
    /// Whom mail is from, unless a job says otherwise.
    pub from: Sender,
    /// How it is signed; by the server, or not at all, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dkim: Option<DkimDeclaration>,
    /// The API's variable that holds the key of signed hooks, `OFFSTAGE_HOOK_…`; there are none without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook_key_env: Option<String>,
    /// Whom inquiries are mailed to; none are taken without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inquiries_to: Option<Sender>,
}

/// Whom mail is from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sender {
    /// The address.
    pub email: String,
    /// The name that is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Whose signature mail bears (DKIM, RFC 6376).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DkimDeclaration {
    /// The worker's variable that holds the private key, `OFFSTAGE_DKIM_…`.
    pub key_env: String,
    /// The domain that answers for it.
    pub domain: String,
    /// Under which name the public key stands in the domain's zone.
    pub selector: String,
}

impl MailDeclaration {
    /// What is wrong with it, by its field.
    pub(super) fn faults(&self) -> Vec<(&'static [&'static str], String)> {
        let mut faults: Vec<(&'static [&'static str], String)> = Vec::new();
        let mut variable = |field: &'static [&'static str], name: &str, prefix: &str| {
            let legal = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
            if !name.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty() && rest.len() <= 100 && rest.bytes().all(legal)) {
                // Not repeated: it may be the secret itself.
                let detail =
                    format!("must name a variable, {prefix} and then capital letters, digits or `_`; write for example \"{prefix}MAIN\"");
                faults.push((field, detail));
            }
        };
        variable(&["server_env"], &self.server_env, SERVER_VARIABLE);
        if let Some(dkim) = &self.dkim {
            variable(&["dkim", "key_env"], &dkim.key_env, DKIM_VARIABLE);
        }
        if let Some(name) = &self.hook_key_env {
            variable(&["hook_key_env"], name, HOOK_VARIABLE);
        }
        if crate::mail::address(&self.from.email).is_none() {
            faults.push((&["from", "email"], "is not one plain address; write for example \"no-reply@example.com\"".to_owned()));
        }
        if self.inquiries_to.as_ref().is_some_and(|to| crate::mail::address(&to.email).is_none()) {
            faults.push((&["inquiries_to", "email"], "is not one plain address; write for example \"sales@example.com\"".to_owned()));
        }
        if self.from.name.as_ref().is_some_and(|name| name.chars().count() > LONGEST_NAME || name.chars().any(char::is_control)) {
            faults.push((&["from", "name"], format!("must have at most {LONGEST_NAME} characters on one line")));
        }
        if let Some(dkim) = &self.dkim {
            for (field, name) in [(&["dkim", "domain"] as &'static [_], &dkim.domain), (&["dkim", "selector"], &dkim.selector)] {
                if !is_dns_name(name) {
                    faults.push((field, format!("`{name}` is not a name of the DNS, in ASCII")));
                }
            }
        }
        faults
    }

    /// Whether mail may be from an address: one of the domain that the manifest names.
    #[must_use]
    pub fn may_be_from(&self, address: &str) -> bool {
        let domain = |address: &str| crate::mail::address(address).map(|(_, domain)| domain);
        domain(address).is_some_and(|asked| domain(&self.from.email) == Some(asked))
    }
}

fn is_dns_name(name: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty() && label.len() <= 63 && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    name.len() <= 253 && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mail() -> MailDeclaration {
        MailDeclaration {
            server_env: "OFFSTAGE_SMTP_MAIN".into(),
            from: Sender { email: "no-reply@acme.example".into(), name: Some("Acme".into()) },
            dkim: Some(DkimDeclaration {
                key_env: "OFFSTAGE_DKIM_MAIN".into(),
                domain: "acme.example".into(),
                selector: "offstage".into(),
            }),
            hook_key_env: Some("OFFSTAGE_HOOK_MAIN".into()),
            inquiries_to: None,
        }
    }

    #[test]
    fn nonsense_is_named_and_secrets_are_not_repeated() {
        assert_eq!(mail().faults(), []);
        let secret = "smtps://user:secret@mail.example.com";
        let wrong = MailDeclaration {
            server_env: secret.into(),
            from: Sender { email: "Acme <no-reply@acme.example>".into(), name: Some("a\nb".into()) },
            dkim: Some(DkimDeclaration { key_env: "OFFSTAGE_DATABASE_URL".into(), domain: "a b".into(), selector: String::new() }),
            hook_key_env: Some("OFFSTAGE_SMTP_MAIN".into()),
            inquiries_to: None,
        };
        let faults = wrong.faults();
        let fields: Vec<_> = faults.iter().map(|(field, _)| field.join(".")).collect();
        assert_eq!(fields, ["server_env", "dkim.key_env", "hook_key_env", "from.email", "from.name", "dkim.domain", "dkim.selector"]);
        assert!(faults.iter().all(|(_, detail)| !detail.contains("secret")));
    }

    #[test]
    fn mail_is_from_the_products_domain() {
        assert!(mail().may_be_from("support@ACME.example"));
        for other in ["support@sub.acme.example", "support@acme.example.evil.example", "acme.example", "", "a@b@acme.example"] {
            assert!(!mail().may_be_from(other), "{other}");
        }
    }
}
