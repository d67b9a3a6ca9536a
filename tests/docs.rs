//! Holds the form of what people read: the README's length, links between documents, and the width
//! of comments.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};

/// Lines of README.md, at most.
const README: usize = 150;
/// Columns of a comment, at most.
const WIDTH: usize = 100;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files with this ending below a directory.
fn files(dir: &str, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![root().join(dir)];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|found| found == ending) {
                found.push(path);
            }
        }
    }
    found
}

fn documents() -> Vec<PathBuf> {
    let own = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path());
    let own = own.filter(|path| path.extension().is_some_and(|ending| ending == "md"));
    own.chain(files("docs", "md")).collect()
}

#[test]
fn the_readme_is_short() {
    let lines = fs::read_to_string(root().join("README.md")).unwrap().lines().count();
    assert!(lines <= README, "README.md has {lines} lines, and {README} at most");
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut broken = Vec::new();
    let documents = documents();
    assert!(documents.len() > 10, "{documents:?}");
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            if path.contains("://") {
                continue;
            }
            let target = match path {
                "" => document.clone(),
                path => document.parent().unwrap().join(path),
            };
            let is_there = target.exists()
                && (heading.is_empty()
                    || headings(&fs::read_to_string(&target).unwrap()).contains(&heading.into()));
            if !is_there {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// The headings of a document, as links name them.
fn headings(text: &str) -> Vec<String> {
    let titles = text.lines().filter(|line| line.starts_with('#'));
    let name = |title: &str| -> String {
        let title = title.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        title.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
    };
    titles.map(name).collect()
}

#[test]
fn comments_are_no_wider_than_a_hundred_columns() {
    let mut wide = Vec::new();
    for path in ["src", "guest", "tests", "benches"].iter().flat_map(|dir| files(dir, "rs")) {
        let text = fs::read_to_string(&path).unwrap();
        let mut in_fence = false;
        for (number, line) in (1..).zip(text.lines()) {
            let comment = line.trim_start();
            let content = comment.trim_start_matches(['/', '!']).trim_start();
            if comment.starts_with("//") && content.starts_with("```") {
                in_fence = !in_fence;
            }
            // Tables and drawings have columns of their own.
            let is_text = comment.starts_with("//") && !in_fence && !content.starts_with('|');
            if is_text && line.chars().count() > WIDTH {
                wide.push(format!("{}:{number}", path.display()));
            }
        }
    }
    assert!(wide.is_empty(), "{wide:#?}");
}
