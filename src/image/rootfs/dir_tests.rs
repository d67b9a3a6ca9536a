use std::os::unix::fs::symlink;
use std::time::Duration;

use super::super::testing::*;
use super::*;

fn built(root: &Path) -> Result<Image, RootfsError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let built = build_from_dir(root, file.as_file(), &LIMITS)?;
    let image = Image { file, built };
    image.fsck();
    Ok(image)
}

#[test]
fn a_directory_of_a_plain_user_becomes_an_image() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
    std::fs::write(dir.path().join("a/b/file"), vec![5; 9000]).unwrap();
    std::fs::hard_link(dir.path().join("a/b/file"), dir.path().join("again")).unwrap();
    symlink("a/b", dir.path().join("link")).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    let image = built(dir.path()).unwrap();
    assert_same(&image.nodes(), &host_nodes(dir.path()));
    drop(socket);
}

#[test]
fn what_a_symbolic_link_leads_to_is_not_part_of_the_tree() {
    let dir = tempfile::tempdir().unwrap();
    symlink("/etc", dir.path().join("etc")).unwrap();
    assert_eq!(built(dir.path()).unwrap().names(), ["/etc"]);
}

#[test]
fn an_image_of_itself_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let out = File::create(&path).unwrap();
    let error = build_from_dir(dir.path(), &out, &LIMITS).unwrap_err();
    assert!(matches!(error, RootfsError::Path { flaw: Flaw::Itself, .. }), "{error}");
}

#[test]
fn limits_hold_for_directories() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        std::fs::write(dir.path().join(name), [0; 5000]).unwrap();
    }
    let out = tempfile::tempfile().unwrap();
    let few = Limits { max_entries: 1, ..LIMITS };
    let error = build_from_dir(dir.path(), &out, &few).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{}/b: there are more entries than an image may have", dir.path().display())
    );
    assert!(fingerprint(dir.path(), &few).is_err());
    let short = Limits { max_bytes: 8192, ..LIMITS };
    assert!(build_from_dir(dir.path(), &out, &short).is_err());
}

#[test]
fn a_missing_directory_is_named() {
    let out = tempfile::tempfile().unwrap();
    let error = build_from_dir(Path::new("/no/such"), &out, &LIMITS).unwrap_err();
    assert_eq!(error.to_string(), "/no/such can't be read");
}

#[test]
fn a_fingerprint_changes_with_everything_that_an_image_has() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let print = || fingerprint(dir.path(), &LIMITS).unwrap();
    std::fs::create_dir(at("d")).unwrap();
    std::fs::write(at("d/f"), b"1").unwrap();
    let mut seen = vec![print()];
    assert_eq!(seen[0], print());
    assert_eq!(seen[0].len(), 64);
    let changes: [&dyn Fn(); 6] = [
        &|| std::fs::write(at("d/f"), b"2").unwrap(),
        &|| std::fs::rename(at("d/f"), at("d/g")).unwrap(),
        &|| std::fs::set_permissions(at("d/g"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap(),
        &|| std::fs::rename(at("d/g"), at("g")).unwrap(),
        &|| symlink("x", at("link")).unwrap(),
        &|| std::fs::hard_link(at("g"), at("h")).unwrap(),
    ];
    for change in changes {
        // The clock of a file system's times is coarse.
        std::thread::sleep(Duration::from_millis(20));
        change();
        let now = print();
        assert!(!seen.contains(&now));
        assert_eq!(now, print());
        seen.push(now);
    }
}

#[test]
fn a_file_that_changes_while_its_holes_are_looked_for_is_refused() {
    // What the file system answers, in order.
    let answer = |answers: &[rustix::io::Result<u64>]| {
        let mut answers = answers.iter();
        parts(|_| *answers.next().unwrap(), 100)
    };
    assert_eq!(answer(&[Ok(10), Ok(20), Ok(50), Ok(100)]).unwrap(), Some(vec![(10, 10), (50, 50)]));
    assert_eq!(answer(&[Ok(10), Ok(20), Err(Errno::NXIO)]).unwrap(), Some(vec![(10, 10)]));
    assert_eq!(answer(&[Ok(10), Ok(20), Ok(100)]).unwrap(), Some(vec![(10, 10)]), "data that was added");
    assert_eq!(answer(&[Ok(0), Ok(120)]).unwrap(), None, "data everywhere");
    assert_eq!(answer(&[Err(Errno::INVAL)]).unwrap(), None, "nobody knows");
    for changed in [[Ok(10), Ok(10)], [Ok(10), Err(Errno::NXIO)], [Ok(10), Ok(5)]] {
        assert!(matches!(answer(&changed), Err(Trouble::Flaw(Flaw::Changed))), "{changed:?}");
    }
    assert!(matches!(answer(&[Ok(10), Ok(20), Ok(15), Ok(30)]), Err(Trouble::Flaw(Flaw::Changed))));
}

#[test]
fn deep_directories_need_few_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let mut path = dir.path().to_path_buf();
    for _ in 0..1500 {
        path.push("d");
    }
    // Longer than the limit of descriptors allows to hold open, and shorter than the longest path.
    std::fs::create_dir_all(&path).unwrap();
    std::fs::write(path.join("f"), b"x").unwrap();
    assert_eq!(built(dir.path()).unwrap().built.entries, 1501);
    fingerprint(dir.path(), &LIMITS).unwrap();
}
