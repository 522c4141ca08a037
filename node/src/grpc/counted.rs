//! A request's body, counted as it comes, and whole or in error.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};

use crate::uploads::Share;

/// A body whose bytes are counted as they come.
#[derive(Debug)]
pub struct Counted {
    body: Body,
    share: Arc<Share>,
}

impl Counted {
    /// Counts `body`.
    pub fn new(body: Body, share: Arc<Share>) -> Self {
        Self { body, share }
    }
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        Poll::Ready(match frame {
            Some(Ok(frame)) => match frame.data_ref().map_or(Ok(()), |data| self.share.receive(data.len() as u64)) {
                Ok(()) => Some(Ok(frame)),
                Err(status) => Some(Err(status)),
            },
            // tonic takes this one for the end of what the client sends, and a call that was cancelled for one that is whole.
            Some(Err(status)) if status.code() == Code::Cancelled => {
                Some(Err(Status::aborted("the client cancelled the call before its end")))
            }
            other => other,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
