//! Encrypted connections: whom to trust, and what to show of oneself.

use tonic::transport::{Certificate, ClientTlsConfig, Identity};

/// How connections are encrypted. The default trusts who the system trusts, under the name in the endpoint.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// Certificates (PEM) of those who may vouch for the server, instead of the ones that the system trusts.
    pub authorities: Option<Vec<u8>>,
    /// Name that the server's certificate must have, instead of the host of the endpoint.
    pub server_name: Option<String>,
    /// Certificate and key (PEM) to show to the server.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key is nobody's business.
        f.debug_struct("Tls")
            .field("authorities", &self.authorities.is_some())
            .field("server_name", &self.server_name)
            .field("identity", &self.identity.is_some())
            .finish()
    }
}

impl Tls {
    /// As the transport wants it.
    pub fn config(&self) -> ClientTlsConfig {
        let mut config = match &self.authorities {
            Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        if let Some(name) = &self.server_name {
            config = config.domain_name(name);
        }
        if let Some((certificate, key)) = &self.identity {
            config = config.identity(Identity::from_pem(certificate, key));
        }
        config
    }
}
