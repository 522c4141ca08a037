//! Transactions of another server, as it exports them.

use alhambra_proto::code::text;
use alhambra_proto::schema;
use alhambra_raft::envelope::PROPOSAL_BYTES_MAX;
use alhambra_raft::error::ProposeError;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::incoming::{Incoming, Message};
use crate::error::Error;
use crate::grpc::{Reply, open_upload};
use crate::method;
use crate::service::App;
use crate::service::import;

/// Headers that must be truths. Neither has an effect: everything is checked, and the index is never behind.
const TRUTHS: [&str; 2] = ["skip-integrity-check", "wait-for-indexing"];

fn check_headers(headers: &MetadataMap) -> Result<(), Status> {
    for value in TRUTHS.iter().filter_map(|name| headers.get(*name)) {
        let value = value.to_str().unwrap_or_default();
        let known = ["1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False"];
        if !known.contains(&value) {
            return Err(text::not_a_truth(value));
        }
    }
    Ok(())
}

pub(in crate::grpc) async fn one(app: &App, request: Request<Streaming<schema::Chunk>>) -> Reply<schema::TxHeader> {
    let headers = check_headers(request.metadata());
    let (call, due, chunks) = open_upload(request)?;
    let mut cx = app.enter(&call, &method::REPLICATE_TX).await?;
    headers?;
    let fits = |len_bytes| {
        let len_bytes_max = PROPOSAL_BYTES_MAX as u64;
        let error = ProposeError::TooLarge { len_bytes, len_bytes_max };
        if len_bytes > len_bytes_max { Err(Error::from(error).into()) } else { Ok(()) }
    };
    let mut incoming = Incoming::new(chunks, due, app.closing(&cx));
    match incoming.message(fits).await? {
        Message::Whole(exported) => {
            incoming.complete(app, &call, &mut cx)?;
            Ok(Response::new((&import::replicate(&cx, &exported).await?).into()))
        }
        Message::Cut | Message::None => Err(text::STREAM_EOF.into()),
    }
}
