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
    to_its_end: bool,
}

impl Counted {
    /// Counts `body`.
    pub fn new(body: Body, share: Arc<Share>) -> Self {
        Self { body, share, to_its_end: false }
    }

    /// From a connection, on which a client may break off: without an end that it has sent, the body ends in an error.
    pub fn to_its_end(self) -> Self {
        Self { to_its_end: true, ..self }
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
            // Both are taken for the end of what the client sends otherwise, and what was broken off for all of it: the one by tonic, the
            // other (a reset without an error, into which proxies turn it) by hyper.
            Some(Err(status)) if status.code() == Code::Cancelled => Some(Err(broken_off())),
            None if self.to_its_end && !self.body.is_end_stream() => Some(Err(broken_off())),
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

fn broken_off() -> Status {
    Status::aborted("the client cancelled the call before its end")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt as _;
    use futures::future::poll_fn;
    use tokio::time::Instant;

    use super::*;
    use crate::uploads::Uploads;

    /// What a connection makes of a stream: some bytes, and how it ends.
    struct Coming {
        part: Option<Bytes>,
        error: Option<Status>,
        ended: bool,
    }

    impl HttpBody for Coming {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            let part = self.part.take().map(|part| Ok(Frame::data(part)));
            Poll::Ready(part.or_else(|| self.error.take().map(Err)))
        }

        fn is_end_stream(&self) -> bool {
            self.part.is_none() && self.ended
        }
    }

    /// The code with which a body ends; none when it is whole.
    fn end_of(error: Option<Status>, ended: bool, to_its_end: bool) -> Option<Code> {
        let coming = Coming { part: Some(Bytes::from_static(b"part")), error, ended };
        let share = Uploads::new(0).begin(false, Instant::now(), Duration::from_secs(1));
        let mut body = Counted::new(Body::new(coming), share);
        body.to_its_end = to_its_end;
        let mut next = || poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).now_or_never().unwrap();
        assert_eq!(next().unwrap().unwrap().into_data().unwrap(), "part");
        next().map(|end| end.unwrap_err().code())
    }

    #[test]
    fn what_is_broken_off_does_not_end_as_what_is_whole() {
        assert_eq!(end_of(None, true, true), None);
        assert_eq!(end_of(Some(Status::cancelled("reset")), false, true), Some(Code::Aborted));
        assert_eq!(end_of(Some(Status::cancelled("reset")), false, false), Some(Code::Aborted));
        assert_eq!(end_of(None, false, true), Some(Code::Aborted), "reset without an error");
        assert_eq!(end_of(None, false, false), None, "within the process nobody says when it ends");
        assert_eq!(end_of(Some(Status::internal("other")), false, true), Some(Code::Internal));
    }
}
