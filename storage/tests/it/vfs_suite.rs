//! What every `Vfs` must do, run against the operating system and against memory; then what only the memory disk and the
//! faulty one do.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alhambra_storage::vfs::faulty::{Fault, FaultyVfs, Step, StepKind};
use alhambra_storage::vfs::mem::{Crash, MemVfs};
use alhambra_storage::vfs::os::OsVfs;
use alhambra_storage::vfs::pooled::PooledVfs;
use alhambra_storage::vfs::{File, FileKind, OpenMode, Vfs};
use bytes::Bytes;

/// Runs a case on each kind of disk, in an empty folder.
fn on_each(case: fn(&dyn Vfs, &Path)) {
    let dir = tempfile::tempdir().unwrap();
    case(&OsVfs::new(), dir.path());
    let pooled = dir.path().join("pooled");
    std::fs::create_dir(&pooled).unwrap();
    case(&PooledVfs::new(Arc::new(OsVfs::new()), 1), &pooled);
    let mem = MemVfs::new();
    mem.create_dir_all(Path::new("/work")).unwrap();
    case(&mem, Path::new("/work"));
    let faulty = FaultyVfs::new(Arc::new(MemVfs::new()));
    faulty.create_dir_all(Path::new("/work")).unwrap();
    case(&faulty, Path::new("/work"));
}

fn put(vfs: &dyn Vfs, path: &Path, bytes: &[u8]) -> Box<dyn File> {
    let file = vfs.open(path, OpenMode::Create).unwrap();
    file.set_len(0).unwrap();
    file.write_at(0, bytes).unwrap();
    file
}

fn get(vfs: &dyn Vfs, path: &Path) -> Bytes {
    let file = vfs.open(path, OpenMode::Read).unwrap();
    file.read_at(0, usize::try_from(file.len().unwrap()).unwrap()).unwrap()
}

fn kind<T>(result: std::io::Result<T>) -> ErrorKind {
    result.map(|_| ()).expect_err("the call must fail").kind()
}

#[test]
fn open_modes_say_whether_a_file_must_exist() {
    on_each(|vfs, dir| {
        let (a, b) = (dir.join("a"), dir.join("b"));
        for mode in [OpenMode::Read, OpenMode::ReadWrite] {
            assert_eq!(kind(vfs.open(&a, mode)), ErrorKind::NotFound);
        }
        vfs.open(&a, OpenMode::Create).unwrap().write_at(0, b"x").unwrap();
        vfs.open(&a, OpenMode::Create).unwrap();
        assert_eq!(&get(vfs, &a)[..], b"x", "opening does not cut");
        assert_eq!(kind(vfs.open(&a, OpenMode::CreateNew)), ErrorKind::AlreadyExists);
        vfs.open(&b, OpenMode::CreateNew).unwrap();
        assert!(vfs.open(&b, OpenMode::ReadWrite).unwrap().is_empty().unwrap());
        assert!(vfs.open(&a, OpenMode::Read).unwrap().write_at(0, b"y").is_err());
        assert!(vfs.open(&a, OpenMode::Read).unwrap().set_len(0).is_err());
        assert_eq!(kind(vfs.open(&dir.join("none/a"), OpenMode::Create)), ErrorKind::NotFound);
        vfs.create_dir_all(&dir.join("sub")).unwrap();
        for mode in [OpenMode::Read, OpenMode::ReadWrite] {
            assert_eq!(kind(vfs.open(&dir.join("sub"), mode)), ErrorKind::IsADirectory);
        }
    });
}

#[test]
fn reads_and_writes_are_positioned_and_whole() {
    on_each(|vfs, dir| {
        let file = put(vfs, &dir.join("f"), b"hello");
        file.write_at(3, b"LOW").unwrap();
        file.write_at(8, b"!").unwrap();
        assert_eq!(&file.read_at(0, 9).unwrap()[..], b"helLOW\0\0!");
        assert_eq!(&file.read_at(2, 0).unwrap()[..], b"");
        assert_eq!(kind(file.read_at(5, 5)), ErrorKind::UnexpectedEof);
        assert_eq!(kind(file.read_at(100, 1)), ErrorKind::UnexpectedEof);
        assert_eq!(file.len().unwrap(), 9);
        let other = vfs.open(&dir.join("f"), OpenMode::Read).unwrap();
        file.write_at(0, b"J").unwrap();
        assert_eq!(&other.read_at(0, 5).unwrap()[..], b"JelLO", "handles see each other's writes");
    });
}

#[test]
fn a_cut_file_grows_again_with_zeros() {
    on_each(|vfs, dir| {
        let file = put(vfs, &dir.join("f"), b"abcdef");
        file.set_len(2).unwrap();
        assert_eq!(file.len().unwrap(), 2);
        file.set_len(5).unwrap();
        assert_eq!(&file.read_at(0, 5).unwrap()[..], b"ab\0\0\0");
        file.sync_data().unwrap();
        assert_eq!(&file.read_at(0, 5).unwrap()[..], b"ab\0\0\0");
    });
}

#[test]
fn folders_list_their_names_in_order() {
    on_each(|vfs, dir| {
        assert!(vfs.read_dir(dir).unwrap().is_empty());
        vfs.create_dir_all(&dir.join("m/n")).unwrap();
        vfs.create_dir_all(&dir.join("m/n")).unwrap();
        for name in ["z", "a", "k"] {
            put(vfs, &dir.join(name), b"");
        }
        let names = vfs.read_dir(dir).unwrap();
        let expected = [("a", FileKind::File), ("k", FileKind::File), ("m", FileKind::Dir), ("z", FileKind::File)];
        assert_eq!(names, expected.map(|(name, kind)| (name.to_owned(), kind)));
        assert_eq!(kind(vfs.read_dir(&dir.join("none"))), ErrorKind::NotFound);
        assert!(vfs.create_dir_all(&dir.join("a")).is_err(), "a file is in the way");
        assert!(vfs.create_dir_all(&dir.join("a/b")).is_err(), "a file is in the way");
        vfs.sync_dir(dir).unwrap();
        assert!(vfs.sync_dir(&dir.join("none")).is_err());
    });
}

#[test]
fn rename_replaces_and_moves() {
    on_each(|vfs, dir| {
        let (a, b) = (dir.join("a"), dir.join("sub/b"));
        vfs.create_dir_all(&dir.join("sub")).unwrap();
        put(vfs, &b, b"old");
        let file = put(vfs, &a, b"new");
        vfs.rename(&a, &b).unwrap();
        assert!(!vfs.exists(&a).unwrap());
        assert_eq!(&get(vfs, &b)[..], b"new");
        file.write_at(3, b"er").unwrap();
        assert_eq!(&get(vfs, &b)[..], b"newer", "a handle follows its file");
        vfs.rename(&b, &b).unwrap();
        assert!(vfs.exists(&b).unwrap());
        assert_eq!(kind(vfs.rename(&a, &b)), ErrorKind::NotFound);

        vfs.rename(&dir.join("sub"), &dir.join("moved")).unwrap();
        assert_eq!(&get(vfs, &dir.join("moved/b"))[..], b"newer");
        vfs.create_dir_all(&dir.join("full/x")).unwrap();
        assert_eq!(kind(vfs.rename(&dir.join("moved"), &dir.join("full"))), ErrorKind::DirectoryNotEmpty);
    });
}

#[test]
fn remove_takes_files_and_whole_folders() {
    on_each(|vfs, dir| {
        let a = dir.join("a");
        let file = put(vfs, &a, b"bytes");
        vfs.remove_file(&a).unwrap();
        assert!(!vfs.exists(&a).unwrap());
        assert_eq!(&file.read_at(0, 5).unwrap()[..], b"bytes", "an open file outlives its name");
        assert_eq!(kind(vfs.remove_file(&a)), ErrorKind::NotFound);
        put(vfs, &a, b"");
        assert!(get(vfs, &a).is_empty(), "the name is free again");

        vfs.create_dir_all(&dir.join("d/e")).unwrap();
        put(vfs, &dir.join("d/e/f"), b"");
        assert!(vfs.remove_file(&dir.join("d")).is_err());
        vfs.remove_dir_all(&dir.join("d")).unwrap();
        assert!(!vfs.exists(&dir.join("d/e/f")).unwrap());
        assert_eq!(kind(vfs.remove_dir_all(&dir.join("d"))), ErrorKind::NotFound);
    });
}

#[test]
fn a_lock_is_exclusive_until_dropped() {
    on_each(|vfs, dir| {
        let path = dir.join("LOCK");
        let held = vfs.lock(&path).unwrap();
        assert_eq!(kind(vfs.lock(&path)), ErrorKind::WouldBlock);
        vfs.lock(&dir.join("OTHER")).unwrap();
        drop(held);
        drop(vfs.lock(&path).unwrap());
        assert!(vfs.exists(&path).unwrap(), "the file stays");
    });
}

// The memory disk.

fn root() -> (MemVfs, PathBuf) {
    let mem = MemVfs::new();
    mem.create_dir_all(Path::new("d")).unwrap();
    (mem, PathBuf::from("d"))
}

#[test]
fn a_power_loss_keeps_what_was_synced_and_nothing_else() {
    let (mem, dir) = root();
    let (a, b) = (dir.join("a"), dir.join("b"));
    let file = put(&mem, &a, b"first");
    file.sync_data().unwrap();
    mem.sync_dir(&dir).unwrap();
    file.write_at(0, b"SECOND").unwrap();
    put(&mem, &b, b"bytes durable, name not").sync_data().unwrap();
    mem.crash(Crash::PowerLoss);
    assert_eq!(&get(&mem, &a)[..], b"first");
    assert!(!mem.exists(&b).unwrap());
    assert!(file.read_at(0, 1).is_err(), "the process that had it is gone");
    assert!(file.write_at(0, b"x").is_err());
    assert!(file.sync_data().is_err());

    // A name without synced bytes is an empty file; a length is bytes too.
    let file = put(&mem, &b, b"never synced");
    mem.sync_dir(&dir).unwrap();
    mem.crash(Crash::PowerLoss);
    assert!(get(&mem, &b).is_empty());
    drop(file);
    let file = mem.open(&a, OpenMode::ReadWrite).unwrap();
    file.set_len(1).unwrap();
    mem.crash(Crash::PowerLoss);
    assert_eq!(&get(&mem, &a)[..], b"first");
}

#[test]
fn removals_and_renames_are_undone_by_a_power_loss_until_the_folder_is_synced() {
    for sync in [false, true] {
        let (mem, dir) = root();
        for name in ["removed", "renamed"] {
            put(&mem, &dir.join(name), name.as_bytes()).sync_data().unwrap();
        }
        mem.create_dir_all(&dir.join("sub")).unwrap();
        put(&mem, &dir.join("sub/below"), b"below").sync_data().unwrap();
        mem.sync_dir(&dir.join("sub")).unwrap();
        mem.sync_dir(&dir).unwrap();

        mem.remove_file(&dir.join("removed")).unwrap();
        mem.rename(&dir.join("renamed"), &dir.join("new")).unwrap();
        mem.rename(&dir.join("sub"), &dir.join("moved")).unwrap();
        if sync {
            mem.sync_dir(&dir).unwrap();
        }
        mem.crash(Crash::PowerLoss);
        let names: Vec<String> = mem.read_dir(&dir).unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, if sync { &["moved", "new"][..] } else { &["removed", "renamed", "sub"] });
        let below = dir.join(if sync { "moved/below" } else { "sub/below" });
        assert_eq!(&get(&mem, &below)[..], b"below");
    }
}

#[test]
fn a_killed_process_loses_its_handles_and_locks_but_no_bytes() {
    let (mem, dir) = root();
    let file = put(&mem, &dir.join("a"), b"unsynced");
    let held = mem.lock(&dir.join("LOCK")).unwrap();
    mem.crash(Crash::Process);
    assert_eq!(&get(&mem, &dir.join("a"))[..], b"unsynced");
    assert!(file.len().is_err());
    let again = mem.lock(&dir.join("LOCK")).unwrap();
    drop(held);
    assert_eq!(kind(mem.lock(&dir.join("LOCK"))), ErrorKind::WouldBlock, "the old guard does not free the new lock");
    drop(again);
    // What the system kept is still not durable.
    mem.crash(Crash::PowerLoss);
    assert!(!mem.exists(&dir.join("a")).unwrap());
}

#[test]
fn a_torn_power_loss_keeps_any_sectors_and_is_drawn_from_its_seed() {
    let survivors = |seed: u64| {
        let (mem, dir) = root();
        let file = put(&mem, &dir.join("f"), &[1; 4 * 512]);
        file.sync_data().unwrap();
        mem.sync_dir(&dir).unwrap();
        // From the middle of the first sector to the middle of the last.
        file.write_at(256, &[2; 3 * 512]).unwrap();
        mem.crash(Crash::PowerLossTorn { seed });
        get(&mem, &dir.join("f"))
    };
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let bytes = survivors(seed);
        assert_eq!(bytes, survivors(seed));
        assert_eq!(bytes.len(), 4 * 512);
        // Within a sector all of a write or nothing of it.
        let parts = [
            &bytes[..256],
            &bytes[256..512],
            &bytes[512..1024],
            &bytes[1024..1536],
            &bytes[1536..1792],
            &bytes[1792..],
        ];
        let parts = parts.map(|part| {
            assert!(part.iter().all(|byte| *byte == part[0]));
            part[0]
        });
        assert_eq!((parts[0], parts[5]), (1, 1));
        seen.insert(parts);
    }
    assert_eq!(seen.len(), 16, "every combination of four sectors is drawn");
}

// The faulty disk.

#[test]
fn steps_are_counted_and_listed() {
    let vfs = FaultyVfs::new(Arc::new(MemVfs::new()));
    vfs.record();
    let (dir, a, b) = (PathBuf::from("d"), PathBuf::from("d/a"), PathBuf::from("d/b"));
    vfs.create_dir_all(&dir).unwrap();
    let file = vfs.open(&a, OpenMode::Create).unwrap();
    file.write_at(7, b"abc").unwrap();
    file.set_len(5).unwrap();
    file.sync_data().unwrap();
    vfs.open(&a, OpenMode::Create).unwrap();
    file.read_at(0, 5).unwrap();
    vfs.rename(&a, &b).unwrap();
    vfs.sync_dir(&dir).unwrap();
    vfs.remove_file(&b).unwrap();
    let step = |kind, path: &PathBuf| Step { kind, path: path.clone() };
    let expected = [
        step(StepKind::CreateDir, &dir),
        step(StepKind::Create, &a),
        step(StepKind::Write { offset: 7, len: 3 }, &a),
        step(StepKind::SetLength { len: 5 }, &a),
        step(StepKind::Sync, &a),
        step(StepKind::Rename, &a),
        step(StepKind::SyncDir, &dir),
        step(StepKind::Remove, &b),
    ];
    assert_eq!(vfs.steps(), expected);
    assert_eq!(vfs.step_count(), expected.len() as u64);
}

#[test]
fn a_fault_hits_the_chosen_step_only() {
    let mem = MemVfs::new();
    let vfs = FaultyVfs::new(Arc::new(mem.clone()));
    let file = vfs.open(Path::new("a"), OpenMode::Create).unwrap();
    vfs.fail_after(1, Fault::Error(ErrorKind::PermissionDenied));
    file.write_at(0, b"12").unwrap();
    assert_eq!(kind(file.write_at(0, b"xx")), ErrorKind::PermissionDenied);
    file.write_at(2, b"34").unwrap();
    vfs.fail_after(0, Fault::Short(ErrorKind::StorageFull));
    assert_eq!(kind(file.write_at(4, b"5678")), ErrorKind::StorageFull);
    assert_eq!(&get(&mem, Path::new("a"))[..], b"123456");
    vfs.fail_at(vfs.step_count(), Fault::Short(ErrorKind::StorageFull));
    assert_eq!(kind(file.sync_data()), ErrorKind::StorageFull);
}

#[test]
fn a_stopped_machine_does_nothing_any_more() {
    for (fault, left) in [(Fault::Crash, &b""[..]), (Fault::CrashShort, b"12")] {
        let mem = MemVfs::new();
        let vfs = FaultyVfs::new(Arc::new(mem.clone()));
        let path = Path::new("a");
        let file = vfs.open(path, OpenMode::Create).unwrap();
        vfs.fail_after(0, fault);
        assert!(!vfs.is_stopped());
        assert!(file.write_at(0, b"1234").is_err());
        assert!(vfs.is_stopped());
        assert_eq!(&get(&mem, path)[..], left);
        assert!(file.write_at(0, b"5").is_err());
        assert!(file.read_at(0, 0).is_err());
        assert!(file.len().is_err());
        assert!(file.sync_data().is_err());
        assert!(vfs.open(path, OpenMode::Read).is_err());
        assert!(vfs.exists(path).is_err());
        assert!(vfs.remove_file(path).is_err());
        assert!(vfs.read_dir(Path::new("")).is_err());
        assert_eq!(&get(&mem, path)[..], left);
    }
}

#[test]
fn lying_syncs_answer_and_make_nothing_durable() {
    let mem = MemVfs::new();
    let vfs = FaultyVfs::new(Arc::new(mem.clone()));
    let path = Path::new("a");
    let file = vfs.open(path, OpenMode::Create).unwrap();
    vfs.sync_dir(Path::new("")).unwrap();
    vfs.set_syncs_lie(true);
    file.write_at(0, b"lost").unwrap();
    file.sync_data().unwrap();
    assert_eq!(mem.counts().syncs, 0);
    mem.crash(Crash::PowerLoss);
    assert!(get(&mem, path).is_empty());

    let file = vfs.open(path, OpenMode::ReadWrite).unwrap();
    file.write_at(0, b"kept").unwrap();
    vfs.set_syncs_lie(false);
    file.sync_data().unwrap();
    mem.crash(Crash::PowerLoss);
    assert_eq!(&get(&mem, path)[..], b"kept");
}

#[test]
fn free_space_is_told_of_an_existing_folder() {
    on_each(|vfs, dir| {
        assert!(vfs.free_space(dir).unwrap() > 0);
        assert_eq!(kind(vfs.free_space(&dir.join("none"))), ErrorKind::NotFound);
    });
}

#[test]
fn a_full_disk_in_memory_takes_what_fits_and_has_room_again() {
    let mem = MemVfs::new();
    let root = Path::new("");
    mem.set_capacity(Some(10));
    let file = put(&mem, Path::new("a"), b"123456");
    assert_eq!(mem.free_space(root).unwrap(), 4);
    assert_eq!(kind(file.write_at(4, b"56789abc")), ErrorKind::StorageFull);
    assert_eq!(&get(&mem, Path::new("a"))[..], b"123456789a", "a write may be cut short");
    assert_eq!(kind(mem.open(Path::new("b"), OpenMode::Create)), ErrorKind::StorageFull);
    assert_eq!(kind(file.set_len(11)), ErrorKind::StorageFull);
    file.write_at(2, b"xx").unwrap();
    file.set_len(9).unwrap();
    assert_eq!(kind(file.set_len(11)), ErrorKind::StorageFull, "one past the room");
    file.set_len(10).unwrap();
    mem.remove_file(Path::new("a")).unwrap();
    assert_eq!(mem.free_space(root).unwrap(), 10);
    put(&mem, Path::new("b"), b"0123456789");
    mem.set_capacity(None);
    put(&mem, Path::new("c"), b"again");
}

#[test]
fn looks_a_broken_disk_and_a_read_only_one() {
    let vfs = FaultyVfs::new(Arc::new(MemVfs::new()));
    let path = Path::new("a");
    let file = put(&vfs, path, b"abc");
    let looks = vfs.look_count();
    vfs.fail_look_at(looks + 1, ErrorKind::Other);
    file.read_at(0, 3).unwrap();
    assert_eq!(kind(file.read_at(0, 3)), ErrorKind::Other);
    file.read_at(0, 3).unwrap();
    assert_eq!(vfs.look_count(), looks + 3);
    vfs.set_read_only(true);
    file.read_at(0, 3).unwrap();
    assert_eq!(kind(file.write_at(0, b"x")), ErrorKind::ReadOnlyFilesystem);
    assert_eq!(kind(vfs.remove_file(path)), ErrorKind::ReadOnlyFilesystem);
    vfs.set_read_only(false);
    vfs.set_broken(Some(ErrorKind::TimedOut));
    assert_eq!(kind(file.read_at(0, 3)), ErrorKind::TimedOut);
    assert_eq!(kind(file.sync_data()), ErrorKind::TimedOut);
    assert_eq!(kind(vfs.free_space(Path::new(""))), ErrorKind::TimedOut);
    vfs.set_broken(None);
    assert_eq!(&file.read_at(0, 3).unwrap()[..], b"abc");
}

#[test]
fn what_a_failed_sync_has_lost_no_later_sync_brings_back() {
    let mem = MemVfs::new();
    let vfs = FaultyVfs::on_memory(mem.clone());
    let path = Path::new("a");
    let file = vfs.open(path, OpenMode::Create).unwrap();
    vfs.sync_dir(Path::new("")).unwrap();
    file.write_at(0, b"kept").unwrap();
    file.sync_data().unwrap();
    file.write_at(0, b"lo").unwrap();
    vfs.fail_after(0, Fault::LostSync(ErrorKind::Other));
    assert_eq!(kind(file.sync_data()), ErrorKind::Other);
    file.write_at(3, b"T").unwrap();
    file.sync_data().unwrap();
    assert_eq!(&get(&vfs, path)[..], b"lopT", "the system still shows it");
    mem.crash(Crash::PowerLoss);
    assert_eq!(&get(&mem, path)[..], b"kepT");
}
