//! Encrypted ports: who is let in, who is not, and certificates that change while the node runs.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use alhambra_node::{Config, Node, NodeHandle};
use alhambra_proto::schema::immu_service_client::ImmuServiceClient;
use alhambra_storage::vfs::mem::MemVfs;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::support::*;

/// Somebody who vouches for others.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut parameters = CertificateParams::new(vec![]).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// Certificate and key for somebody.
    fn vouch(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let mut parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
        parameters.extended_key_usages.push(usage);
        let key = KeyPair::generate().unwrap();
        (parameters.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    fn server(&self) -> (String, String) {
        self.vouch("localhost", ExtendedKeyUsagePurpose::ServerAuth)
    }

    fn client(&self) -> (String, String) {
        self.vouch("ada", ExtendedKeyUsagePurpose::ClientAuth)
    }
}

fn write(folder: &Path, (certificate, key): &(String, String)) {
    std::fs::write(folder.join("key"), key).unwrap();
    std::fs::write(folder.join("certificate"), certificate).unwrap();
}

fn encrypted(folder: &Path) -> Config {
    let mut config = config();
    config.certificate = Some(folder.join("certificate"));
    config.pkey = Some(folder.join("key"));
    config.certificate_check_interval = Duration::from_millis(100);
    config
}

async fn connect(node: &NodeHandle, tls: ClientTlsConfig) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("https://{}", node.grpc_addr())).unwrap();
    endpoint.tls_config(tls.domain_name("localhost"))?.connect_timeout(Duration::from_secs(20)).connect().await
}

fn trusting(authority: &Authority) -> ClientTlsConfig {
    ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority.pem()))
}

/// Whether a call goes through. With TLS 1.3 a client learns only then that its certificate was refused.
async fn served(node: &NodeHandle, tls: ClientTlsConfig) -> bool {
    let Ok(channel) = connect(node, tls).await else { return false };
    ImmuServiceClient::new(channel).health(()).await.is_ok()
}

/// Status line of a page over TLS.
async fn page(address: &str, path: &str, authority: &Authority) -> String {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = builder.with_root_certificates(roots).with_no_client_auth();
    let plain = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, plain).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text).await;
    String::from_utf8(text).unwrap().lines().next().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn all_ports_are_encrypted_and_plain_clients_get_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, other) = (Authority::new(), Authority::new());
    write(folder.path(), &authority.server());
    let node = single_with(encrypted(folder.path())).await;

    let channel = connect(&node, trusting(&authority)).await.unwrap();
    let mut client = Client { inner: ImmuServiceClient::new(channel), headers: Vec::new() };
    let opened = client.open("immudb", PASSWORD, "defaultdb").await.unwrap();
    client.headers.push(("sessionid", opened.session_id));
    client.set("k", "v").await.unwrap();
    assert_eq!(&*client.get("k").await.unwrap().value, b"v");
    assert!(!served(&node, trusting(&other)).await, "somebody else vouches");
    // Without --mtls nobody looks at what a client shows.
    let (certificate, key) = other.client();
    assert!(served(&node, trusting(&authority).identity(Identity::from_pem(certificate, key))).await);

    assert_eq!(page(node.web_addr().unwrap(), "/api/health", &authority).await, "HTTP/1.1 200 OK");
    assert_eq!(page(node.metrics_addr().unwrap(), "/readyz", &authority).await, "HTTP/1.1 200 OK");

    let plain = Endpoint::from_shared(format!("http://{}", node.grpc_addr())).unwrap();
    let plain = plain.timeout(Duration::from_secs(20)).connect().await;
    let answer = match plain {
        Ok(channel) => ImmuServiceClient::new(channel).health(()).await.map_err(|status| status.to_string()),
        Err(error) => Err(error.to_string()),
    };
    assert!(answer.is_err(), "a plain client is served");
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_a_client_shows_must_be_vouched_for() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, clients, other) = (Authority::new(), Authority::new(), Authority::new());
    write(folder.path(), &authority.server());
    std::fs::write(folder.path().join("cas"), clients.pem()).unwrap();
    let mut config = encrypted(folder.path());
    config.mtls = true;
    config.clientcas = Some(folder.path().join("cas"));
    let node = single_with(config).await;
    let showing =
        |(certificate, key): (String, String)| trusting(&authority).identity(Identity::from_pem(certificate, key));
    assert!(served(&node, showing(clients.client())).await);
    assert!(!served(&node, showing(other.client())).await, "nobody known vouches for it");
    assert!(served(&node, trusting(&authority)).await, "none is let in, as by the original");
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_files_are_taken_over_while_the_node_runs() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (Authority::new(), Authority::new());
    write(folder.path(), &old.server());
    let node = single_with(encrypted(folder.path())).await;
    assert!(served(&node, trusting(&old)).await && !served(&node, trusting(&new)).await);

    write(folder.path(), &new.server());
    eventually("the new certificate", || served(&node, trusting(&new))).await;
    assert!(!served(&node, trusting(&old)).await);
    assert_eq!(page(node.metrics_addr().unwrap(), "/livez", &new).await, "HTTP/1.1 200 OK");
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_do_not_finish_a_handshake_hold_nobody_up() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    write(folder.path(), &authority.server());
    let node = single_with(encrypted(folder.path())).await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(TcpStream::connect(node.grpc_addr()).await.unwrap());
    }
    let began = Instant::now();
    assert!(served(&node, trusting(&authority)).await);
    assert!(began.elapsed() < Duration::from_secs(9), "it waited for others' handshakes");
    drop(silent);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_makes_a_certificate_once_and_keeps_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config();
    config.dir = folder.path().join("data");
    config.auto_cert = true;
    let disk = MemVfs::new();
    let mut certificates = Vec::new();
    for _ in 0..2 {
        let node = Node::start(config.clone(), env(&disk)).await.unwrap();
        assert!(node.wait_ready(Instant::now() + PATIENCE).await);
        let pem = std::fs::read_to_string(folder.path().join("data/tls/certificate.pem")).unwrap();
        assert!(served(&node, ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&pem))).await);
        certificates.push(pem);
        node.shutdown().await;
    }
    assert_eq!(certificates[0], certificates[1]);
    use std::os::unix::fs::PermissionsExt;
    let key = std::fs::metadata(folder.path().join("data/tls/key.pem")).unwrap();
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_be_used_are_named_and_nothing_starts() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let says = |config: Config| async move {
        let disk = MemVfs::new();
        let error = Node::start(config, env(&disk)).await.map(drop).unwrap_err().to_string();
        assert!(contents_are_empty(&disk), "something was written");
        error
    };
    let config = encrypted(folder.path());
    assert!(says(config.clone()).await.ends_with("cannot be read"));
    write(folder.path(), &("nonsense".into(), authority.server().1));
    assert!(says(config.clone()).await.ends_with("has no usable certificate in PEM"));
    write(folder.path(), &(authority.server().0, "nonsense".into()));
    assert!(says(config.clone()).await.ends_with("has no usable private key in PEM"));
    write(folder.path(), &(authority.server().0, authority.server().1));
    assert!(says(config).await.contains("cannot be used"), "they do not go together");
}

fn contents_are_empty(disk: &MemVfs) -> bool {
    use alhambra_storage::vfs::Vfs;
    disk.read_dir(Path::new("/data")).map_or(true, |found| found.is_empty())
}
