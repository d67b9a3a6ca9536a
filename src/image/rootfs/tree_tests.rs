use super::*;

fn add(tree: &mut Tree, parent: EntryId, name: &str, kind: Kind, layer: u32) -> EntryId {
    let inode = tree.add_inode(Inode::new(kind, Meta::IMPLIED));
    tree.link(parent, name.as_bytes(), inode, layer).unwrap()
}

fn names(tree: &Tree, dir: EntryId) -> Vec<&[u8]> {
    tree.children(dir).map(|id| tree.name(id)).collect()
}

#[test]
fn entries_and_inodes_are_small() {
    // Twice that, while an arena has just doubled, and 12 bytes of the table stay far below 400.
    assert!(
        size_of::<Entry>() + size_of::<Inode>() <= 144,
        "{} + {}",
        size_of::<Entry>(),
        size_of::<Inode>()
    );
}

#[test]
fn names_are_found_removed_and_sorted() {
    let mut tree = Tree::new(100);
    for name in ["b", "\u{e9}", "a", "ab", "B"] {
        add(&mut tree, ROOT, name, Kind::File, 1);
    }
    let dir = add(&mut tree, ROOT, "dir", Kind::Dir, 1);
    add(&mut tree, dir, "a", Kind::File, 1);
    assert_ne!(tree.child(ROOT, b"a"), tree.child(dir, b"a"));
    let ab = tree.child(ROOT, b"ab").unwrap();
    tree.remove(ab);
    assert_eq!(tree.child(ROOT, b"ab"), None);
    tree.sort();
    assert_eq!(names(&tree, ROOT), [&b"B"[..], b"a", b"b", b"dir", "\u{e9}".as_bytes()]);
    tree.remove(dir);
    assert_eq!(tree.child(dir, b"a"), None, "and all that is below");
    assert_eq!(tree.len(), 4);
}

#[test]
fn blocks_are_free_when_the_last_name_goes() {
    let mut tree = Tree::new(100);
    let mut inode = Inode::new(Kind::File, Meta::IMPLIED);
    inode.blocks = 5..9;
    let inode = tree.add_inode(inode);
    let one = tree.link(ROOT, b"one", inode, 1).unwrap();
    let two = tree.link(ROOT, b"two", inode, 1).unwrap();
    tree.remove(one);
    assert!(tree.take_freed().is_empty());
    tree.remove(two);
    assert_eq!(tree.take_freed().first(), Some(&(5..9)));
    assert!(tree.take_freed().is_empty());
}

#[test]
fn many_whiteouts_of_one_directory_search_it_once() {
    let mut tree = Tree::new(1_000_000);
    let dir = add(&mut tree, ROOT, "dir", Kind::Dir, 1);
    for n in 0..100_000 {
        add(&mut tree, dir, &n.to_string(), Kind::File, 2);
    }
    let start = std::time::Instant::now();
    for _ in 0..100_000 {
        tree.hide_below(dir, 2);
        tree.hide(dir, 2);
    }
    // It would be 10^10 steps.
    assert!(start.elapsed().as_secs() < 20);
    assert_eq!(tree.len(), 100_001);
}
