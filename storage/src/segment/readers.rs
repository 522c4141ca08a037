//! What readers keep between calls: open files and offset maps of closed segments, both bounded.
//!
//! Entries carry the cut epoch in which they were made. A cut that reaches the disk starts a new epoch, so nothing from
//! before it is used again, whichever reader put it here and when.

use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Layout, SegmentInfo, pruned, recover, scan};
use crate::error::{Damage, Error, FileOp, Result};
use crate::format::{self, SEGMENT_HEADER_BYTES, SIDECAR_HEADER_BYTES, SidecarHeader};
use crate::limits;
use crate::vfs::{File, OpenMode};

#[derive(Debug)]
struct Entry<T> {
    number: u64,
    epoch: u64,
    value: T,
}

/// Newest use last.
#[derive(Debug)]
struct Recent<T>(Vec<Entry<T>>);

impl<T: Clone> Recent<T> {
    fn get(&mut self, number: u64, epoch: u64) -> Option<T> {
        self.0.retain(|entry| entry.epoch >= epoch);
        let at = self.0.iter().position(|entry| entry.number == number && entry.epoch == epoch)?;
        let entry = self.0.remove(at);
        let value = entry.value.clone();
        self.0.push(entry);
        Some(value)
    }

    fn put(&mut self, number: u64, epoch: u64, value: T) {
        self.0.retain(|entry| entry.number != number);
        self.0.push(Entry { number, epoch, value });
    }
}

#[derive(Debug)]
pub(super) struct Readers {
    files: Mutex<Recent<Arc<dyn File>>>,
    maps: Mutex<Recent<Arc<[u32]>>>,
}

impl Readers {
    pub fn new() -> Self {
        Self { files: Mutex::new(Recent(Vec::new())), maps: Mutex::new(Recent(Vec::new())) }
    }

    pub fn memory_bytes(&self) -> usize {
        self.maps.lock().0.iter().map(|entry| size_of_val(&*entry.value)).sum()
    }

    pub fn forget(&self) {
        self.files.lock().0.clear();
        self.maps.lock().0.clear();
    }

    /// The segment's file, for reading.
    pub fn file(&self, layout: &Layout, number: u64, epoch: u64) -> Result<Arc<dyn File>> {
        if let Some(file) = self.files.lock().get(number, epoch) {
            return Ok(file);
        }
        let path = layout.segment_path(number);
        let file = layout.vfs.open(&path, OpenMode::Read).map_err(|e| Error::io(FileOp::Open, &path, e))?;
        // What the file is says itself: it may have been written again since the caller looked.
        let viewed = pruned::read_header(&*file, number, &path)
            .and_then(|header| Ok(Arc::from(pruned::view(file, &header, &path)?)));
        let file: Arc<dyn File> = viewed.map_err(|error| match error {
            Error::Corrupted { offset, damage, .. } => layout.corrupted(number, offset, damage),
            other => other,
        })?;
        let mut files = self.files.lock();
        files.put(number, epoch, Arc::clone(&file));
        let excess = files.0.len().saturating_sub(limits::READ_HANDLES_MAX);
        files.0.drain(..excess);
        Ok(file)
    }

    /// Another file has taken the place of the segment's.
    pub fn forget_segment(&self, number: u64) {
        self.files.lock().0.retain(|entry| entry.number != number);
    }

    /// Offsets of the frames of a closed segment: from memory, else from its sidecar, else from the segment itself.
    pub fn offsets(&self, layout: &Layout, segment: &SegmentInfo, epoch: u64) -> Result<Arc<[u32]>> {
        if let Some(map) = self.maps.lock().get(segment.number, epoch) {
            return Ok(map);
        }
        let offsets = match read_sidecar(layout, segment)? {
            Some(offsets) => offsets,
            None => {
                let path = layout.segment_path(segment.number);
                tracing::warn!(sidecar = %layout.sidecar_path(segment.number).display(), "sidecar is damaged, scanning");
                let file = self.file(layout, segment.number, epoch)?;
                let end = SEGMENT_HEADER_BYTES + segment.frame_bytes;
                let scan = scan::scan(&*file, &path, segment.first_log_id, end)?;
                if scan.frame_bytes != segment.frame_bytes || scan.last_log_id != Some(segment.last_log_id) {
                    let damage = scan.damage.unwrap_or(Damage::Missing);
                    return Err(layout.corrupted(segment.number, SEGMENT_HEADER_BYTES + scan.frame_bytes, damage));
                }
                scan.offsets
            }
        };
        let map: Arc<[u32]> = offsets.into();
        self.keep_offsets(segment.number, epoch, Arc::clone(&map));
        Ok(map)
    }

    /// Keeps the map of a segment that is or will be asked for.
    pub fn keep_offsets(&self, number: u64, epoch: u64, map: Arc<[u32]>) {
        let mut maps = self.maps.lock();
        maps.put(number, epoch, map);
        let bytes = |maps: &Recent<Arc<[u32]>>| -> usize { maps.0.iter().map(|e| size_of_val(&*e.value)).sum() };
        while maps.0.len() > 1 && bytes(&maps) > limits::SIDECAR_CACHE_BYTES {
            maps.0.remove(0);
        }
    }
}

/// Header of a sidecar that is there and whole; `None` means that it must be made anew.
pub(super) fn read_sidecar_header(layout: &Layout, path: &Path) -> Result<Option<(Box<dyn File>, SidecarHeader)>> {
    let read = |file: &dyn File| file.read_at(0, usize::try_from(SIDECAR_HEADER_BYTES).expect("a small constant"));
    let file = match layout.vfs.open(path, OpenMode::Read) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(FileOp::Open, path, e)),
    };
    let bytes = match read(&*file) {
        Ok(bytes) => bytes,
        // Torn, or a bad sector.
        Err(_) => return Ok(None),
    };
    let Ok(header) = SidecarHeader::decode(&bytes) else { return Ok(None) };
    let len = file.len().map_err(|e| Error::io(FileOp::Length, path, e))?;
    Ok((len == header.file_bytes()).then_some((file, header)))
}

/// Offsets of a closed segment from its sidecar; `None` when it must be made anew.
pub(super) fn read_sidecar(layout: &Layout, segment: &SegmentInfo) -> Result<Option<Vec<u32>>> {
    let path = layout.sidecar_path(segment.number);
    let Some((file, header)) = read_sidecar_header(layout, &path)? else { return Ok(None) };
    if !recover::describes(&header, layout, segment) {
        return Ok(None);
    }
    let len =
        usize::try_from(header.file_bytes() - SIDECAR_HEADER_BYTES).expect("at most a segment's worth of offsets");
    let bytes = file.read_at(SIDECAR_HEADER_BYTES, len).map_err(|e| Error::io(FileOp::Read, &path, e))?;
    Ok(format::decode_offsets(&header, &bytes).ok())
}
