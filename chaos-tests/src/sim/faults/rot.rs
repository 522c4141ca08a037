//! A bit that flips in a closed segment or in a derived file, of any database and of `systemdb`.

use std::path::Path;
use std::time::Duration;

use super::super::setup::NAMES;
use super::super::world::World;
use super::{Fault, Incident};

/// See the module.
pub struct Rot;

/// Segments that have a sidecar are closed; the newest one is what a power loss may have cut, so only the other copies tell what
/// rotted there.
fn may_rot(world: &World<'_>, node: usize, path: &Path) -> bool {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("seg") => {
            let files = world.hosts[node].disk.files();
            alhambra_storage::vfs::Vfs::exists(&files, &path.with_extension("idx")).unwrap_or(false)
        }
        Some("run" | "log") => true,
        _ => false,
    }
}

impl Fault for Rot {
    fn name(&self) -> &'static str {
        "rot"
    }

    fn rots(&self) -> bool {
        true
    }

    fn fits(&self, nodes: usize) -> bool {
        nodes > 1
    }

    fn inject(&self, world: &mut World<'_>, _: Duration) -> Option<Incident> {
        let node = world.victim()?;
        let files = world.hosts[node].disk.find(Path::new("/data"), &|path| may_rot(world, node, path));
        if files.is_empty() {
            return None;
        }
        let path = &files[world.rng.below(files.len() as u64) as usize];
        let at = world.hosts[node].disk.flip(path, &world.rng).ok()?;
        Some(Incident::done(format!("a bit flips at {at} of {} on {}", path.display(), NAMES[node])))
    }
}
