//! Files that are closed behind the back of their holders: nobody can tell, and no more are open than allowed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use alhambra_storage::vfs::mem::MemVfs;
use alhambra_storage::vfs::os::OsVfs;
use alhambra_storage::vfs::pooled::PooledVfs;
use alhambra_storage::vfs::{File, OpenMode, Vfs};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Open(u8, OpenMode),
    Close(u8),
    Write(u8, u8, Vec<u8>),
    Cut(u8, u8),
    Read(u8, u8, u8),
    Len(u8),
    Sync(u8),
    Rename(u8, u8),
    Remove(u8),
    RemoveAll(u8),
}

/// Six names in two folders.
fn name(n: u8) -> PathBuf {
    Path::new("/d").join(if n % 6 < 3 { "a" } else { "b" }).join(format!("f{}", n % 3))
}

fn step() -> impl Strategy<Value = Step> {
    let mode = prop_oneof![
        Just(OpenMode::Read),
        Just(OpenMode::ReadWrite),
        Just(OpenMode::Create),
        Just(OpenMode::Create),
        Just(OpenMode::CreateNew)
    ];
    let n = any::<u8>;
    prop_oneof![
        3 => (n(), mode).prop_map(|(n, mode)| Step::Open(n, mode)),
        1 => n().prop_map(Step::Close),
        4 => (n(), 0..32u8, proptest::collection::vec(any::<u8>(), 1..8)).prop_map(|(n, at, b)| Step::Write(n, at, b)),
        1 => (n(), 0..32u8).prop_map(|(n, len)| Step::Cut(n, len)),
        4 => (n(), 0..32u8, 0..8u8).prop_map(|(n, at, len)| Step::Read(n, at, len)),
        1 => n().prop_map(Step::Len),
        2 => n().prop_map(Step::Sync),
        2 => (n(), n()).prop_map(|(a, b)| Step::Rename(a, b)),
        1 => n().prop_map(Step::Remove),
        1 => n().prop_map(Step::RemoveAll),
    ]
}

/// Carries the steps out and answers what each of them said.
fn run(vfs: &dyn Vfs, steps: &[Step], mut look: impl FnMut()) -> Vec<String> {
    vfs.create_dir_all(Path::new("/d/a")).unwrap();
    vfs.create_dir_all(Path::new("/d/b")).unwrap();
    let mut files: Vec<Box<dyn File>> = Vec::new();
    let said = |result: std::io::Result<String>| result.unwrap_or_else(|error| format!("{:?}", error.kind()));
    let mut out = Vec::new();
    for step in steps {
        let picked = |n: u8| (!files.is_empty()).then(|| &files[usize::from(n) % files.len()]);
        let result = match step {
            Step::Open(n, mode) => vfs.open(&name(*n), *mode).map(|file| {
                files.push(file);
                String::new()
            }),
            Step::Close(n) => {
                if !files.is_empty() {
                    files.remove(usize::from(*n) % files.len());
                }
                Ok(String::new())
            }
            Step::Write(n, at, bytes) => {
                picked(*n).map_or(Ok(String::new()), |f| f.write_at(u64::from(*at), bytes).map(|()| "written".into()))
            }
            Step::Cut(n, len) => {
                picked(*n).map_or(Ok(String::new()), |f| f.set_len(u64::from(*len)).map(|()| "cut".into()))
            }
            Step::Read(n, at, len) => picked(*n).map_or(Ok(String::new()), |f| {
                f.read_at(u64::from(*at), usize::from(*len)).map(|bytes| format!("{bytes:?}"))
            }),
            Step::Len(n) => picked(*n).map_or(Ok(String::new()), |f| f.len().map(|len| len.to_string())),
            Step::Sync(n) => picked(*n).map_or(Ok(String::new()), |f| f.sync_data().map(|()| "synced".into())),
            Step::Rename(a, b) => vfs.rename(&name(*a), &name(*b)).map(|()| "renamed".into()),
            Step::Remove(n) => vfs.remove_file(&name(*n)).map(|()| "removed".into()),
            Step::RemoveAll(n) => {
                let dir = name(*n);
                let dir = dir.parent().unwrap();
                vfs.remove_dir_all(dir).and_then(|()| vfs.create_dir_all(dir)).map(|()| "removed".into())
            }
        };
        out.push(said(result));
        look();
    }
    out
}

proptest! {
    #[test]
    fn nobody_can_tell_that_files_are_closed_and_opened_again(
        steps in proptest::collection::vec(step(), 1..120),
        open_max in 1..4usize,
    ) {
        let plain = run(&MemVfs::new(), &steps, || {});
        let pooled = PooledVfs::new(Arc::new(MemVfs::new()), open_max);
        prop_assert_eq!(run(&pooled, &steps, || {}), plain);
        prop_assert_eq!(pooled.open_files(), 0);
    }
}

#[test]
fn no_more_files_are_open_than_allowed_and_unsynced_ones_stay_open() {
    let dir = tempfile::tempdir().unwrap();
    let vfs = PooledVfs::new(Arc::new(OsVfs::new()), 8);
    let path = |n: usize| dir.path().join(format!("f{n}"));
    let files: Vec<_> = (0..100).map(|n| vfs.open(&path(n), OpenMode::CreateNew).unwrap()).collect();
    assert!(vfs.open_files() <= 8, "{}", vfs.open_files());
    for (n, file) in files.iter().enumerate() {
        file.write_at(0, &n.to_be_bytes()).unwrap();
        file.sync_data().unwrap();
        assert!(vfs.open_files() <= 8, "{} at {n}", vfs.open_files());
    }
    for (n, file) in files.iter().enumerate().rev() {
        assert_eq!(&file.read_at(0, 8).unwrap()[..], n.to_be_bytes());
        assert!(vfs.open_files() <= 8, "{} at {n}", vfs.open_files());
    }
    for file in &files[..20] {
        file.write_at(8, b"not synced").unwrap();
    }
    assert!(vfs.open_files() >= 20, "a failed sync of these would be lost: {}", vfs.open_files());
    for file in &files[..20] {
        file.sync_data().unwrap();
    }
    files[50].len().unwrap();
    assert!(vfs.open_files() <= 8, "{}", vfs.open_files());
}
