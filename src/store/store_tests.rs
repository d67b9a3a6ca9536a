use super::*;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const FILES: Part = Part("files");

fn open(dir: &tempfile::TempDir) -> Result<FileStore, FileError> {
    FileStore::open(dir.path().join("store"), &[FILES])
}

fn store() -> (tempfile::TempDir, FileStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).unwrap();
    (dir, store)
}

fn count(store: &FileStore, part: Part) -> usize {
    store.list(part).unwrap().len()
}

#[test]
fn a_file_is_made_once_by_whoever_comes_first() {
    let (_dir, store) = store();
    let (made, inside) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let (lease, _) = store
                    .once(FILES, "x", |mut file| -> Result<(), FileError> {
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        made.fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(Duration::from_millis(50));
                        file.write_all(b"done").unwrap();
                        inside.fetch_sub(1, Ordering::SeqCst);
                        Ok(())
                    })
                    .unwrap();
                assert_eq!(fs::read(lease.path()).unwrap(), b"done");
            });
        }
    });
    assert_eq!(made.load(Ordering::SeqCst), 1);
    assert_eq!((count(&store, Part::TMP), count(&store, Part::LOCKS)), (0, 0));
}

#[test]
fn after_a_failure_the_next_one_makes_it() {
    let (_dir, store) = store();
    let fail = |_: &File| Err(FileError::new("make", Path::new("x"))(io::ErrorKind::Other.into()));
    assert!(store.once(FILES, "x", fail).is_err());
    for part in [FILES, Part::TMP, Part::LOCKS] {
        assert_eq!(count(&store, part), 0, "{part:?}");
    }
    assert!(store.once(FILES, "x", |_| Ok::<(), FileError>(())).unwrap().1);
    assert!(!store.once(FILES, "x", fail).unwrap().1);
}

#[test]
fn stale_files_are_swept_and_live_ones_are_not() {
    let (_dir, store) = store();
    let live = store.named().unwrap();
    let stale = store.path(Part::TMP, "999999-0");
    fs::write(&stale, "left by kill -9").unwrap();
    drop(store.lock().unwrap());
    assert!(!stale.exists() && live.file().metadata().is_ok() && count(&store, Part::TMP) == 1);
    live.persist(&store.path(FILES, "y")).unwrap();
    assert_eq!((count(&store, Part::TMP), count(&store, FILES)), (0, 1));
    let unlinked = store.unlinked().unwrap();
    assert_eq!(count(&store, Part::TMP), 0);
    (&unlinked).write_all(b"still there").unwrap();
}

#[test]
fn opening_the_store_sweeps_what_was_left() {
    let (dir, first) = store();
    let live = first.named().unwrap();
    let making = Guard::wait(&first.path(Part::LOCKS, "making")).unwrap();
    fs::write(first.path(Part::TMP, "999999-0"), "left by kill -9").unwrap();
    fs::write(first.path(Part::LOCKS, "left"), "").unwrap();
    let second = open(&dir).unwrap();
    assert_eq!((count(&second, Part::TMP), count(&second, Part::LOCKS)), (1, 1), "those in use");
    drop((live, making));
    open(&dir).unwrap();
    assert_eq!((count(&first, Part::TMP), count(&first, Part::LOCKS)), (0, 0));
}

#[test]
fn files_in_the_making_have_no_name() {
    let (_dir, store) = store();
    let file = store.temporary().unwrap();
    (&mut file.file()).write_all(b"new").unwrap();
    assert_eq!(count(&store, Part::TMP), 0, "the file system of this test has such files");
    let path = store.path(FILES, "x");
    file.persist(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    // In place of another one, with a name or without.
    for (file, content) in
        [(store.temporary().unwrap(), b"newer"), (store.named().unwrap(), b"newest")] as [(_, &[u8]); 2]
    {
        (&mut file.file()).write_all(content).unwrap();
        file.persist(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), content);
    }
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!((count(&store, Part::TMP), count(&store, FILES)), (0, 1));
    assert!(try_own(&path).unwrap().is_some(), "unlocked");
}

#[test]
fn what_is_owned_can_be_written() {
    let (_dir, store) = store();
    store.write(FILES, "x", b"done").unwrap();
    let owned = try_own(&store.path(FILES, "x")).unwrap().unwrap();
    let flags = rustix::fs::fcntl_getfl(&owned).unwrap();
    assert!(flags.contains(rustix::fs::OFlags::RDWR), "NFS locks exclusively only what can be written");
}
