//! An append-only run of bytes in chunk files: what the derived logs (`tx/`, `commit/`, `aht/`, `seal/`) are made of.
//!
//! Appending touches memory only. Bytes reach their files when enough wait ([`ChunkLog::spill`]) and the disk at a
//! checkpoint ([`ChunkLog::sync`]); readers see them from the moment of the append, and never wait for a write or a sync:
//! a buffer that is being written stays readable until its bytes can be read from the file.
//!
//! ```text
//! offset 0 ........................ written ............ written + writing ............ end
//!        [ in files, maybe not synced ][ being written    ][ appended since            ]
//! ```
//!
//! Nothing here is synced on the commit path: a derived log is cut to the checkpoint at open and appended anew from the
//! ledger.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use alhambra_ledger::ids::DatabaseId;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use crate::error::{Damage, Error, FileOp, Result};
use crate::format::derived::{self, CHUNK_HEADER_BYTES, ChunkHeader, LogKind};
use crate::limits::{COPY_BYTES, UNWRITTEN_BYTES_MAX, UNWRITTEN_BYTES_SPILL};
use crate::vfs::{File, OpenMode, Vfs};
use crate::wire::Put;

/// Length and checksum of a record, bytes.
const RECORD_HEAD_BYTES: usize = 8;

/// How much a database has in memory that belongs in its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unwritten {
    /// Not worth a write.
    Little,
    /// It should be written.
    Much,
    /// Nothing more should be applied before it is.
    TooMuch,
}

/// What a log may do with its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Write,
    /// Nothing is written; what is appended stays in memory until [`ChunkLog::compare`] finds it in the files.
    Read,
}

/// One derived log.
#[derive(Debug)]
pub(crate) struct ChunkLog {
    access: Access,
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    kind: LogKind,
    database: DatabaseId,
    chunk_bytes: u64,
    tail: RwLock<Tail>,
    writer: Mutex<Writer>,
    files: RwLock<BTreeMap<u64, Arc<dyn File>>>,
    /// Damage was met; the log is to be derived again.
    suspect: AtomicBool,
    /// The same, and it was rot: what could not be read may be whole.
    rotten: AtomicBool,
}

/// What is not in the files yet.
#[derive(Debug)]
struct Tail {
    written: u64,
    writing: Option<Arc<Vec<u8>>>,
    open: Vec<u8>,
    /// Bytes that wait before they are written out; more while the disk is full.
    spill_bytes: usize,
}

impl Tail {
    fn open_at(&self) -> u64 {
        self.written + self.writing.as_ref().map_or(0, |bytes| bytes.len() as u64)
    }

    fn end(&self) -> u64 {
        self.open_at() + self.open.len() as u64
    }

    fn waiting_bytes(&self) -> usize {
        self.open.len() + self.writing.as_ref().map_or(0, |bytes| bytes.len())
    }

    /// Copies the part of `at..at + out.len()` that is in memory to its place in `out`.
    fn copy(&self, at: u64, out: &mut [u8]) {
        let mut part = |from: u64, bytes: &[u8]| {
            let start = at.max(from);
            let end = (at + out.len() as u64).min(from + bytes.len() as u64);
            if start < end {
                let source = &bytes[(start - from) as usize..(end - from) as usize];
                out[(start - at) as usize..(end - at) as usize].copy_from_slice(source);
            }
        };
        if let Some(writing) = &self.writing {
            part(self.written, writing);
        }
        part(self.open_at(), &self.open);
    }
}

/// What the next sync has to make durable.
#[derive(Debug, Default)]
struct Writer {
    unsynced: BTreeSet<u64>,
    names_unsynced: bool,
}

impl ChunkLog {
    /// Opens the log and cuts it to `len` bytes. Fewer bytes than that are damage: the checkpoint says that they were
    /// synced. With `len` 0 whatever is there goes.
    pub(crate) fn open(
        vfs: &Arc<dyn Vfs>,
        dir: PathBuf,
        kind: LogKind,
        database: DatabaseId,
        chunk_bytes: u64,
        len: u64,
    ) -> Result<Self> {
        vfs.create_dir_all(&dir).map_err(|e| Error::io(FileOp::CreateDir, &dir, e))?;
        let log = Self { access: Access::Write, ..Self::open_read_only(vfs, dir, kind, database, chunk_bytes, len) };
        log.cut(len)?;
        Ok(log)
    }

    /// Opens the first `len` bytes of a log without touching any file.
    pub(crate) fn open_read_only(
        vfs: &Arc<dyn Vfs>,
        dir: PathBuf,
        kind: LogKind,
        database: DatabaseId,
        chunk_bytes: u64,
        len: u64,
    ) -> Self {
        Self {
            access: Access::Read,
            vfs: Arc::clone(vfs),
            dir,
            kind,
            database,
            chunk_bytes,
            tail: RwLock::new(Tail {
                written: len,
                writing: None,
                open: Vec::new(),
                spill_bytes: UNWRITTEN_BYTES_SPILL,
            }),
            writer: Mutex::new(Writer::default()),
            files: RwLock::new(BTreeMap::new()),
            suspect: AtomicBool::new(false),
            rotten: AtomicBool::new(false),
        }
    }

    fn cut(&self, len: u64) -> Result<()> {
        let chunks = len.div_ceil(self.chunk_bytes);
        for (name, _) in self.vfs.read_dir(&self.dir).map_err(|e| Error::io(FileOp::ReadDir, &self.dir, e))? {
            let path = self.dir.join(&name);
            if derived::chunk_number(&name).is_none_or(|number| number >= chunks) {
                self.vfs.remove_file(&path).map_err(|e| Error::io(FileOp::Remove, &path, e))?;
            }
        }
        for number in 0..chunks {
            let path = self.chunk_path(number);
            let file = self.chunk(number)?;
            let bytes_want = CHUNK_HEADER_BYTES + (len - number * self.chunk_bytes).min(self.chunk_bytes);
            let bytes_found = file.len().map_err(|e| Error::io(FileOp::Length, &path, e))?;
            if bytes_found < bytes_want {
                return Err(self.corrupted(number * self.chunk_bytes, Damage::Missing));
            }
            if bytes_found > bytes_want {
                let file = self.vfs.open(&path, OpenMode::ReadWrite).map_err(|e| Error::io(FileOp::Open, &path, e))?;
                file.set_len(bytes_want).map_err(|e| Error::io(FileOp::SetLength, &path, e))?;
            }
        }
        Ok(())
    }

    /// Bytes of the log per file.
    pub(crate) fn chunk_bytes(&self) -> u64 {
        self.chunk_bytes
    }

    /// Bytes that are in memory only.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.tail.read().waiting_bytes()
    }

    /// Bytes appended so far.
    pub(crate) fn end(&self) -> u64 {
        self.tail.read().end()
    }

    /// Appends `bytes` in memory and answers their offset.
    pub(crate) fn append(&self, bytes: &[u8]) -> u64 {
        let mut tail = self.tail.write();
        let at = tail.end();
        tail.open.extend_from_slice(bytes);
        at
    }

    /// Adds a record of a log that consists of them: length, checksum, content. Answers its place and its length in all.
    pub(crate) fn append_record(&self, content: &[u8]) -> (u64, usize) {
        let mut record = Vec::with_capacity(RECORD_HEAD_BYTES + content.len());
        record.put_u32(u32::try_from(content.len()).expect("it came in a frame"));
        record.put_u32(crc32c::crc32c(content));
        record.put_bytes(content);
        (self.append(&record), record.len())
    }

    /// The content of the record at `at`, and the length of the record in all.
    pub(crate) fn read_record(&self, at: u64) -> Result<(Vec<u8>, usize)> {
        let mut head = [0; RECORD_HEAD_BYTES];
        self.read_into(at, &mut head)?;
        let (len, crc) = head.split_at(4);
        let len = u32::from_be_bytes(len.try_into().expect("4 bytes")) as usize;
        let content = self.read(at + RECORD_HEAD_BYTES as u64, len)?;
        if crc32c::crc32c(&content).to_be_bytes() != crc {
            return Err(self.corrupted(at, Damage::Checksum));
        }
        Ok((content, RECORD_HEAD_BYTES + len))
    }

    /// Copies `out.len()` bytes at `at`; all of them must have been appended.
    pub(crate) fn read_into(&self, at: u64, out: &mut [u8]) -> Result<()> {
        let written = {
            let tail = self.tail.read();
            let end = at.checked_add(out.len() as u64);
            if end.is_none_or(|end| end > tail.end()) {
                return Err(self.corrupted(at, Damage::Missing));
            }
            tail.copy(at, out);
            tail.written
        };
        let from_files = usize::try_from(written.saturating_sub(at)).unwrap_or(usize::MAX).min(out.len());
        self.read_files(at, &mut out[..from_files])
    }

    /// Copies bytes from the files, which must hold them.
    fn read_files(&self, at: u64, out: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < out.len() {
            let offset = at + done as u64;
            let (number, within) = (offset / self.chunk_bytes, offset % self.chunk_bytes);
            let len = (out.len() - done).min((self.chunk_bytes - within) as usize);
            let file = self.chunk(number)?;
            let bytes = file.read_at(CHUNK_HEADER_BYTES + within, len).map_err(|e| match e.kind() {
                std::io::ErrorKind::UnexpectedEof => self.corrupted(offset, Damage::Missing),
                _ => {
                    self.suspect.store(true, Ordering::Relaxed);
                    Error::io(FileOp::Read, &self.chunk_path(number), e)
                }
            })?;
            out[done..done + len].copy_from_slice(&bytes);
            done += len;
        }
        Ok(())
    }

    /// As [`ChunkLog::read_into`].
    pub(crate) fn read(&self, at: u64, len: usize) -> Result<Vec<u8>> {
        if at.checked_add(len as u64).is_none_or(|end| end > self.end()) {
            return Err(self.corrupted(at, Damage::Missing));
        }
        let mut out = vec![0; len];
        self.read_into(at, &mut out)?;
        Ok(out)
    }

    /// Compares what was appended in memory with the files, which hold `size` bytes of this log, and forgets it when they
    /// are equal; for logs that are only read.
    ///
    /// # Errors
    /// With the offset up to which they are equal: [`Error::Corrupted`] where the files differ, end, or are damaged; IO.
    pub(crate) fn compare(&self, size: u64) -> std::result::Result<(), (u64, Error)> {
        let mut tail = self.tail.write();
        let appended = std::mem::take(&mut tail.open);
        let mut rest = &appended[..];
        while !rest.is_empty() {
            let at = tail.written;
            let piece = (self.chunk_bytes - at % self.chunk_bytes).min(size.saturating_sub(at));
            let mut found = vec![0; usize::try_from(piece).unwrap_or(usize::MAX).min(rest.len())];
            if found.is_empty() {
                return Err((at, self.corrupted(at, Damage::Missing)));
            }
            self.read_files(at, &mut found).map_err(|error| (at, error))?;
            let equal = found.iter().zip(rest).take_while(|(found, want)| found == want).count();
            tail.written = at + equal as u64;
            if equal < found.len() {
                return Err((tail.written, self.corrupted(tail.written, Damage::Differs)));
            }
            rest = &rest[equal..];
        }
        Ok(())
    }

    /// How much waits to be written.
    pub(crate) fn unwritten(&self) -> Unwritten {
        let tail = self.tail.read();
        match tail.waiting_bytes() {
            _ if self.access == Access::Read => Unwritten::Little,
            waiting if waiting >= UNWRITTEN_BYTES_MAX => Unwritten::TooMuch,
            waiting if waiting >= tail.spill_bytes => Unwritten::Much,
            _ => Unwritten::Little,
        }
    }

    /// Writes to the files when enough bytes wait. While a sync is running nothing is written until the buffer's bound is
    /// reached, because a write may have to wait for the sync. When the disk is full the bytes wait in memory, up to the
    /// same bound.
    pub(crate) fn spill(&self) -> Result<()> {
        if self.access == Access::Read {
            return Ok(());
        }
        let (waiting, spill_bytes) = {
            let tail = self.tail.read();
            (tail.waiting_bytes(), tail.spill_bytes)
        };
        if waiting < spill_bytes {
            return Ok(());
        }
        let writer = if waiting < UNWRITTEN_BYTES_MAX { self.writer.try_lock() } else { Some(self.writer.lock()) };
        let Some(mut writer) = writer else { return Ok(()) };
        match self.write_out(&mut writer) {
            Err(error) if error.waits_for_space() && waiting < UNWRITTEN_BYTES_MAX => {
                self.tail.write().spill_bytes = waiting.saturating_mul(2).min(UNWRITTEN_BYTES_MAX);
                Ok(())
            }
            written => written,
        }
    }

    /// Writes everything appended before the call and makes it durable.
    pub(crate) fn sync(&self) -> Result<()> {
        let mut writer = self.writer.lock();
        self.write_out(&mut writer)?;
        while let Some(&number) = writer.unsynced.first() {
            let path = self.chunk_path(number);
            self.chunk(number)?.sync_data().map_err(|e| Error::io(FileOp::Sync, &path, e))?;
            writer.unsynced.remove(&number);
        }
        if writer.names_unsynced {
            self.vfs.sync_dir(&self.dir).map_err(|e| Error::io(FileOp::SyncDir, &self.dir, e))?;
            writer.names_unsynced = false;
        }
        Ok(())
    }

    fn write_out(&self, writer: &mut Writer) -> Result<()> {
        // What an earlier write that found no space has left goes first, to the same place as then.
        while self.write_one_buffer(writer)? {}
        self.tail.write().spill_bytes = UNWRITTEN_BYTES_SPILL;
        Ok(())
    }

    /// False when nothing waits.
    fn write_one_buffer(&self, writer: &mut Writer) -> Result<bool> {
        let (mut at, bytes) = {
            let mut tail = self.tail.write();
            let bytes = match &tail.writing {
                Some(bytes) => Arc::clone(bytes),
                None if tail.open.is_empty() => return Ok(false),
                None => Arc::new(std::mem::take(&mut tail.open)),
            };
            tail.writing = Some(Arc::clone(&bytes));
            (tail.written, bytes)
        };
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (number, within) = (at / self.chunk_bytes, at % self.chunk_bytes);
            let len = rest.len().min((self.chunk_bytes - within) as usize);
            let file = if within == 0 { self.make_chunk(number, writer)? } else { self.chunk(number)? };
            writer.unsynced.insert(number);
            file.write_at(CHUNK_HEADER_BYTES + within, &rest[..len])
                .map_err(|e| Error::io(FileOp::Write, &self.chunk_path(number), e))?;
            at += len as u64;
            rest = &rest[len..];
        }
        let mut tail = self.tail.write();
        tail.written = at;
        tail.writing = None;
        Ok(true)
    }

    fn make_chunk(&self, number: u64, writer: &mut Writer) -> Result<Arc<dyn File>> {
        let path = self.chunk_path(number);
        writer.names_unsynced = true;
        let file = self.vfs.open(&path, OpenMode::Create).map_err(|e| Error::io(FileOp::Create, &path, e))?;
        let header = self.header(number).encode();
        file.write_at(0, &header).map_err(|e| Error::io(FileOp::Write, &path, e))?;
        let file: Arc<dyn File> = Arc::from(file);
        self.files.write().insert(number, Arc::clone(&file));
        Ok(file)
    }

    /// The open file of a chunk that exists; its header is checked when it is opened.
    fn chunk(&self, number: u64) -> Result<Arc<dyn File>> {
        if let Some(file) = self.files.read().get(&number) {
            return Ok(Arc::clone(file));
        }
        let mode = match self.access {
            Access::Write => OpenMode::ReadWrite,
            Access::Read => OpenMode::Read,
        };
        let file = self.open_chunk(number, mode)?;
        self.check_header(number, &*file)?;
        let file: Arc<dyn File> = Arc::from(file);
        Ok(Arc::clone(self.files.write().entry(number).or_insert(file)))
    }

    /// A chunk's file, which must be there.
    fn open_chunk(&self, number: u64, mode: OpenMode) -> Result<Box<dyn File>> {
        let path = self.chunk_path(number);
        match self.vfs.open(&path, mode) {
            Ok(file) => Ok(file),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Err(self.corrupted(number * self.chunk_bytes, Damage::Missing))
            }
            Err(e) => Err(Error::io(FileOp::Open, &path, e)),
        }
    }

    fn check_header(&self, number: u64, file: &dyn File) -> Result<()> {
        let path = self.chunk_path(number);
        let header = match file.read_at(0, CHUNK_HEADER_BYTES as usize) {
            Ok(header) => header,
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Bytes::new(),
            Err(e) => return Err(Error::io(FileOp::Read, &path, e)),
        };
        self.header(number).check(&header, &path).inspect_err(|_| self.note_rot())
    }

    pub(crate) fn chunk_path(&self, number: u64) -> PathBuf {
        self.dir.join(derived::chunk_name(number))
    }

    /// Damage at a logical offset, told as file and offset within it.
    pub(crate) fn corrupted(&self, at: u64, damage: Damage) -> Error {
        self.note_rot();
        Error::Corrupted {
            path: self.chunk_path(at / self.chunk_bytes),
            segment: None,
            offset: CHUNK_HEADER_BYTES + at % self.chunk_bytes,
            damage,
        }
    }

    /// Whether damage was met since the log was found or made whole.
    pub(crate) fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Relaxed)
    }

    /// Whether bytes that are wrong were met since then.
    pub(crate) fn is_rotten(&self) -> bool {
        self.rotten.load(Ordering::Relaxed)
    }

    fn note_rot(&self) {
        self.suspect.store(true, Ordering::Relaxed);
        self.rotten.store(true, Ordering::Relaxed);
    }

    /// The log is whole.
    pub(crate) fn clear_suspect(&self) {
        self.suspect.store(false, Ordering::Relaxed);
        self.rotten.store(false, Ordering::Relaxed);
    }

    /// Bytes that are in the files.
    pub(crate) fn written(&self) -> u64 {
        self.tail.read().written
    }

    /// Reads the header of each file as it is now, and its length; answers how many bytes were read.
    pub(crate) fn check_files(&self) -> Result<u64> {
        let chunks = Self::files(self.chunk_bytes, self.written());
        let mut bytes = 0;
        for (number, (_, len)) in (0u64..).zip(chunks) {
            let file = self.open_chunk(number, OpenMode::Read)?;
            if file.len().map_err(|e| Error::io(FileOp::Length, &self.chunk_path(number), e))? < len {
                return Err(self.corrupted(number * self.chunk_bytes, Damage::Missing));
            }
            self.check_header(number, &*file)?;
            bytes += CHUNK_HEADER_BYTES;
        }
        Ok(bytes)
    }

    /// Takes those files of `again` that differ from the own ones, as far as these are written: a log derived again, equal in
    /// its bytes, with all its files durable. Answers how many.
    pub(crate) fn adopt(&self, again: &Self, chunks: Range<u64>) -> Result<u64> {
        // Nothing is written meanwhile.
        let _writer = self.writer.lock();
        let written = self.written();
        let mut adopted = 0;
        for (number, (_, len)) in (0u64..).zip(Self::files(self.chunk_bytes, written)) {
            let (own, other) = (self.chunk_path(number), again.chunk_path(number));
            if !chunks.contains(&number) || self.same_bytes(&own, &other, len)? {
                continue;
            }
            self.vfs.rename(&other, &own).map_err(|e| Error::io(FileOp::Rename, &own, e))?;
            // Whoever reads through the old handle reads the damaged file, and is told so.
            self.files.write().remove(&number);
            adopted += 1;
        }
        if adopted > 0 {
            self.vfs.sync_dir(&self.dir).map_err(|e| Error::io(FileOp::SyncDir, &self.dir, e))?;
        }
        Ok(adopted)
    }

    fn same_bytes(&self, own: &Path, other: &Path, len: u64) -> Result<bool> {
        let open = |path: &Path| self.vfs.open(path, OpenMode::Read).map_err(|e| Error::io(FileOp::Open, path, e));
        let other_file = open(other)?;
        let own_file = match open(own) {
            Ok(file) => file,
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        if own_file.len().map_err(|e| Error::io(FileOp::Length, own, e))? < len {
            return Ok(false);
        }
        let mut at = 0;
        while at < len {
            let piece = (len - at).min(COPY_BYTES as u64);
            let read = |file: &dyn File, path: &Path| {
                file.read_at(at, piece as usize).map_err(|e| Error::io(FileOp::Read, path, e))
            };
            let same = match read(&*own_file, own) {
                // What cannot be read is as good as damaged.
                Err(error) if error.is_unreadable() => false,
                own => own? == read(&*other_file, other)?,
            };
            if !same {
                return Ok(false);
            }
            at += piece;
        }
        Ok(true)
    }

    fn header(&self, number: u64) -> ChunkHeader {
        ChunkHeader { kind: self.kind, database: self.database, number, chunk_bytes: self.chunk_bytes }
    }

    /// Names, relative to the log's folder, and lengths of the chunk files of the first `len` bytes.
    pub(crate) fn files(chunk_bytes: u64, len: u64) -> impl Iterator<Item = (String, u64)> {
        (0..len.div_ceil(chunk_bytes)).map(move |number| {
            (derived::chunk_name(number), CHUNK_HEADER_BYTES + (len - number * chunk_bytes).min(chunk_bytes))
        })
    }

    /// The folder.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}
