//! A certificate that nobody signed but itself, for `localhost` and 127.0.0.1.

use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::error::{Error, Result};

pub(super) struct Certificate {
    pem: String,
    der: CertificateDer<'static>,
    key: Vec<u8>,
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Certificate")
    }
}

impl Certificate {
    pub(super) fn new() -> Result<Self> {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]);
        let made = made.map_err(|error| Error::Invalid(format!("no certificate could be made: {error}")))?;
        Ok(Self { pem: made.cert.pem(), der: made.cert.der().clone(), key: made.signing_key.serialize_der() })
    }

    pub(super) fn pem(&self) -> &str {
        &self.pem
    }

    pub(super) fn acceptor(&self) -> Result<TlsAcceptor> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()));
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider())).with_safe_default_protocol_versions();
        let config = config.and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![self.der.clone()], key));
        let config = config.map_err(|error| Error::Invalid(format!("the certificate can't be used: {error}")))?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}
