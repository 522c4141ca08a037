//! `immudb.model.AuthorizationService`: sessions, by another name. They are the same ones.

use std::sync::Arc;
use std::time::Duration;

use alhambra_proto::model;
use alhambra_proto::model::authorization_service_server::AuthorizationService;
use tonic::{Request, Response, async_trait};

use super::{Reply, open};
use crate::error::Error;
use crate::service::App;

/// `immudb.model.AuthorizationService`.
#[derive(Clone, Debug)]
pub(super) struct Authorization {
    pub(super) app: Arc<App>,
}

/// Unix seconds after `life`; 0 for no end.
fn ends(now: i64, life: Duration) -> i32 {
    let seconds = i64::try_from(life.as_secs()).unwrap_or(i64::MAX);
    if seconds == 0 { 0 } else { i32::try_from(now.saturating_add(seconds)).unwrap_or(i32::MAX) }
}

#[async_trait]
impl AuthorizationService for Authorization {
    async fn open_session(&self, request: Request<model::OpenSessionRequest>) -> Reply<model::OpenSessionResponse> {
        let (call, request) = open(request)?;
        let (user, password) = (request.username.as_bytes(), request.password.as_bytes());
        let session = self.app.open_session(user, password, &request.database, (call.source, call.deadline)).await?;
        let server_uuid = self.app.uuid().ok_or(Error::Starting { what: "the cluster" })?;
        let (age, inactivity) = self.app.session_life();
        let now = self.app.now();
        Ok(Response::new(model::OpenSessionResponse {
            session_id: session.text().to_owned(),
            server_uuid,
            expiration_timestamp: ends(now, age),
            inactivity_timestamp: ends(now, inactivity),
        }))
    }

    async fn keep_alive(&self, request: Request<model::KeepAliveRequest>) -> Reply<model::KeepAliveResponse> {
        let (call, _) = open(request)?;
        // The gate has refreshed the session already.
        self.app.session_of(&call)?;
        Ok(Response::new(model::KeepAliveResponse {}))
    }

    async fn close_session(&self, request: Request<model::CloseSessionRequest>) -> Reply<model::CloseSessionResponse> {
        let (call, _) = open(request)?;
        self.app.close_session(&call).await?;
        Ok(Response::new(model::CloseSessionResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_life_means_no_end_and_a_long_one_fits() {
        assert_eq!(ends(1_700_000_000, Duration::ZERO), 0);
        assert_eq!(ends(1_700_000_000, Duration::from_mins(3)), 1_700_000_180);
        assert_eq!(ends(1_700_000_000, Duration::MAX), i32::MAX);
    }
}
