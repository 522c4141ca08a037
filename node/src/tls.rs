//! TLS of everything that clients reach: gRPC, REST, metrics. One configuration for all of them.
//!
//! Certificate and key are files in PEM, or made here (`--auto-cert`). Changed files are taken over while the node runs, for
//! connections from then on; files that cannot be used are reported and the ones before stay in force. A client may show a
//! certificate; with `--mtls` one that is shown must come from `--clientcas`, and none is still let in, as users of the
//! compatible server expect.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use alhambra_raft::env::{BoxIo, Env, Listener};
use futures::future::BoxFuture;
use parking_lot::RwLock;
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;

use crate::config::Config;
use crate::health::accept;

/// Time that a client has to agree on keys.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Handshakes that go on at the same time on one port; further connections wait to be accepted.
const HANDSHAKES_MAX: usize = 256;
/// Connections that are agreed on and wait to be served, on one port.
const AGREED_MAX: usize = 64;
/// From so much time before its end on, a certificate is warned about, seconds.
const ENDS_SOON_S: i64 = 30 * 86_400;
/// Life of a certificate that is made here, seconds.
const OWN_LIFE_S: i64 = 365 * 86_400;
/// Names of the files that are made here, below the data folder.
const OWN: [&str; 3] = ["tls", "certificate.pem", "key.pem"];

/// Why TLS cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("the {what} {} cannot be read", path.display())]
    Unreadable {
        /// What it is for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// A file has nothing of what it should have.
    #[error("{} has no usable {what} in PEM", path.display())]
    NoPem {
        /// What it should have.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// Certificate and key do not go together, or the client certificates cannot be used.
    #[error("certificate, key or client certificates cannot be used")]
    Unusable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A certificate could not be made or kept.
    #[error("a certificate of its own could not be made in {}", path.display())]
    NotMade {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Which files count.
#[derive(Clone, Debug)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    /// Certificates of those who may vouch for clients.
    client_cas: Option<PathBuf>,
}

/// What the files had, to see whether they have changed.
#[derive(Debug, PartialEq, Eq)]
struct Content {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_cas: Option<Vec<u8>>,
}

/// The configuration in force.
#[derive(Debug)]
struct InForce {
    content: Content,
    config: Arc<ServerConfig>,
    /// When the certificate ends, unix seconds.
    ends: i64,
}

/// TLS of a node.
#[derive(Debug)]
pub struct Tls {
    files: Files,
    in_force: RwLock<InForce>,
}

impl Tls {
    /// As the configuration says; none when it asks for none.
    pub fn open(config: &Config, env: &Env) -> Result<Option<Arc<Self>>, TlsError> {
        let own = || config.dir.join(OWN[0]);
        let (certificate, key) = match (&config.certificate, &config.pkey) {
            (Some(certificate), Some(key)) => (certificate.clone(), key.clone()),
            _ if config.auto_cert => (own().join(OWN[1]), own().join(OWN[2])),
            _ => return Ok(None),
        };
        let now = env.clock.now_unix_ms().div_euclid(1000);
        let files = Files { certificate, key, client_cas: config.clientcas.clone().filter(|_| config.mtls) };
        if config.auto_cert && config.certificate.is_none() {
            make_own(&files, &config.address, now)?;
        }
        let in_force = files.load()?;
        warn_of_end(in_force.ends, now);
        Ok(Some(Arc::new(Self { files, in_force: RwLock::new(in_force) })))
    }

    /// When the certificate ends, unix seconds.
    pub fn ends(&self) -> i64 {
        self.in_force.read().ends
    }

    /// Takes changed files over. Tells of the end of the certificate, once more for each look.
    pub fn look(&self, now: i64) {
        let changed = self.files.read().map(|content| content != self.in_force.read().content);
        match changed.and_then(|changed| changed.then(|| self.files.load()).transpose()) {
            Ok(None) => {}
            Ok(Some(new)) => {
                tracing::info!(ends_unix_s = new.ends, "a new certificate is in force");
                warn_of_end(new.ends, now);
                *self.in_force.write() = new;
            }
            Err(error) => {
                let reason = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, reason, "the changed certificate files are not used; the ones before stay");
            }
        }
    }

    fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.in_force.read().config.clone())
    }

    /// A listener whose connections are encrypted ones of `plain`.
    pub fn wrap(self: &Arc<Self>, plain: Box<dyn Listener>) -> Box<dyn Listener> {
        let (tx, agreed) = mpsc::channel(AGREED_MAX);
        let plain: Arc<dyn Listener> = plain.into();
        let task = tokio::spawn(agree(self.clone(), plain.clone(), tx));
        Box::new(TlsListener { plain, agreed: Mutex::new(agreed), task: task.abort_handle() })
    }
}

fn warn_of_end(ends: i64, now: i64) {
    if ends <= now {
        tracing::warn!(ends_unix_s = ends, "the certificate has ended: clients will refuse it");
    } else if ends - now < ENDS_SOON_S {
        tracing::warn!(days = (ends - now) / 86_400, "the certificate ends soon");
    }
}

impl Files {
    fn read(&self) -> Result<Content, TlsError> {
        let read = |what, path: &Path| {
            std::fs::read(path).map_err(|source| TlsError::Unreadable { what, path: path.to_owned(), source })
        };
        Ok(Content {
            certificate: read("certificate", &self.certificate)?,
            key: read("key of the certificate", &self.key)?,
            client_cas: self.client_cas.as_deref().map(|path| read("file of client certificates", path)).transpose()?,
        })
    }

    fn load(&self) -> Result<InForce, TlsError> {
        let content = self.read()?;
        let no_pem = |what, path: &Path| TlsError::NoPem { what, path: path.to_owned() };
        let certificates =
            certificates(&content.certificate).ok_or_else(|| no_pem("certificate", &self.certificate))?;
        let key = PrivateKeyDer::from_pem_slice(&content.key).map_err(|_| no_pem("private key", &self.key))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificates[0])
            .map_err(|_| no_pem("certificate", &self.certificate))?;
        let ends = parsed.validity().not_after.timestamp();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(unusable)?;
        let builder = match (&content.client_cas, &self.client_cas) {
            (Some(pem), Some(path)) => {
                let mut roots = RootCertStore::empty();
                for authority in self::certificates(pem).ok_or_else(|| no_pem("certificate", path))? {
                    roots.add(authority).map_err(unusable)?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                builder.with_client_cert_verifier(verifier.allow_unauthenticated().build().map_err(unusable)?)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(certificates, key).map_err(unusable)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(InForce { content, config: Arc::new(config), ends })
    }
}

fn unusable(error: impl std::error::Error + Send + Sync + 'static) -> TlsError {
    TlsError::Unusable(Box::new(error))
}

/// All certificates of a PEM text; none if there are none, or one is broken.
fn certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().ok()?;
    (!all.is_empty()).then_some(all)
}

/// By what clients may know this node when it binds to `address`; to all addresses of this machine by each of them.
fn own_names(host: &str, address: &str) -> Vec<String> {
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1", host, address].map(str::to_owned).into();
    if address.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified()) {
        let interfaces = if_addrs::get_if_addrs().unwrap_or_else(|error| {
            tracing::warn!(%error, "the certificate is made for this machine alone: its addresses cannot be told");
            Vec::new()
        });
        // What holds on one link only is not said without the name of the interface.
        let outside = interfaces.iter().filter(|interface| !interface.is_link_local());
        names.extend(outside.map(|interface| interface.ip().to_string()));
    }
    names.retain(|name| !matches!(name.as_str(), "" | "0.0.0.0" | "::"));
    names.sort();
    names.dedup();
    names
}

/// Makes a certificate for this machine that vouches for itself, unless there is one that has not ended.
fn make_own(files: &Files, address: &str, now: i64) -> Result<(), TlsError> {
    if files.load().is_ok_and(|found| found.ends > now) {
        return Ok(());
    }
    let folder = files.certificate.parent().unwrap_or(Path::new(".")).to_owned();
    let not_made =
        |source: Box<dyn std::error::Error + Send + Sync>| TlsError::NotMade { path: folder.clone(), source };
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let names = own_names(&host, address);
    let made = || -> Result<(String, String), rcgen::Error> {
        let mut parameters = rcgen::CertificateParams::new(names)?;
        parameters.distinguished_name.push(rcgen::DnType::OrganizationName, "alhambra");
        parameters.distinguished_name.push(rcgen::DnType::CommonName, host.as_str());
        let at = |unix_s: i64| {
            let days = rcgen::date_time_ymd(1970, 1, 1);
            days + Duration::from_secs(unix_s.max(0).unsigned_abs())
        };
        // A client whose clock is a little behind takes it all the same.
        parameters.not_before = at(now - 3600);
        parameters.not_after = at(now + OWN_LIFE_S);
        let key = rcgen::KeyPair::generate()?;
        let certificate = parameters.self_signed(&key)?;
        Ok((certificate.pem(), key.serialize_pem()))
    };
    let (certificate, key) = made().map_err(|error| not_made(error.into()))?;
    let written = std::fs::create_dir_all(&folder)
        .and_then(|()| write_secret(&files.key, key.as_bytes()))
        .and_then(|()| std::fs::write(&files.certificate, certificate));
    written.map_err(|error| not_made(error.into()))?;
    tracing::info!(certificate = %files.certificate.display(), "made a certificate that vouches for itself");
    Ok(())
}

/// Writes a file that only its owner may read.
fn write_secret(path: &Path, content: &[u8]) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(content)
}

/// Accepts connections and agrees on keys with many at once, so that a slow client holds no other up.
async fn agree(tls: Arc<Tls>, plain: Arc<dyn Listener>, agreed: mpsc::Sender<(BoxIo, String)>) {
    let places = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let (io, peer) = tokio::select! {
            accepted = accept(&*plain, "TLS") => accepted,
            () = agreed.closed() => return,
        };
        let (handshake, agreed) = (tls.acceptor().accept(io), agreed.clone());
        tokio::spawn(async move {
            match tokio::time::timeout(HANDSHAKE_WITHIN, handshake).await {
                Ok(Ok(stream)) => _ = agreed.send((Box::pin(stream), peer)).await,
                Ok(Err(error)) => tracing::debug!(peer, %error, "no TLS with a client"),
                Err(_) => tracing::debug!(peer, "a client did not finish its handshake"),
            }
            drop(place);
        });
    }
}

/// Accepts encrypted connections.
struct TlsListener {
    plain: Arc<dyn Listener>,
    agreed: Mutex<mpsc::Receiver<(BoxIo, String)>>,
    task: tokio::task::AbortHandle,
}

impl Listener for TlsListener {
    fn local_addr(&self) -> std::io::Result<String> {
        self.plain.local_addr()
    }

    fn accept(&self) -> BoxFuture<'_, std::io::Result<(BoxIo, String)>> {
        Box::pin(async move {
            let ended = || std::io::Error::other("the port is not served any more");
            self.agreed.lock().await.recv().await.ok_or_else(ended)
        })
    }
}

impl Drop for TlsListener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use alhambra_storage::vfs::os::OsVfs;

    use super::*;

    /// Certificate and key of a server whose certificate ends then.
    fn pair(ends: i32) -> (String, String) {
        let mut parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        parameters.not_after = rcgen::date_time_ymd(ends, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        (parameters.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn changed_files_count_only_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("certificate"), folder.path().join("key"));
        let ((old, old_key), (new, new_key)) = (pair(2040), pair(2041));
        let mut config = Config::default();
        config.certificate = Some(certificate.clone());
        config.pkey = Some(key.clone());
        std::fs::write(&certificate, old).unwrap();
        std::fs::write(&key, &old_key).unwrap();
        let env = Env::production(Arc::new(OsVfs));
        let tls = Tls::open(&config, &env).unwrap().unwrap();
        let ends = tls.ends();
        tls.look(0);
        assert_eq!(tls.ends(), ends);
        // In the middle of a renewal they do not go together; then one is missing, then one is cut.
        std::fs::write(&certificate, &new).unwrap();
        tls.look(0);
        std::fs::remove_file(&key).unwrap();
        tls.look(0);
        std::fs::write(&key, &new_key[..new_key.len() / 2]).unwrap();
        tls.look(0);
        assert_eq!(tls.ends(), ends, "the certificate before is in force");
        std::fs::write(&key, &new_key).unwrap();
        tls.look(0);
        assert!(tls.ends() > ends, "the new one is");
    }

    #[test]
    fn a_certificate_of_its_own_is_made_anew_when_it_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files {
            certificate: folder.path().join("tls").join("certificate.pem"),
            key: folder.path().join("tls").join("key.pem"),
            client_cas: None,
        };
        let made = |now: i64| {
            make_own(&files, "0.0.0.0", now).unwrap();
            files.load().unwrap().ends
        };
        let now = 1_800_000_000;
        assert_eq!(made(now), now + OWN_LIFE_S);
        assert_eq!(made(now + OWN_LIFE_S - 1), now + OWN_LIFE_S, "it is kept as long as it is good");
        assert_eq!(made(now + OWN_LIFE_S), now + 2 * OWN_LIFE_S);
    }

    #[test]
    fn a_certificate_of_its_own_names_every_address_that_is_served() {
        let all = own_names("host", "0.0.0.0");
        for name in ["localhost", "127.0.0.1", "::1", "host"] {
            assert!(all.contains(&name.to_owned()), "{name}: {all:?}");
        }
        assert!(all.iter().all(|name| name != "0.0.0.0" && !name.starts_with("fe80")), "{all:?}");
        // The address by which this machine would be seen from elsewhere; nothing is sent.
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        if socket.connect("192.0.2.1:9").is_ok() {
            let outward = socket.local_addr().unwrap().ip().to_string();
            assert!(all.contains(&outward) || outward.starts_with("169.254."), "{outward}: {all:?}");
        }
        assert_eq!(own_names("host", "192.0.2.7"), ["127.0.0.1", "192.0.2.7", "::1", "host", "localhost"]);
        assert_eq!(own_names("", "::1"), ["127.0.0.1", "::1", "localhost"]);
    }
}
