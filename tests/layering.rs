//! Holds the direction of the arrows in `src/lib.rs`: which module may name which.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Item, UseTree, Visibility};

/// Used by all.
const EVERYWHERE: &[&str] =
    &["bounded_log", "outcome", "poll", "random", "sink", "size", "sys", "thread", "timeline"];

/// A module, or a part of one, and the modules that it may name. The first line that fits a file
/// counts.
const ALLOWED: &[(&str, &[&str])] = &[
    ("main", &["cli", "commands"]),
    ("cli", &["bench", "config", "image", "spec", "virtio::blk", "virtio::net", "virtio::vsock"]),
    // `bothy doctor` asks KVM, and `bothy boot` opens what the VM will use.
    (
        "commands",
        &[
            "agent",
            "bench",
            "cli",
            "config",
            "container",
            "vmm",
            "guest_files",
            "image",
            "launch",
            "report",
            "boot",
            "kvm",
            "spec",
            "virtio::blk",
            "virtio::net",
            "virtio::vsock",
        ],
    ),
    (
        "launch",
        &[
            "vmm",
            "guest_files",
            "image",
            "config",
            "boot",
            "kvm",
            "virtio::blk",
            "virtio::net",
            "virtio::vsock",
        ],
    ),
    ("container", &["agent", "config", "launch", "vmm", "virtio::net", "virtio::vsock"]),
    ("agent", &["unix_socket"]),
    ("bench", &["spec"]),
    ("snapshot", &[]),
    ("spec", &[]),
    ("image", &["store"]),
    ("store", &[]),
    ("guest_files", &["boot::image", "memory"]),
    ("report", &["vmm::control"]),
    ("vmm", &["config", "vcpu", "boot", "snapshot", "virtio", "devices", "bus", "kvm", "memory"]),
    ("config", &["virtio::blk", "virtio::net", "virtio::vsock", "vcpu", "memory"]),
    ("vcpu", &["kvm", "bus", "memory"]),
    // The tables name the registers' numbers.
    ("boot", &["devices::acpi", "memory"]),
    ("kvm", &["bus", "memory"]),
    ("devices", &["bus", "memory"]),
    ("virtio::core", &["virtio::core", "bus", "memory"]),
    ("virtio::blk", &["virtio::core", "virtio::blk", "bus", "memory"]),
    ("virtio::net", &["virtio::core", "virtio::net", "bus", "memory"]),
    ("virtio::vsock", &["virtio::core", "virtio::vsock", "bus", "memory", "unix_socket"]),
    ("virtio", &["virtio::core", "bus", "memory"]),
    ("bus", &["memory"]),
    ("memory", &[]),
    ("bounded_log", &[]),
    ("outcome", &[]),
    ("poll", &[]),
    ("random", &[]),
    ("sink", &[]),
    ("size", &[]),
    ("sys", &[]),
    ("thread", &[]),
    ("timeline", &[]),
    ("unix_socket", &[]),
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("src is readable") {
        let path = entry.expect("src is readable").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The source files of a crate, and what each names of the others.
struct Tree {
    /// By module path: `image::registry` is src/image/registry/mod.rs or src/image/registry.rs, and
    /// the crate's root is empty.
    files: BTreeMap<String, File>,
}

#[derive(Default)]
struct File {
    /// Names from the crate's root, outside of tests: `image::store::Lease`.
    names: BTreeSet<String>,
    /// `pub use` in it: a name, and what it stands for.
    exports: BTreeMap<String, String>,
    modules: BTreeSet<String>,
}

impl Tree {
    /// Reads all files below `src`. Modules that are compiled for tests alone have no file in it.
    fn read(src: &Path, own_name: &str) -> Self {
        let mut found = Vec::new();
        sources(src, &mut found);
        assert!(found.len() > 10, "the sources are found");
        let mut tree = Self { files: BTreeMap::new() };
        for path in found {
            let relative = path.strip_prefix(src).expect("inside").with_extension("");
            let relative = relative.to_str().expect("UTF-8").replace('/', "::");
            let is_test = relative.ends_with("_tests")
                || relative.ends_with("testing")
                || relative.ends_with("::tests");
            if is_test {
                continue;
            }
            let module = if relative == "lib" {
                String::new()
            } else {
                relative.strip_suffix("::mod").unwrap_or(&relative).to_owned()
            };
            let text = fs::read_to_string(&path).expect("readable");
            let parsed = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let mut reader = Reader { own_name, module: module.clone(), file: File::default() };
            reader.visit_file(&parsed);
            tree.files.insert(module, reader.file);
        }
        tree
    }

    /// The file in which a name is defined: `pub use` is followed.
    fn defined_in(&self, name: &str) -> &str {
        let mut name = name.to_owned();
        // As deep as re-exports are nested.
        for _ in 0..8 {
            let (module, rest) = self.split(&name);
            let first = rest.split("::").next().unwrap_or_default();
            match self.files[module].exports.get(first) {
                Some(target) => name = format!("{target}{}", &rest[first.len()..]),
                None => return module,
            }
        }
        panic!("{name} is re-exported in a circle");
    }

    /// The longest module that a name begins with, and what is left of it.
    fn split<'name>(&self, name: &'name str) -> (&str, &'name str) {
        let mut end = name.len();
        loop {
            if let Some((module, _)) = self.files.get_key_value(&name[..end]) {
                return (module, name[end..].trim_start_matches(':'));
            }
            end = name[..end].rfind("::").unwrap_or(0);
        }
    }

    /// What each file uses. A file may use what its own parents define, as methods of a type that
    /// stands there do; and a parent uses its children.
    fn uses(&self) -> BTreeMap<&str, BTreeSet<&str>> {
        let mut uses = BTreeMap::new();
        for (module, file) in &self.files {
            let is_parent = |other: &str| other.is_empty() || module.starts_with(&format!("{other}::"));
            let named = file.names.iter().map(|name| self.defined_in(name));
            let named: BTreeSet<&str> = named.filter(|other| *other != module && !is_parent(other)).collect();
            let children =
                file.modules.iter().filter_map(|child| Some(self.files.get_key_value(child)?.0.as_str()));
            // The root declares all and uses nothing.
            let children = children.filter(|_| !module.is_empty());
            uses.insert(module.as_str(), named.into_iter().chain(children).collect());
        }
        uses
    }

    /// Files that use each other, directly or by way of others.
    fn circles(&self) -> Vec<Vec<&str>> {
        let uses = self.uses();
        let reach: BTreeMap<&str, BTreeSet<&str>> = uses
            .keys()
            .map(|from| {
                let mut seen = BTreeSet::new();
                let mut next: Vec<&str> = uses[from].iter().copied().collect();
                while let Some(module) = next.pop() {
                    if seen.insert(module) {
                        next.extend(&uses[module]);
                    }
                }
                (*from, seen)
            })
            .collect();
        let mut circles: Vec<Vec<&str>> = Vec::new();
        for (module, reached) in &reach {
            let circle: Vec<&str> =
                reached.iter().copied().filter(|other| reach[other].contains(module)).collect();
            if circle.contains(module) && !circles.contains(&circle) {
                circles.push(circle);
            }
        }
        circles
    }
}

/// Collects what one file names.
struct Reader<'a> {
    /// What `crate` is called in the crate's binaries.
    own_name: &'a str,
    module: String,
    file: File,
}

impl Reader<'_> {
    /// A name from the crate's root, of one that begins with `crate`, `self`, `super`, a module of
    /// this file, or the crate's own name.
    fn resolve(&self, path: &[String]) -> Option<String> {
        let mut base: Vec<&str> = self.module.split("::").filter(|part| !part.is_empty()).collect();
        let mut rest = path;
        let first = rest.first()?.as_str();
        if first == "crate" || first == self.own_name {
            base.clear();
            rest = &rest[1..];
        } else if first == "self" {
            rest = &rest[1..];
        } else if first == "super" {
            while rest.first().is_some_and(|part| part == "super") {
                base.pop();
                rest = &rest[1..];
            }
        } else if !self.file.modules.contains(&join(&self.module, first)) {
            return None;
        }
        let parts: Vec<&str> = base.into_iter().chain(rest.iter().map(String::as_str)).collect();
        Some(parts.join("::"))
    }

    fn name(&mut self, path: &[String]) {
        if path.len() > 1
            && let Some(name) = self.resolve(path)
        {
            self.file.names.insert(name);
        }
    }

    fn use_tree(&mut self, tree: &UseTree, path: &mut Vec<String>, is_public: bool) {
        match tree {
            UseTree::Path(part) => {
                path.push(part.ident.to_string());
                self.use_tree(&part.tree, path, is_public);
                path.pop();
            }
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.use_tree(tree, path, is_public)),
            UseTree::Glob(_) => self.name(path),
            UseTree::Name(_) | UseTree::Rename(_) => {
                let (name, called) = match tree {
                    UseTree::Rename(rename) => (rename.ident.to_string(), rename.rename.to_string()),
                    UseTree::Name(name) => (name.ident.to_string(), name.ident.to_string()),
                    _ => unreachable!("matched above"),
                };
                if name != "self" {
                    path.push(name.clone());
                }
                self.name(path);
                if is_public && let Some(target) = self.resolve(path) {
                    self.file.exports.insert(called, target);
                }
                if name != "self" {
                    path.pop();
                }
            }
        }
    }

    /// Paths in a macro's words, which aren't parsed.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => {
                    colons += 1;
                    continue;
                }
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.name(&std::mem::take(&mut path));
                    }
                    path.push(ident.to_string());
                }
                other => {
                    self.name(&std::mem::take(&mut path));
                    if let TokenTree::Group(group) = other {
                        self.tokens(group.stream());
                    }
                }
            }
            colons = 0;
        }
        self.name(&path);
    }
}

fn join(module: &str, name: &str) -> String {
    if module.is_empty() { name.to_owned() } else { format!("{module}::{name}") }
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.meta.require_list().is_ok_and(|list| list.tokens.to_string() == "test")
    })
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_file(&mut self, file: &'ast syn::File) {
        // Modules first: a path may begin with one that is declared further down.
        for item in &file.items {
            if let Item::Mod(module) = item
                && !is_for_tests(&module.attrs)
                && module.content.is_none()
            {
                self.file.modules.insert(join(&self.module, &module.ident.to_string()));
            }
        }
        visit::visit_file(self, file);
    }

    fn visit_item(&mut self, item: &'ast Item) {
        let attributes: &[Attribute] = match item {
            Item::Const(item) => &item.attrs,
            Item::Enum(item) => &item.attrs,
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Macro(item) => &item.attrs,
            Item::Mod(item) => &item.attrs,
            Item::Static(item) => &item.attrs,
            Item::Struct(item) => &item.attrs,
            Item::Trait(item) => &item.attrs,
            Item::Type(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            _ => &[],
        };
        if is_for_tests(attributes) {
            return;
        }
        match item {
            Item::Use(item) => {
                let is_public = !matches!(item.vis, Visibility::Inherited);
                self.use_tree(&item.tree, &mut Vec::new(), is_public);
            }
            // What stands in it is one level deeper.
            Item::Mod(item) if item.content.is_some() => {
                let inner = join(&self.module, &item.ident.to_string());
                let outer = std::mem::replace(&mut self.module, inner);
                visit::visit_item_mod(self, item);
                self.module = outer;
            }
            item => visit::visit_item(self, item),
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_for_tests(&item.attrs) {
            visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Vec<String> = path.segments.iter().map(|part| part.ident.to_string()).collect();
        self.name(&parts);
        visit::visit_path(self, path);
    }

    fn visit_visibility(&mut self, _: &'ast Visibility) {
        // `pub(in crate::x)` uses nothing.
    }

    fn visit_macro(&mut self, macro_: &'ast syn::Macro) {
        self.tokens(macro_.tokens.clone());
        visit::visit_macro(self, macro_);
    }
}

fn root(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(relative)
}

fn covers(allowed: &str, name: &str) -> bool {
    name == allowed || name.starts_with(&format!("{allowed}::"))
}

#[test]
fn no_module_names_one_that_it_must_not_know() {
    let tree = Tree::read(&root("src"), "bothy");
    let mut wrong = Vec::new();
    for (file, content) in tree.files.iter().filter(|(file, _)| !file.is_empty()) {
        let (module, allowed) = ALLOWED
            .iter()
            .find(|(module, _)| covers(module, file))
            .unwrap_or_else(|| panic!("{file} has no line in ALLOWED"));
        for name in &content.names {
            let mut may = allowed.iter().chain(EVERYWHERE).chain([module]);
            if !may.any(|allowed| covers(allowed, name)) {
                wrong.push(format!("{file} names {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_files_use_each_other_in_a_circle() {
    for (src, own_name) in [("src", "bothy"), ("guest/src", "bothy_guest")] {
        let tree = Tree::read(&root(src), own_name);
        let circles: Vec<String> = tree.circles().iter().map(|circle| circle.join(", ")).collect();
        assert!(circles.is_empty(), "in {src}, in circles:\n{}", circles.join("\n"));
    }
}

#[test]
fn names_are_found_wherever_they_stand() {
    let dir = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("writable");
    fs::create_dir(dir.path().join("a")).expect("writable");
    write("lib.rs", "mod a; mod b; mod c;");
    write("a/mod.rs", "mod one; mod two; pub use one::Thing as Named; pub struct Own;");
    write(
        "a/one.rs",
        "use super::{two::{self, X}, Own}; #[cfg(test)] use crate::c::Y; fn f() { crate::b::g() }",
    );
    write(
        "a/two.rs",
        "#[cfg(test)] mod tests { use super::super::one::Thing; }\nfn h() { format!(\"{}\", crate::c::VALUE) }",
    );
    write("b.rs", "pub fn g() -> crate::a::Named { todo!() }");
    write("c.rs", "// crate::a\nmod inner { use super::super::b::g; }");
    for number in 0..10 {
        write(&format!("z{number}.rs"), "");
    }
    let tree = Tree::read(dir.path(), "own");
    let names = |file: &str| Vec::from_iter(tree.files[file].names.iter().map(String::as_str));
    assert_eq!(names("a::one"), ["a::Own", "a::two", "a::two::X", "b::g"]);
    assert_eq!(names("a::two"), ["c::VALUE"]);
    assert_eq!(names("c"), ["b::g"]);
    assert_eq!(tree.defined_in("a::Named::new"), "a::one");
    assert_eq!(tree.circles(), [["a::one", "a::two", "b", "c"]]);
}

/// Where guests, images and registries can cause what is logged: all of it goes through a
/// `BoundedLog`.
const BOUNDED: &[&str] = &["agent", "devices", "image", "vcpu", "virtio"];

#[test]
fn what_strangers_can_cause_to_be_logged_is_bounded() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    for room in BOUNDED {
        let mut files = Vec::new();
        sources(&src.join(room), &mut files);
        assert!(!files.is_empty(), "{room} is found");
        for file in files {
            let text = fs::read_to_string(&file).expect("readable");
            for (number, line) in (1..).zip(text.lines()) {
                if ["log::error!", "log::warn!", "log::info!"].iter().any(|call| line.contains(call)) {
                    found.push(format!("{}, line {number}: {}", file.display(), line.trim()));
                }
            }
        }
    }
    assert!(found.is_empty(), "by BoundedLog instead:\n{}", found.join("\n"));
}
