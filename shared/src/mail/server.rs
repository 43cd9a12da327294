//! A server that takes mail from us, as a URL: `smtp://user:password@mail.example.com:587`.

use percent_encoding::percent_decode_str;
use secrecy::SecretString;
use url::{Host, Url};

/// How a connection is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Security {
    /// TLS from the start (`smtps://`, port 465; RFC 8314 prefers it).
    Tls,
    /// STARTTLS, and nothing without it (`smtp://`, port 587).
    StartTls,
    /// In the clear (`?tls=none`, port 25): within a machine or a network of one's own.
    None,
}

/// A server.
#[derive(Debug, Clone)]
pub struct SmtpServer {
    /// Its name, which its certificate must bear.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How it is spoken to.
    pub security: Security,
    /// User and password.
    pub credentials: Option<(String, SecretString)>,
}

impl SmtpServer {
    /// Reads a URL: `smtps://` or `smtp://`, with user and password where the server wants them, and `?tls=none` for one in the clear.
    ///
    /// # Errors
    /// What is wrong with it; never the URL itself.
    pub fn read(text: &str) -> Result<Self, &'static str> {
        const SHAPE: &str = "is not the URL of a mail server; write smtps://user:password@mail.example.com:465, or smtp:// for STARTTLS";
        let url = Url::parse(text).map_err(|_| SHAPE)?;
        let in_the_clear = match url.query() {
            None | Some("tls=required") => false,
            Some("tls=none") => true,
            Some(_) => return Err("has an unknown parameter; there is ?tls=none, for a server that is spoken to in the clear"),
        };
        let (security, port) = match (url.scheme(), in_the_clear) {
            ("smtps", false) => (Security::Tls, 465),
            ("smtp", false) => (Security::StartTls, 587),
            ("smtp", true) => (Security::None, 25),
            _ => return Err(SHAPE),
        };
        if !matches!(url.path(), "" | "/") || url.fragment().is_some() {
            return Err(SHAPE);
        }
        // Of a scheme that it does not know, `url` leaves the host as it was written.
        let host = match Host::parse(url.host_str().unwrap_or_default()).map_err(|_| SHAPE)? {
            Host::Ipv6(address) => address.to_string(),
            host => host.to_string(),
        };
        let decoded = |text: &str| percent_decode_str(text).decode_utf8().map(String::from).map_err(|_| SHAPE);
        let credentials = match (decoded(url.username())?, url.password()) {
            (user, Some(password)) if !user.is_empty() => Some((user, SecretString::from(decoded(password)?))),
            (user, None) if user.is_empty() => None,
            _ => return Err("has a user without a password, or a password without a user"),
        };
        if security == Security::None && credentials.is_some() {
            return Err("would send a password in the clear; leave ?tls=none out, or user and password");
        }
        Ok(Self { host, port: url.port().unwrap_or(port), security, credentials })
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn servers_are_read_to_the_letter() {
        let read = |text: &str| {
            let server = SmtpServer::read(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            let credentials = server.credentials.map(|(user, password)| (user, password.expose_secret().to_owned()));
            (server.host, server.port, server.security, credentials)
        };
        let someone = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        assert_eq!(
            read("smtps://apikey:p%40ss%3A@Mail.Example.com"),
            ("mail.example.com".into(), 465, Security::Tls, someone("apikey", "p@ss:"))
        );
        assert_eq!(read("smtp://a%40b.example:c@mail.example.com:2525").3, someone("a@b.example", "c"));
        assert_eq!(read("smtp://mail.example.com"), ("mail.example.com".into(), 587, Security::StartTls, None));
        assert_eq!(read("smtp://127.0.0.1:1025?tls=none"), ("127.0.0.1".into(), 1025, Security::None, None));
        assert_eq!(read("smtp://[::1]?tls=none").0, "::1");
        for wrong in [
            "",
            "mail.example.com",
            "https://mail.example.com",
            "smtp://",
            "smtp://user@mail.example.com",
            "smtp://:secret@mail.example.com",
            "smtp://user:secret@mail.example.com?tls=none",
            "smtps://mail.example.com?tls=none",
            "smtp://mail.example.com?tls=maybe",
            "smtp://mail.example.com/path",
            "smtp://mail example.com",
        ] {
            let error = SmtpServer::read(wrong).expect_err(wrong);
            assert!(!error.contains("secret"));
        }
        assert!(!format!("{:?}", SmtpServer::read("smtp://user:secret@a.example").unwrap()).contains("secret"));
    }
}
