use super::*;
use crate::virtio::blk::Format;
use crate::virtio::core::iovec::IoVecs;
use crate::virtio::core::testing::{as_plain_user, memory, wait_until};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

const A: u64 = 0x10_0000;

fn config(path: &Path) -> Config {
    Config { path: path.to_path_buf(), ..Config::default() }
}

fn read_only(path: &Path) -> Config {
    Config { read_only: true, ..config(path) }
}

/// A directory with a file `disk` of so many bytes in it.
fn image(len: u64) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    File::create(&path).unwrap().set_len(len).unwrap();
    (dir, path)
}

fn refused(config: &Config) -> OpenError {
    Disk::open(config).unwrap_err()
}

/// Opens a disk that nobody has any more. A child that another test forks has a copy of each
/// descriptor until it calls exec, and an OFD lock lasts until the last copy is closed: so it can
/// take a moment.
fn wait_for_unlock(config: &Config) {
    wait_until("the end of a lock", || Disk::open(config).is_ok());
}

#[test]
fn a_file_is_read_and_written_where_it_should_be() {
    let (_dir, path) = image(4096);
    let disk = Disk::open(&config(&path)).unwrap();
    assert_eq!((disk.len(), disk.read_only()), (4096, false));
    let mem = memory();
    mem.write_slice(b"abcdef", GuestAddress(A)).unwrap();
    let mut iovs = IoVecs::default();
    let mut list = iovs.gather(&mem);
    list.push(GuestAddress(A), 2);
    list.push(GuestAddress(A + 2), 4);
    disk.write_at(&mut list, 1000).unwrap();
    disk.flush().unwrap();
    assert_eq!(&std::fs::read(&path).unwrap()[999..1007], b"\0abcdef\0");

    let mut list = iovs.scatter(&mem);
    list.push(GuestAddress(A + 0x100), 3);
    disk.read_at(&mut list, 1002).unwrap();
    assert_eq!(mem.read_obj::<[u8; 4]>(GuestAddress(A + 0x100)).unwrap(), *b"cde\0");
}

#[test]
fn a_file_that_shrinks_gives_errors_where_it_is_missing() {
    let (_dir, path) = image(1024);
    let disk = Disk::open(&config(&path)).unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(600).unwrap();
    let mem = memory();
    let mut iovs = IoVecs::default();
    let mut list = iovs.scatter(&mem);
    list.push(GuestAddress(A), 512);
    assert_eq!(disk.read_at(&mut list, 512).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn what_is_no_disk_is_refused_with_the_way_out() {
    let (dir, path) = image(1025);
    let message = |path: &Path| refused(&config(path)).to_string();
    assert!(message(&path).contains("1025 bytes, which is not a multiple of 512"), "{}", message(&path));
    File::create(&path).unwrap();
    assert!(message(&path).contains("is empty"), "{}", message(&path));
    assert!(message(dir.path()).contains("is a directory"));
    assert!(matches!(refused(&read_only(dir.path())), OpenError::Directory { .. }));
    let missing = dir.path().join("missing");
    assert!(message(&missing).contains("does not exist"));
    assert!(!missing.exists(), "nothing is created");
    assert!(message(Path::new("/dev/null")).contains("neither a file nor a block device"));
    let (_listener, socket) =
        (std::os::unix::net::UnixListener::bind(dir.path().join("s")), dir.path().join("s"));
    assert!(matches!(refused(&config(&socket)), OpenError::Io { .. }));
    assert!(matches!(refused(&config(&path.join("below"))), OpenError::Io { .. }));
}

#[test]
fn an_image_of_another_format_is_refused_unless_it_is_called_raw() {
    let (_dir, path) = image(1024);
    for (magic, kind) in FOREIGN {
        // The second is what qemu-img makes of an empty image.
        for len in [1024, 196_616] {
            std::fs::write(&path, [magic, &vec![0; len - magic.len()]].concat()).unwrap();
            let error = refused(&config(&path));
            assert!(error.to_string().contains(&format!("is {kind}, and bothy takes raw ones")), "{error}");
        }
        std::fs::write(&path, [magic, &[0; 1024][magic.len()..]].concat()).unwrap();
        let raw = Config { format: Some(Format::Raw), ..config(&path) };
        wait_for_unlock(&raw);
    }
    assert!("qcow2".parse::<Format>().unwrap_err().contains("qemu-img convert"));
}

#[test]
fn a_file_that_can_only_be_read_is_refused_with_the_word_that_helps() {
    let (dir, path) = image(1024);
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o444)).unwrap();
    let error = as_plain_user(|| refused(&config(&path)));
    assert!(matches!(error, OpenError::ReadOnly { .. }), "{error:?}");
    assert!(error.to_string().contains("add \",ro\""));
    assert!(as_plain_user(|| Disk::open(&read_only(&path))).is_ok());
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o000)).unwrap();
    let error = as_plain_user(|| refused(&config(&path)));
    assert!(matches!(error, OpenError::Io { .. }), "{error:?}");
}

#[test]
fn one_writer_or_many_readers_have_a_disk() {
    let (_dir, path) = image(1024);
    let writer = Disk::open(&config(&path)).unwrap();
    for second in [config(&path), read_only(&path)] {
        let error = refused(&second);
        assert!(error.to_string().contains("in use by this very command"), "{error}");
    }
    drop(writer);
    wait_for_unlock(&read_only(&path));
    let readers = [(); 3].map(|()| Disk::open(&read_only(&path)).unwrap());
    assert!(matches!(refused(&config(&path)), OpenError::Locked { .. }));
    drop(readers);
    wait_for_unlock(&config(&path));
}

const HOLD: &str = "BOTHY_TEST_HOLD_DISK";

#[test]
fn the_holder_of_a_lock_is_named() {
    if let Some(path) = std::env::var_os(HOLD) {
        // The child: holds the disk until its input ends.
        let _disk = Disk::open(&config(Path::new(&path))).unwrap();
        println!("\nholding");
        let _ = std::io::stdin().read_line(&mut String::new());
        return;
    }
    let (_dir, path) = image(1024);
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "virtio::blk::disk::tests::the_holder_of_a_lock_is_named", "--nocapture"])
        .env(HOLD, &path)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let mut lines = lines.map_while(Result::ok);
    assert!(lines.any(|line| line == "holding"), "the child did not get that far");
    let error = refused(&config(&path));
    assert!(error.to_string().contains(&format!("in use by process {} (", child.id())), "{error}");
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    // The child's last words must have somewhere to go.
    lines.for_each(drop);
    assert!(child.wait().unwrap().success());
    wait_for_unlock(&config(&path));
}

#[test]
fn past_the_page_cache_everything_is_read_and_written_whatever_its_alignment() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR").to_owned() + "/target").unwrap();
    let path = dir.path().join("disk");
    std::fs::write(&path, (0..64 << 10).map(|at| u8::try_from(at / 512 % 251).unwrap()).collect::<Vec<_>>())
        .unwrap();
    let direct = Config { cache: Some(Cache::None), ..config(&path) };
    let disk = match Disk::open(&direct) {
        Ok(disk) => disk,
        Err(error) => {
            assert!(matches!(error, OpenError::NoDirect { .. }), "{error}");
            let _ = writeln!(
                io::stderr(),
                "COULD NOT RUN: cache=none: the file system of target/ has no O_DIRECT"
            );
            return;
        }
    };
    assert_eq!(disk.block_size(), 512);
    assert!(disk.alignment >= 512);
    assert_eq!(disk.descriptors().count(), 2);
    assert!(matches!(refused(&direct), OpenError::Locked { .. }));
    let mem = memory();
    let mut iovs = IoVecs::default();
    for (gpa, len, offset) in [(A, 8192, 4096), (A + 0x3001, 512, 512), (A + 0x4000, 1024, 512 * 5)] {
        let mut list = iovs.scatter(&mem);
        list.push(GuestAddress(gpa), len);
        disk.read_at(&mut list, offset).unwrap();
        let first: u8 = mem.read_obj(GuestAddress(gpa)).unwrap();
        assert_eq!(u64::from(first), offset / 512);
        mem.write_obj(0xaa_u8, GuestAddress(gpa)).unwrap();
        let mut list = iovs.gather(&mem);
        list.push(GuestAddress(gpa), len);
        disk.write_at(&mut list, offset).unwrap();
    }
    disk.write_zeroes(512 * 100, 512, false).unwrap();
    disk.flush().unwrap();
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!((bytes[4096], bytes[512], bytes[512 * 5], bytes[512 * 100]), (0xaa, 0xaa, 0xaa, 0));
    assert_eq!((bytes[4095], bytes[512 * 101]), (7, 101));
}

#[test]
fn what_is_aligned_for_the_file_system_alone_goes_past_the_page_cache() {
    let mut disk = Disk::with_len(tempfile::tempfile().unwrap(), 1 << 20);
    assert!(std::ptr::eq(disk.file_for(1, |_| false), &raw const disk.file), "there is only one");
    disk.first = Some(tempfile::tempfile().unwrap());
    disk.alignment = 4096;
    let goes_past = |offset, multiple: usize| {
        std::ptr::eq(disk.file_for(offset, |align| multiple.is_multiple_of(align)), &raw const disk.file)
    };
    assert!(goes_past(8192, 4096));
    // Sectors of the guest's, and not blocks of the file system's.
    assert!(!goes_past(512, 4096) && !goes_past(8192, 512));
}
