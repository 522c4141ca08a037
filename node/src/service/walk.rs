//! Lists of entries that are read one by one, as they are taken: a caller that sends each on holds one of them at a time.
//!
//! A walk sees one state of the database, however long it takes.

use alhambra_ledger::ids::TxId;
use alhambra_proto::code::text;
use alhambra_storage::index::{ScanSpec, Version};
use alhambra_storage::read::ReadSnapshot;
use bytes::Bytes;

use super::kv::{Entry, History, Reader, Scan, is_absence, over, range, settings, stored_key, take_turns};
use super::{App, result_limit};
use crate::context::Context;
use crate::error::{Error, Result};

/// A view for a list, which need not be newer than `since`.
pub(super) async fn view(cx: &Context, since: TxId) -> Result<ReadSnapshot> {
    cx.view(since).await.map_err(|error| error.beyond_is(text::ILLEGAL_ARGUMENTS))
}

/// Live keys of a range at one state, behind an offset and up to a limit.
pub(super) struct LiveKeys {
    view: ReadSnapshot,
    now: i64,
    keys: Box<dyn Iterator<Item = alhambra_storage::Result<(Bytes, Version)>> + Send>,
    /// Keys still to leave out.
    offset: u64,
    /// Places still to fill.
    left: usize,
    steps: usize,
}

impl LiveKeys {
    /// None of them for no range.
    pub(super) fn new(app: &App, view: ReadSnapshot, range: Option<&ScanSpec>, offset: u64, limit: usize) -> Self {
        let keys: Box<dyn Iterator<Item = _> + Send> = match range {
            Some(range) => Box::new(view.scan(range)),
            None => Box::new(std::iter::empty()),
        };
        Self { view, now: app.now(), keys, offset, left: limit, steps: 0 }
    }

    /// The next key, which takes a place whether anything comes of it or not; none at the end.
    pub(super) async fn next(&mut self) -> Result<Option<(Bytes, Version)>> {
        while self.left > 0
            && let Some(found) = self.keys.next()
        {
            let (key, version) = found?;
            take_turns(self.steps).await;
            self.steps += 1;
            if !version.is_live(self.now) {
                continue;
            }
            if self.offset > 0 {
                self.offset -= 1;
                continue;
            }
            self.left -= 1;
            return Ok(Some((key, version)));
        }
        Ok(None)
    }

    /// Reads the state that is walked.
    pub(super) fn reader<'a>(&'a self, cx: &'a Context) -> Reader<'a> {
        Reader { context: cx, view: &self.view, now: self.now }
    }
}

/// The entries of a range of keys.
pub struct ScanWalk {
    keys: LiveKeys,
}

impl ScanWalk {
    /// Checks the request and takes the view.
    pub async fn begin(app: &App, cx: &Context, scan: &Scan) -> Result<Self> {
        let limit = result_limit(scan.limit)?;
        let key_len_max = settings(cx).await?.key_len_max;
        if over(scan.seek_key.len() + 1, key_len_max) || over(scan.prefix.len() + 1, key_len_max) {
            return Err(text::TREE_ILLEGAL_ARGUMENTS.into());
        }
        let view = view(cx, scan.since_tx).await?;
        Ok(Self { keys: LiveKeys::new(app, view, range(scan).as_ref(), scan.offset, limit) })
    }

    /// The next entry; none at the end.
    pub async fn next(&mut self, cx: &Context) -> Result<Option<Entry>> {
        while let Some((key, version)) = self.keys.next().await? {
            let reader = self.keys.reader(cx);
            let user_key = key.slice(1..);
            match reader.version(&key, &version).and_then(|found| reader.resolve(user_key, found)) {
                Ok(entry) => return Ok(Some(entry)),
                // A reference whose target is gone, or a value that was pruned, has used up its place.
                Err(error) if is_absence(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

/// Versions of a key; references are not followed.
pub struct HistoryWalk {
    view: ReadSnapshot,
    now: i64,
    key: Bytes,
    stored_key: Bytes,
    versions: std::vec::IntoIter<Version>,
    steps: usize,
}

impl HistoryWalk {
    /// Checks the request, takes the view and finds the versions; their values are read later.
    pub async fn begin(app: &App, cx: &Context, history: History) -> Result<Self> {
        let limit = u64::try_from(history.limit).map_err(|_| text::TREE_ILLEGAL_ARGUMENTS)?;
        let limit = result_limit(limit)?;
        let view = view(cx, history.since_tx).await?;
        let stored_key = stored_key(&history.key);
        let count = view.revisions(&stored_key)?;
        if count == 0 {
            return Err(text::KEY_NOT_FOUND.into());
        }
        if history.offset == count {
            return Err(text::NO_MORE_ENTRIES.into());
        }
        let versions = if history.offset > count {
            Vec::new()
        } else {
            view.history(&stored_key, history.offset, limit, history.desc)?
        };
        Ok(Self { view, now: app.now(), key: history.key, stored_key, versions: versions.into_iter(), steps: 0 })
    }

    /// The next version; none at the end.
    pub async fn next(&mut self, cx: &Context) -> Result<Option<Entry>> {
        for version in self.versions.by_ref() {
            take_turns(self.steps).await;
            self.steps += 1;
            let expired = version.metadata.is_expired(self.now);
            let reader = Reader { context: cx, view: &self.view, now: self.now };
            let value = if expired {
                Bytes::new()
            } else {
                // The first byte tells plain values from references; a deletion has not even that.
                let stored = match reader.version(&self.stored_key, &version) {
                    // Its revision and transaction are still there for who asks for them.
                    Err(Error::ValuePruned { .. }) => continue,
                    found => found?.stored,
                };
                if stored.is_empty() { stored } else { stored.slice(1..) }
            };
            return Ok(Some(Entry {
                tx: version.tx,
                key: self.key.clone(),
                value,
                metadata: version.metadata,
                expired,
                revision: version.revision,
                referenced_by: None,
            }));
        }
        Ok(None)
    }
}
