//! The one thing the command line asks over HTTP: a node's health and metrics pages.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use alhambra_client::Tls;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// More than any metrics page; what lies beyond is an error, not memory.
const ANSWER_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Status and body of `GET path` at `address` (`host:port`), within `timeout`.
pub async fn get(address: &str, path: &str, tls: Option<&Tls>, timeout: Duration) -> io::Result<(u16, String)> {
    let exchange = async {
        let plain = TcpStream::connect(address).await?;
        let mut stream: Box<dyn Stream> = match tls {
            Some(tls) => Box::new(encrypt(plain, address, tls).await?),
            None => Box::new(plain),
        };
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        // A peer that hangs up without the farewell of TLS has said all the same what its headers announce.
        let read = match stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => answer.len(),
            read => read?,
        };
        if read as u64 == ANSWER_BYTES_MAX {
            return Err(invalid("the answer is too long"));
        }
        parse(&answer)
    };
    tokio::time::timeout(timeout, exchange).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Agrees on keys with a server that somebody trusted vouches for.
async fn encrypt(plain: TcpStream, address: &str, tls: &Tls) -> io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    match &tls.authorities {
        Some(pem) => {
            for authority in CertificateDer::pem_slice_iter(pem) {
                roots.add(authority.map_err(io::Error::other)?).map_err(io::Error::other)?;
            }
        }
        None => _ = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs),
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider);
    let builder =
        builder.with_safe_default_protocol_versions().map_err(io::Error::other)?.with_root_certificates(roots);
    let config = match &tls.identity {
        Some((certificate, key)) => {
            let chain =
                CertificateDer::pem_slice_iter(certificate).collect::<Result<_, _>>().map_err(io::Error::other)?;
            let key = PrivateKeyDer::from_pem_slice(key).map_err(io::Error::other)?;
            builder.with_client_auth_cert(chain, key).map_err(io::Error::other)?
        }
        None => builder.with_no_client_auth(),
    };
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
    let name = ServerName::try_from(tls.server_name.as_deref().unwrap_or(host).to_owned()).map_err(io::Error::other)?;
    TlsConnector::from(Arc::new(config)).connect(name, plain).await
}

fn parse(answer: &[u8]) -> io::Result<(u16, String)> {
    let text = std::str::from_utf8(answer).map_err(|_| invalid("the answer is not text"))?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| invalid("the answer has no end of header"))?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| invalid("the answer has no status"))?;
    let chunked = head.lines().skip(1).any(|line| {
        line.split_once(':').is_some_and(|(name, value)| {
            name.eq_ignore_ascii_case("transfer-encoding") && value.trim().eq_ignore_ascii_case("chunked")
        })
    });
    let body = if chunked { unchunk(body)? } else { body.to_owned() };
    Ok((status, body))
}

fn unchunk(mut rest: &str) -> io::Result<String> {
    let broken = || invalid("the answer has a broken chunk");
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n").ok_or_else(broken)?;
        let size = usize::from_str_radix(size.trim(), 16).map_err(|_| broken())?;
        if size == 0 {
            return Ok(body);
        }
        body.push_str(after.get(..size).ok_or_else(broken)?);
        rest = after.get(size..).and_then(|after| after.strip_prefix("\r\n")).ok_or_else(broken)?;
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_and_chunked_answers_are_read() {
        let plain = parse(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 3\r\n\r\nno!").unwrap();
        assert_eq!(plain, (503, "no!".to_owned()));
        let chunked =
            parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n").unwrap();
        assert_eq!(chunked, (200, "abcde".to_owned()));
    }

    #[test]
    fn broken_answers_are_errors() {
        for broken in [
            &b"HTTP/1.1 200 OK\r\n"[..],
            b"nonsense\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabc",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nabc",
            b"HTTP/1.1 200 OK\r\n\r\n\xff",
        ] {
            assert!(parse(broken).is_err(), "{}", String::from_utf8_lossy(broken));
        }
    }
}
