//! A session on one node over the plain wire, for what has to look at one node by itself: demo, status and bench. The
//! client library chooses nodes by itself, which is right for everything else.

use std::time::Duration;

use alhambra_client::Tls;
use alhambra_proto::cluster::TakeServerUuidRequest;
use alhambra_proto::cluster::cluster_service_client::ClusterServiceClient;
use alhambra_proto::header;
use alhambra_proto::schema::OpenSessionRequest;
use alhambra_proto::schema::immu_service_client::ImmuServiceClient;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::connect::Target;
use crate::failure::chain;

/// Answers may be as large as the largest value, with room for keys and proofs.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// An open session. Clones are the same one.
#[derive(Clone)]
pub struct Session {
    stub: ImmuServiceClient<Channel>,
    own: ClusterServiceClient<Channel>,
    id: AsciiMetadataValue,
    cluster: String,
    timeout: Duration,
}

/// Who logs in, and where to.
#[derive(Clone, Copy, Debug)]
pub struct Login<'a> {
    /// User.
    pub username: &'a str,
    /// Password.
    pub password: &'a str,
    /// Database.
    pub database: &'a str,
    /// How the connection is encrypted; none for a plain one.
    pub tls: Option<&'a Tls>,
}

impl<'a> Login<'a> {
    /// As the flags of a command say.
    pub fn of(target: &'a Target) -> Self {
        let Target { username, password, database, tls, .. } = target;
        Self { username, password, database, tls: tls.as_ref() }
    }
}

impl Session {
    /// Connects and logs in; `timeout` holds for this and for each later call. The error names the endpoint.
    pub async fn open(endpoint: &str, login: Login<'_>, timeout: Duration) -> Result<Session, String> {
        let refused = |why: String| format!("{endpoint}: {why}");
        let channel = alhambra_client::endpoint(endpoint, login.tls)
            .map_err(|error| refused(chain(&error)))?
            .connect_timeout(timeout)
            .connect()
            .await
            .map_err(|error| refused(chain(&error)))?;
        let own = ClusterServiceClient::new(channel.clone());
        let mut stub = ImmuServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        let mut request = Request::new(OpenSessionRequest {
            username: login.username.to_owned().into(),
            password: login.password.to_owned().into(),
            database_name: login.database.to_owned(),
        });
        request.set_timeout(timeout);
        let opened = stub.open_session(request).await.map_err(|status| refused(say(&status)))?.into_inner();
        let id = opened.session_id.parse().map_err(|_| refused("the session id is not header text".to_owned()))?;
        Ok(Session { stub, own, id, cluster: opened.server_uuid, timeout })
    }

    /// The uuid that all nodes of a cluster show.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The calls.
    pub fn stub(&mut self) -> &mut ImmuServiceClient<Channel> {
        &mut self.stub
    }

    /// Lets the cluster take the place of the server with this UUID.
    pub async fn take_server_uuid(&mut self, uuid: &str) -> Result<(), Status> {
        let request = self.request(TakeServerUuidRequest { uuid: uuid.to_owned() });
        self.own.take_server_uuid(request).await?;
        self.cluster = uuid.to_owned();
        Ok(())
    }

    /// A message with what belongs into its header.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request.metadata_mut().insert(header::SESSION, self.id.clone());
        request
    }

    /// Ends the session. One that is not closed ends by itself after a while, so that a failure here does not matter.
    pub async fn close(mut self) {
        let request = self.request(());
        let _ = self.stub.close_session(request).await;
    }
}

/// The uuid that the node at a plain endpoint shows without a login, or why it shows none.
pub async fn cluster_of(endpoint: &str, timeout: Duration) -> Result<String, String> {
    let refused = |why: String| format!("{endpoint}: {why}");
    let channel = alhambra_client::endpoint(endpoint, None).map_err(|error| refused(chain(&error)))?;
    let channel = channel.connect_timeout(timeout).connect().await.map_err(|error| refused(chain(&error)))?;
    let mut request = Request::new(());
    request.set_timeout(timeout);
    let health = ImmuServiceClient::new(channel).health(request).await.map_err(|status| refused(say(&status)))?;
    let uuid = health.metadata().get(header::UUID).and_then(|uuid| uuid.to_str().ok()).unwrap_or_default();
    if uuid.is_empty() { Err(refused("it is of no cluster yet".to_owned())) } else { Ok(uuid.to_owned()) }
}

/// A session in this database at the first endpoint that gives one, as [`Session::open`].
pub async fn open_any(target: &Target, database: &str, timeout: Duration) -> Result<Session, String> {
    let mut refusals = Vec::new();
    for endpoint in &target.endpoints {
        match Session::open(endpoint, Login { database, ..Login::of(target) }, timeout).await {
            Ok(session) => return Ok(session),
            Err(why) => refusals.push(why),
        }
    }
    Err(refusals.join("; "))
}

/// A server's refusal in one line.
pub fn say(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}
