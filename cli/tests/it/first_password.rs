//! No default password: a cluster that forms without `--admin-password` makes one up and prints it, once.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};

use alhambra_proto::schema::OpenSessionRequest;
use alhambra_proto::schema::immu_service_client::ImmuServiceClient;
use tonic::Status;
use tonic::transport::Endpoint;

use crate::support::{alhambra, free_base_port, send_signal, wait_for, wait_until};

const PREFIX: &str = "The password of user immudb is ";

/// A node of its own; killed when dropped.
pub struct Serve {
    child: Child,
    lines: Receiver<String>,
    port: u16,
}

impl Serve {
    pub fn start(dir: &std::path::Path, port: u16, more: &[&str]) -> Self {
        let (text, peers) = (port.to_string(), (port + 1).to_string());
        let arguments = ["serve", "--dir", dir.to_str().unwrap(), "--address", "127.0.0.1", "--port", &text];
        let mut child = alhambra(&arguments)
            .args(["--peer-port", &peers, "--metrics-server=false", "--web-server=false"])
            .args(["--password-hash-memory", "8", "--password-hash-passes", "1"])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines, port }
    }

    async fn open(&self, password: &str) -> Result<(), Status> {
        let unreachable = |error: tonic::transport::Error| Status::unavailable(error.to_string());
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{}", self.port)).unwrap();
        let mut client = ImmuServiceClient::new(endpoint.connect().await.map_err(unreachable)?);
        let request = OpenSessionRequest {
            username: "immudb".into(),
            password: password.to_owned().into(),
            database_name: "defaultdb".into(),
        };
        client.open_session(request).await.map(drop)
    }

    /// Waits until a login succeeds.
    pub async fn serves(&self, password: &str) {
        wait_for("a login", || async { self.open(password).await.ok() }).await;
    }

    /// Stops it in order; answers what it had printed and nobody had read.
    pub fn stop(mut self) -> Vec<String> {
        send_signal("TERM", self.child.id());
        wait_until("the end of the node", || self.child.try_wait().unwrap());
        self.lines.iter().collect()
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_made_up_and_printed_once() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_base_port(1);
    let node = Serve::start(dir.path(), port, &[]);
    let line = wait_until("the password", || node.lines.try_recv().ok());
    let password = line.strip_prefix(PREFIX).unwrap().strip_suffix(" (shown only this once)").unwrap().to_owned();
    assert!(password.len() == 24 && password.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{password}");
    node.serves(&password).await;
    for wrong in ["immudb", ""] {
        assert_eq!(node.open(wrong).await.unwrap_err().message(), "invalid user name or password");
    }
    assert_eq!(node.stop(), Vec::<String>::new());

    // It is there already, so nothing is made up any more.
    let again = Serve::start(dir.path(), port, &[]);
    again.serves(&password).await;
    assert_eq!(again.stop(), Vec::<String>::new());
    // Nor does another one count.
    let other = Serve::start(dir.path(), port, &["--admin-password", "Another-1!"]);
    other.serves(&password).await;
    assert_eq!(other.open("Another-1!").await.unwrap_err().message(), "invalid user name or password");
    assert_eq!(other.stop(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_given_password_is_not_printed() {
    let dir = tempfile::tempdir().unwrap();
    let node = Serve::start(dir.path(), free_base_port(1), &["--admin-password", "Given-pass-1!"]);
    node.serves("Given-pass-1!").await;
    assert_eq!(node.open("immudb").await.unwrap_err().message(), "invalid user name or password");
    let printed = node.stop();
    assert!(printed.iter().all(|line| !line.contains("assword") && !line.contains("Given-pass-1!")), "{printed:?}");
}

/// Whoever may start a node may give the first administrator another password; how else could one who lost it go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_password_is_replaced_by_who_starts_a_node() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_base_port(1);
    let node = Serve::start(dir.path(), port, &["--admin-password", "Lost-pass-1!"]);
    node.serves("Lost-pass-1!").await;
    node.stop();
    let forced = Serve::start(dir.path(), port, &["--admin-password", "New-pass-1!", "--force-admin-password"]);
    forced.serves("New-pass-1!").await;
    assert_eq!(forced.open("Lost-pass-1!").await.unwrap_err().message(), "invalid user name or password");
    assert_eq!(forced.stop(), Vec::<String>::new());
    let again = Serve::start(dir.path(), port, &[]);
    again.serves("New-pass-1!").await;
}
