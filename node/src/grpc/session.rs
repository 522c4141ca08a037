//! Sessions and tokens.

use alhambra_proto::schema;
use bytes::Bytes;
use tonic::{Request, Response};

use super::{Reply, open};
use crate::error::Error;
use crate::service::App;

pub(super) async fn open_session(
    app: &App,
    request: Request<schema::OpenSessionRequest>,
) -> Reply<schema::OpenSessionResponse> {
    let (call, request) = open(request)?;
    let (source, deadline) = (call.source, call.deadline);
    let session =
        app.open_session(&request.username, &request.password, &request.database_name, (source, deadline)).await?;
    let server_uuid = app.uuid().ok_or(Error::Starting { what: "the cluster" })?;
    Ok(Response::new(schema::OpenSessionResponse { session_id: session.text().to_owned(), server_uuid }))
}

pub(super) async fn close_session(app: &App, request: Request<()>) -> Reply<()> {
    let (call, ()) = open(request)?;
    app.close_session(&call).await?;
    Ok(Response::new(()))
}

pub(super) fn keep_alive(app: &App, request: Request<()>) -> Reply<()> {
    let (call, ()) = open(request)?;
    // The gate has refreshed the session already.
    app.session_of(&call)?;
    Ok(Response::new(()))
}

pub(super) async fn login(app: &App, request: Request<schema::LoginRequest>) -> Reply<schema::LoginResponse> {
    let (call, request) = open(request)?;
    let (token, warning) = app.login(&request.user, &request.password, (call.source, call.deadline)).await?;
    Ok(Response::new(schema::LoginResponse { token, warning: Bytes::from_static(warning.as_bytes()) }))
}

pub(super) async fn logout(app: &App, request: Request<()>) -> Reply<()> {
    let (call, ()) = open(request)?;
    app.logout(&call).await?;
    Ok(Response::new(()))
}

pub(super) async fn use_database(app: &App, request: Request<schema::Database>) -> Reply<schema::UseDatabaseReply> {
    let (call, request) = open(request)?;
    let token = app.use_database(&call, &request.database_name).await?;
    Ok(Response::new(schema::UseDatabaseReply { token }))
}
