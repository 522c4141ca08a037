//! A byte in a closed segment becomes another one, with a fitting checksum, while the node is down, and what it remembered of the
//! segment is lost: the segment is consistent in itself, and only the others can tell that it is not what was written.

use std::path::{Path, PathBuf};

use alhambra_storage::vfs::{OpenMode, Vfs};

use super::super::disk::SimDisk;
use super::super::setup::NAMES;
use super::super::world::World;
use super::{Fault, Incident};

/// See the module.
pub struct RotUnnoticed;

/// Length of a segment's header and of a frame's, bytes, and where the header has its first log index (`docs/format.md`).
const HEADER_BYTES: u64 = 256;
const FRAME_HEAD_BYTES: u64 = 8;
const FIRST_INDEX_AT: u64 = 56;
/// Where a checkpoint has the log index up to which all is applied, behind its head, the database's id, a byte and a term.
const APPLIED_AT: u64 = 16 + 16 + 1 + 8;

fn number(disk: &SimDisk, path: &Path, at: u64) -> Option<u64> {
    let file = disk.files().open(path, OpenMode::Read).ok()?;
    let bytes = file.read_at(at, 8).ok()?;
    Some(u64::from_be_bytes(bytes.as_ref().try_into().ok()?))
}

/// Closed segments of this disk below the last checkpoint, which all nodes have, and the next one too: nothing is applied from them
/// any more here, and nobody lacks what is in them, so that what they say is what is proven and nothing else.
fn old_segments(world: &World<'_>, node: usize) -> Vec<PathBuf> {
    let disk = &world.hosts[node].disk;
    let outside = &world.shared.borrow().outside;
    let has = |node: usize, path: &Path| world.hosts[node].disk.files().exists(path).unwrap_or(false);
    let is_old = |path: &Path| {
        let next: u64 = path.file_stem()?.to_str()?.parse().ok()?;
        let next = path.with_file_name(format!("{:010}.seg", next + 1));
        let checkpoint = path.parent()?.parent()?.join("checkpoint");
        let is_applied = number(disk, &next, FIRST_INDEX_AT)? < number(disk, &checkpoint, APPLIED_AT)?;
        Some(is_applied && (0..world.hosts.len()).all(|i| outside.contains(&i) || has(i, &next)))
    };
    disk.find(Path::new("/data/databases"), &|path| {
        path.extension().is_some_and(|extension| extension == "seg") && is_old(path) == Some(true)
    })
}

/// Changes the end of one frame, and its checksum with it; whether there was one.
fn twist(disk: &SimDisk, path: &Path, pick: impl Fn(u64) -> u64) -> std::io::Result<bool> {
    let files = disk.files();
    let file = files.open(path, OpenMode::ReadWrite)?;
    let (mut frames, mut at, len) = (Vec::new(), HEADER_BYTES, file.len()?);
    while at + FRAME_HEAD_BYTES < len {
        let head = file.read_at(at, 4)?;
        let body = u64::from(u32::from_be_bytes([head[0], head[1], head[2], head[3]]));
        if body == 0 || at + FRAME_HEAD_BYTES + body > len {
            break;
        }
        frames.push((at, body));
        at += FRAME_HEAD_BYTES + body;
    }
    if frames.is_empty() {
        return Ok(false);
    }
    let (at, len) = frames[pick(frames.len() as u64) as usize];
    let mut body = file.read_at(at + FRAME_HEAD_BYTES, len as usize)?.to_vec();
    if let Some(last) = body.last_mut() {
        *last ^= 1;
    }
    file.write_at(at + 4, &crc32c::crc32c(&body).to_be_bytes())?;
    file.write_at(at + FRAME_HEAD_BYTES, &body)?;
    file.sync_data()?;
    let sidecar = path.with_extension("idx");
    if files.exists(&sidecar)? {
        files.remove_file(&sidecar)?;
    }
    files.sync_dir(path.parent().expect("in a folder"))?;
    Ok(true)
}

impl Fault for RotUnnoticed {
    fn name(&self) -> &'static str {
        "rot-unnoticed"
    }

    fn rots(&self) -> bool {
        true
    }

    fn fits(&self, nodes: usize) -> bool {
        nodes > 1
    }

    /// A closed segment that all nodes have, and a checkpoint behind it, are rare in a short life: one in 22 of 15 s.
    fn comes_within(&self) -> u64 {
        200
    }

    fn own_draw(&self) -> Option<(&'static str, u64)> {
        Some(("rot that fits", 3))
    }

    fn inject(&self, world: &mut World<'_>, _: std::time::Duration) -> Option<Incident> {
        let node = world.victim()?;
        if old_segments(world, node).is_empty() {
            return None;
        }
        // What is there after the crash counts: it may have taken a checkpoint back.
        world.crash(node);
        let segments = old_segments(world, node);
        let path = segments.get(world.rng.below(segments.len().max(1) as u64) as usize);
        let twisted = path.filter(|path| {
            twist(&world.hosts[node].disk, path, |count| world.rng.below(count)).is_ok_and(|twisted| twisted)
        });
        let what = match twisted {
            Some(path) => format!("{} is down, and a byte is another one in {}", NAMES[node], path.display()),
            None => format!("{} is down", NAMES[node]),
        };
        Some(Incident::until(what, world.between(100, 2_000), move |world| {
            world.start(node);
            format!("{} starts", NAMES[node])
        }))
    }
}
