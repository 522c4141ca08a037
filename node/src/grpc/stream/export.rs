//! Transactions for whoever keeps a copy of the ledger.

use std::collections::HashMap;
use std::sync::Arc;

use alhambra_ledger::ids::TxId;
use alhambra_proto::code::text;
use alhambra_proto::schema;
use bytes::Bytes;
use futures::StreamExt;
use tokio::time::timeout_at;
use tonic::{Request, Streaming};

use super::Chunks;
use super::outlet::{Ended, Outlet, Pace, respond};
use crate::error::Error;
use crate::grpc::{Reply, open};
use crate::method;
use crate::service::App;
use crate::service::export::{self, Export, Exported};

/// Newest transaction, eight bytes: in the first chunk of each one.
const COMMITTED_KEY: &str = "committed-txid-bin";

fn export_of(request: schema::ExportTxRequest) -> Export {
    // Integrity is always checked: values are compared with their hash whenever they are read.
    Export { tx: TxId(request.tx), wait: request.allow_pre_committed, has_state: request.replica_state.is_some() }
}

async fn send(out: &Outlet, exported: Exported) -> Result<(), Ended> {
    let newest = Bytes::copy_from_slice(&exported.newest.get().to_be_bytes());
    out.send_with(exported.bytes, HashMap::from([(COMMITTED_KEY.to_owned(), newest)])).await
}

pub(in crate::grpc) async fn one(app: &Arc<App>, request: Request<schema::ExportTxRequest>) -> Reply<Chunks> {
    let (call, request) = open(request)?;
    let cx = app.enter(&call, &method::EXPORT_TX).await?;
    let exported = export::export(&cx, export_of(request)).await?;
    Ok(respond(app, &call, app.closing(&cx), |out| async move { send(&out, exported).await }))
}

/// A transaction for each request, one after the other. The end of the requests ends the reply with an error, and so does
/// a client that asks for nothing for as long as a call may take.
pub(in crate::grpc) async fn many(
    app: &Arc<App>,
    request: Request<Streaming<schema::ExportTxRequest>>,
) -> Reply<Chunks> {
    let (call, mut requests) = open(request)?;
    let mut cx = app.enter(&call, &method::STREAM_EXPORT_TX).await?;
    let pace = Pace::of(app, &call);
    Ok(respond(app, &call, app.closing(&cx), |out| async move {
        loop {
            let next = timeout_at(pace.next(), requests.next()).await;
            let next = next.map_err(|_| Error::StreamIdle { what: "the client did not ask for more in time" })?;
            let request = next.ok_or(text::STREAM_EOF)??;
            cx.deadline = pace.next();
            let exported = tokio::select! {
                exported = export::export(&cx, export_of(request)) => exported?,
                () = out.closed() => return Err(Ended::Gone),
            };
            send(&out, exported).await?;
        }
    }))
}
