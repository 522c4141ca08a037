//! Several operations in one transaction, each behind a message that says of which kind it is.

use alhambra_proto::code::{WireError, text};
use alhambra_proto::schema;
use alhambra_raft::envelope::PROPOSAL_BYTES_MAX;
use alhambra_raft::error::ProposeError;
use alhambra_storage::command::Settings;
use bytes::Bytes;
use futures::Stream;
use prost::Message as _;
use tonic::{Request, Status, Streaming};

use super::incoming::{Incoming, Message};
use crate::error::Error;
use crate::grpc::exec::new_member;
use crate::grpc::kv::header;
use crate::grpc::{Reply, open_upload};
use crate::method;
use crate::service::App;
use crate::service::exec::{self, Operation};
use crate::service::kv::{self, NewValue};

const VALUE: u8 = 1;
const MEMBER: u8 = 2;
const REFERENCE: u8 = 4;

/// What a message with a member of a sorted set may have beside two keys, bytes.
const MEMBER_BYTES: u64 = 256;

pub(in crate::grpc) async fn all(app: &App, request: Request<Streaming<schema::Chunk>>) -> Reply<schema::TxHeader> {
    let (call, due, chunks) = open_upload(request)?;
    let mut cx = app.enter(&call, &method::STREAM_EXEC_ALL).await?;
    let settings = kv::settings(&cx).await?;
    let mut incoming = Incoming::new(chunks, due, app.closing(&cx));
    let operations = operations(&mut incoming, &settings).await?;
    incoming.complete(app, &call, &mut cx)?;
    let written = exec::exec_all(app, &cx, operations, Vec::new(), false).await?;
    Ok(header(&written))
}

/// Operations up to the end of the stream, or to one of no known kind. One more than a transaction may have ends the reading:
/// the write then refuses them all.
async fn operations<S>(incoming: &mut Incoming<S>, settings: &Settings) -> Result<Vec<Option<Operation>>, Status>
where
    S: Stream<Item = Result<schema::Chunk, Status>> + Unpin,
{
    let mut operations = Vec::new();
    let mut bytes = 0_u64;
    while operations.len() <= settings.tx_entries_max as usize {
        let kind = |len| if len > 1 { Err(text::ILLEGAL_ARGUMENTS.into()) } else { Ok(()) };
        let Message::Whole(kind) = incoming.message(kind).await? else { break };
        let operation = match kind.first() {
            Some(&VALUE) => {
                let max = u64::from(settings.key_len_max);
                let key = part(incoming, &mut bytes, max, text::MAX_KEY_LENGTH).await?;
                let max = u64::from(settings.value_len_max);
                let value = part(incoming, &mut bytes, max, text::MAX_VALUE_LENGTH).await?;
                Operation::Value(NewValue { key, value, metadata: Default::default() })
            }
            Some(&MEMBER) => {
                let max = 2 * u64::from(settings.key_len_max) + MEMBER_BYTES;
                let message = part(incoming, &mut bytes, max, text::MAX_KEY_LENGTH).await?;
                let request = schema::ZAddRequest::decode(message).map_err(|_| text::STREAM_MEMBER)?;
                Operation::Member(new_member(request))
            }
            Some(&REFERENCE) => return Err(text::STREAM_REFERENCE.into()),
            _ => break,
        };
        operations.push(Some(operation));
    }
    Ok(operations)
}

/// A message that must be there, whole and shorter than `len_max`. The sum of all has no limit of its own, but no more is read than
/// a proposal can hold.
async fn part<S>(
    incoming: &mut Incoming<S>,
    bytes: &mut u64,
    len_max: u64,
    too_long: WireError,
) -> Result<Bytes, Status>
where
    S: Stream<Item = Result<schema::Chunk, Status>> + Unpin,
{
    let fits = |len| {
        if len >= len_max {
            return Err(too_long.into());
        }
        *bytes += len;
        if *bytes > PROPOSAL_BYTES_MAX as u64 {
            let error = ProposeError::TooLarge { len_bytes: *bytes, len_bytes_max: PROPOSAL_BYTES_MAX as u64 };
            return Err(Error::from(error).into());
        }
        Ok(())
    };
    match incoming.message(fits).await? {
        Message::Whole(part) => Ok(part),
        Message::Cut | Message::None => Err(text::STREAM_EOF.into()),
    }
}
